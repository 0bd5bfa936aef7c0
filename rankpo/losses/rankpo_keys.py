"""RankPOKeys: the keys of loss=rankpo and the checks of their values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rankpo.losses.base import Loss, require_choice, require_not_negative, require_positive
from rankpo.losses.in_batch import InBatchLoss
from rankpo.losses.matryoshka import Matryoshka, matryoshka_of
from rankpo.losses.pairs import check_preference
from rankpo.losses.replay import replay_loss


@dataclass(frozen=True, kw_only=True)
class RankPOKeys(Loss):
    """The keys of `RankPOLoss`; see its documentation."""

    cosine_temperature: ClassVar[float] = 0.1  # The value in run_rankpo.sh of RankPO's authors.

    beta: float
    temperature: float
    kind: str = "sigmoid"
    margin: float = 0.0  # γ/β, added after the division by τ.
    gamma_beta_ratio: float | None = None  # The authors' name of margin.
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
                "rankpo_weight, sft_weight and prior_weight are all 0; set one of them to train on the preferences"
            )
        if self.prior_weight and (self.kl_weight or not self.reference_free):
            raise ValueError(
                f"prior_weight={self.prior_weight} needs reference_free=true and kl_weight=0, since the scores of a reference "
                "include its prior"
            )
        self._check_term("kl", self.kl_weight, self.kl_temperature)
        self._check_term("replay", self.replay_weight, self.replay_temperature)
        _ = self.replay_loss

    @property
    def replay_loss(self) -> InBatchLoss | None:
        """The unweighted loss on `replay_datasets`; None without replay."""
        loss = replay_loss(self.replay_kind, self.replay_temperature, self.replay_margin, self.replay_unknown)
        return loss if self.replay_weight else None

    def _take_alias(self) -> None:
        if self.gamma_beta_ratio is None:
            return
        if self.margin not in (0.0, self.gamma_beta_ratio):
            raise ValueError(
                f"margin={self.margin} and gamma_beta_ratio={self.gamma_beta_ratio} are two names of one key; set one of them"
            )
        object.__setattr__(self, "margin", self.gamma_beta_ratio)

    @staticmethod
    def _check_term(name: str, weight: float, temperature: float | None) -> None:
        if temperature is not None:
            require_positive(**{f"{name}_temperature": temperature})
        elif weight:
            raise ValueError(f"{name}_weight={weight} needs {name}_temperature; set it to the temperature of stage one")

    @property
    def matryoshka(self) -> Matryoshka | None:
        return matryoshka_of(self.matryoshka_dims, self.matryoshka_weights)
