"""RankPO loss: preference optimisation of ranking scores, https://arxiv.org/abs/2503.10723, with our extensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from rankpo.losses.base import Loss, require_choice, require_not_negative, require_positive
from rankpo.losses.contrastive import ContrastiveLoss
from rankpo.losses.graded_margin import GradedMarginLoss
from rankpo.losses.in_batch import InBatchLoss
from rankpo.losses.maths import candidate_kl, negative_log_sigmoid
from rankpo.losses.matryoshka import Matryoshka, matryoshka_of
from rankpo.losses.pairs import check_preference, fixed_reference, gap, pair_metrics, pair_scores, preference
from rankpo.types import Labels, LossOutput, Term


@dataclass(frozen=True, kw_only=True)
class RankPOLoss(Loss):
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
      on the priors t of a model with `prior_layers`. With prior_weight, all other terms see the scores without the
      prior, so that the prior learns the judge and the scores keep stage one; without it, the prior is a part of them.

    confidence of a pair, c in [.5, 1]: `weight` multiplies preference and sft by 2c - 1; `smoothing` sets ε = 1 - c,
    so that the optimum is σ(βz) = c; `margin` adds confidence_scale·(2c - 1) to the margin (as 2402.10571).
    matryoshka_*: for `matryoshka`, which calls this loss on the scores of each size.
    """

    on_pairs: ClassVar[bool] = True

    beta: float
    temperature: float
    kind: str = "sigmoid"
    margin: float = 0.0  # γ/β, added after the division by τ.
    gamma_beta_ratio: float | None = None  # The authors call margin this.
    reference_free: bool = False
    label_smoothing: float = 0.0
    rankpo_weight: float = 1.0
    sft_weight: float = 0.0
    confidence: str = "none"
    confidence_scale: float = 1.0
    kl_weight: float = 0.0
    kl_temperature: float | None = None
    kl_direction: str = "forward"
    replay_weight: float = 0.0
    replay_temperature: float | None = None
    replay_kind: str = "contrastive"
    replay_margin: float | None = None
    replay_unknown: str | None = None
    prior_weight: float = 0.0
    matryoshka_dims: tuple[int, ...] | None = None
    matryoshka_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        self._take_alias()
        require_positive(beta=self.beta, temperature=self.temperature, confidence_scale=self.confidence_scale)
        require_not_negative(
            margin=self.margin,
            rankpo_weight=self.rankpo_weight,
            sft_weight=self.sft_weight,
            kl_weight=self.kl_weight,
            replay_weight=self.replay_weight,
            prior_weight=self.prior_weight,
        )
        check_preference(self.kind, self.label_smoothing)
        require_choice(("none", "weight", "smoothing", "margin"), confidence=self.confidence)
        require_choice(("forward", "reverse"), kl_direction=self.kl_direction)
        _ = self.matryoshka
        if self.confidence == "smoothing" and (self.kind == "hinge" or self.label_smoothing > 0):
            raise ValueError(
                "confidence=smoothing needs kind=sigmoid and label_smoothing=0, "
                f"got kind={self.kind}, label_smoothing={self.label_smoothing}"
            )
        if not (self.rankpo_weight or self.sft_weight or self.prior_weight):
            raise ValueError(
                "rankpo_weight, sft_weight and prior_weight are all 0: nothing would learn from the preferences"
            )
        if self.prior_weight and (self.kl_weight or not self.reference_free):
            raise ValueError(
                f"prior_weight={self.prior_weight} needs reference_free=true and kl_weight=0: scores of a reference hold its "
                "prior, and these terms see scores without one"
            )
        self._check_term("kl", self.kl_weight, self.kl_temperature)
        self._check_term("replay", self.replay_weight, self.replay_temperature)
        require_choice(("contrastive", "graded_margin"), replay_kind=self.replay_kind)
        for name in ("replay_margin", "replay_unknown"):
            if getattr(self, name) is not None and self.replay_kind != "graded_margin":
                raise ValueError(
                    f"{name}={getattr(self, name)} needs replay_kind=graded_margin, got {self.replay_kind}"
                )
        _ = self.replay_loss

    def without_replay(self) -> RankPOLoss:
        return replace(self, replay_weight=0.0)

    @property
    def replay_loss(self) -> InBatchLoss | None:
        """The unweighted loss on `replay_datasets`; None without replay."""
        if not self.replay_weight or self.replay_temperature is None:
            return None
        if self.replay_kind == "contrastive":
            return ContrastiveLoss(temperature=self.replay_temperature)
        margin = 2.0 if self.replay_margin is None else self.replay_margin
        unknown = self.replay_unknown or "masked"
        return GradedMarginLoss(temperature=self.replay_temperature, margin=margin, unknown=unknown)

    def _take_alias(self) -> None:
        if self.gamma_beta_ratio is None:
            return
        if self.margin not in (0.0, self.gamma_beta_ratio):
            raise ValueError(
                f"margin={self.margin} and gamma_beta_ratio={self.gamma_beta_ratio} are two names of one value; set one"
            )
        object.__setattr__(self, "margin", self.gamma_beta_ratio)

    @staticmethod
    def _check_term(name: str, weight: float, temperature: float | None) -> None:
        if temperature is not None:
            require_positive(**{f"{name}_temperature": temperature})
        elif weight:
            raise ValueError(f"{name}_temperature must be set with {name}_weight={weight}: use that of stage one")

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

    @property
    def matryoshka(self) -> Matryoshka | None:
        return matryoshka_of(self.matryoshka_dims, self.matryoshka_weights)

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
        """priors: [B, G] priors of the candidates, where prior_weight > 0; scores are then those without them."""
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


def soft_bradley_terry(gaps: Tensor, labels: Labels) -> Tensor:
    """[B] cross-entropy of σ(t_w - t_l) against the confidence c in [.5, 1]; the optimum is σ(gap) = c. gaps: [B]."""
    certain = labels.confidence.clamp(0.5, 1.0)
    return certain * negative_log_sigmoid(gaps) + (1 - certain) * negative_log_sigmoid(-gaps)
