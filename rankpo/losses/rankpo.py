"""RankPO loss: preference optimisation of ranking scores, https://arxiv.org/abs/2503.10723, with our extensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from rankpo.losses.maths import candidate_kl, negative_log_sigmoid
from rankpo.losses.pairs import fixed_reference, gap, pair_metrics, pair_scores, preference, soft_bradley_terry
from rankpo.losses.rankpo_keys import RankPOKeys
from rankpo.types import Labels, LossOutput, Term


@dataclass(frozen=True, kw_only=True)
class RankPOLoss(RankPOKeys):
    """(1 - ε)ℓ(βz) + εℓ(-βz), or max(0, 1 - βz), with z = A/τ - margin and A = (s_w - s_l) - (r_w - r_l).

    scores, reference [B, 2], columns chosen and rejected; with candidates for the KL term [B, G], of which the first
    two are the pair. `reference_free` omits r. The update's loss is rankpo_weight · this + sft_weight · sft
    + kl_weight · kl + replay_weight · replay + prior_weight · prior, each with its own denominator:

    - sft: ℓ((s_w - s_l)/τ), cross-entropy over the two candidates.
    - kl: KL between softmax(r/τ_k) and softmax(s/τ_k) over the unmasked candidates, τ_k = kl_temperature, in the
      `forward` direction KL(reference ‖ policy) or `reverse`; needs the reference even with `reference_free`.
    - replay: a loss on stage-one data at replay_temperature; the trainer adds its queries to the pairs.
      replay_kind: `contrastive`, InfoNCE, or `graded_margin`, which ranks every grade above the lower ones, with
      replay_margin (2 unless set) and replay_unknown (masked unless set): `GradedMarginLoss`.

    - prior: -c log σ(t_w - t_l) - (1 - c) log σ(t_l - t_w), Bradley-Terry with the judge's confidence c as a soft label,
      on the priors t of a model with `prior_layers`. With prior_weight, all other terms use the scores without the
      prior, so that only the prior is trained on the judge; with prior_weight 0, the scores include the prior.

    confidence of a pair, c in [.5, 1]: `weight` multiplies preference and sft by 2c - 1; `smoothing` sets ε = 1 - c,
    so that the optimum is σ(βz) = c; `margin` adds confidence_scale·(2c - 1) to the margin (as 2402.10571).
    matryoshka_*: for `matryoshka`, which calls this loss on the scores of each size. The keys with their defaults are
    those of `RankPOKeys`.
    """

    on_pairs: ClassVar[bool] = True

    def without_replay(self) -> RankPOLoss:
        return replace(self, replay_weight=0.0)

    @property
    def needs(self) -> frozenset[str]:
        wanted = {
            "reference": not self.reference_free or self.kl_weight > 0,
            "vectors": self.matryoshka_dims is not None or self.replay_weight > 0,
        }
        return frozenset(need for need, asked in wanted.items() if asked)

    def asked_by(self, need: str) -> str:
        if need != "vectors":
            return super().asked_by(need)
        return "loss.matryoshka_dims" if self.matryoshka_dims is not None else "loss.replay_weight"

    def weights(self, labels: Labels) -> Mapping[str, Tensor]:
        ones = super().weights(labels)["loss"]
        stated = self._certainty(labels) if self.confidence == "weight" else ones
        # The KL term does not depend on the preference label, so confidence does not weight it.
        candidates = {
            "loss": (1.0, stated),
            "sft": (self.sft_weight, stated),
            "kl": (self.kl_weight, ones),
            "prior": (self.prior_weight, ones),
        }
        return {name: weights for name, (scale, weights) in candidates.items() if scale}

    def __call__(
        self, scores: Tensor, labels: Labels, reference: Tensor | None = None, priors: Tensor | None = None
    ) -> LossOutput:
        """priors: [B, G] priors of the candidates if prior_weight > 0; the scores then exclude them."""
        scores = pair_scores(scores)
        fixed = fixed_reference(self, reference) if "reference" in self.needs else None
        gains = scores if self.reference_free or fixed is None else scores - fixed  # [B, G]
        # The margin follows the division by τ: it is γ/β of the authors' code.
        z = gap(gains) / self.temperature - self._margin(labels)  # [B]
        smoothing = self._smoothing(labels)
        preferred = self.rankpo_weight * preference(self.beta * z, self.kind, smoothing)
        weights = self.weights(labels)
        terms = {}
        if self.sft_weight:
            imitated = negative_log_sigmoid(gap(scores) / self.temperature)
            terms["sft"] = Term(imitated, weights["sft"], self.sft_weight)
        metrics = pair_metrics(scores, self.beta * gains / self.temperature, labels.lengths)
        metrics["loss/preference"] = preferred.detach()
        if self.kl_weight and self.kl_temperature is not None and fixed is not None:
            kl = candidate_kl(scores, fixed, labels.mask, self.kl_temperature, self.kl_direction)
            terms["kl"] = Term(kl, weights["kl"], self.kl_weight)
            metrics["kl/candidates"] = kl.detach()
        if self.prior_weight:
            if priors is None:
                raise ValueError(
                    f"prior_weight={self.prior_weight} needs the priors of the candidates [B, G], got None"
                )
            terms["prior"] = Term(soft_bradley_terry(gap(priors), labels), weights["prior"], self.prior_weight)
            metrics["prior/accuracies"] = (gap(priors) > 0).float().detach()
        return LossOutput(preferred, weights["loss"], metrics, terms)

    def _certainty(self, labels: Labels) -> Tensor:
        """2c - 1 in [0, 1], [B]: 0 for c = ½, 1 for certainty."""
        return 2 * labels.confidence.clamp(0.5, 1.0) - 1

    def _margin(self, labels: Labels) -> float | Tensor:
        if self.confidence != "margin":
            return self.margin
        return self.margin + self.confidence_scale * self._certainty(labels)

    def _smoothing(self, labels: Labels) -> float | Tensor:
        if self.confidence != "smoothing":
            return self.label_smoothing
        return 1 - labels.confidence.clamp(0.5, 1.0)
