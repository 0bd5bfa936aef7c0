"""HasTemperature: the part of `Loss` that gives the value of `temperature: auto`; light, since the config reads it."""

from __future__ import annotations

from typing import ClassVar

# Scales of scores: in [-1, 1]; sums without such a limit, such as inner products of vectors of any length; outputs of a head.
COSINES, PRODUCTS, LOGITS = "cosines", "products", "logits"


class HasTemperature:
    """Base of `Loss`. cosine_temperature: the temperature for cosines; for all other scores it is 1."""

    cosine_temperature: ClassVar[float] = 0.05

    @classmethod
    def default_temperature(cls, scale: str) -> float:
        """The temperature for a scale of scores, see `COSINES`."""
        return cls.cosine_temperature if scale == COSINES else 1.0
