"""Quantiser: embeddings as 8-bit integers or as bits, in the forms of sentence-transformers' `quantize_embeddings`.

int8, uint8: each dimension of the calibrated range [low, high] is cut into 255 steps; the code is the number of the step,
and int8 subtracts 128. binary, ubinary: one bit per dimension, 1 for values above zero, eight bits to a byte with the first
dimension in the highest bit; binary subtracts 128 from the byte.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

SCALAR = {"int8": np.int8, "uint8": np.uint8}
BINARY = {"binary": np.int8, "ubinary": np.uint8}
FLOATS = {"float32": np.float32, "float16": np.float16}
DTYPES = {**FLOATS, **SCALAR, **BINARY}
STEPS, MIDDLE = 255, 128
LARGEST = 127  # Of an 8-bit integer with a sign, in both directions.


@dataclass(frozen=True)
class Quantiser:
    """The conversion between vectors [n, D] float32 and codes. ranges: [2, D] float32, for int8 and uint8; else None."""

    dtype: str
    dim: int
    ranges: np.ndarray | None = None

    @property
    def binary(self) -> bool:
        return self.dtype in BINARY

    @property
    def _low(self) -> np.ndarray:
        assert self.ranges is not None
        low: np.ndarray = self.ranges[0]
        return low

    @property
    def _step(self) -> np.ndarray:
        """[D] the width of a step; 1 for a dimension with a single value."""
        assert self.ranges is not None
        step = (self.ranges[1] - self.ranges[0]) / STEPS
        return np.where(step == 0, np.float32(1), step)

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """Returns codes [n, D], or [n, ⌈D / 8⌉] bytes. A value outside of its range gets the nearest code."""
        if self.binary:
            packed = np.packbits(vectors > 0, axis=-1)
            return packed if self.dtype == "ubinary" else _shifted(packed)
        steps = np.clip(np.floor((vectors - self._low) / self._step), 0, STEPS)
        return steps.astype(np.uint8) if self.dtype == "uint8" else (steps - MIDDLE).astype(np.int8)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Returns vectors [n, D] float32: the middles of the steps, or signs scaled to length 1."""
        if self.binary:
            return self.signed(codes) / np.float32(np.sqrt(self.dim))
        shift = 0 if self.dtype == "uint8" else MIDDLE
        found: np.ndarray = self._low + (codes.astype(np.float32) + np.float32(shift + 0.5)) * self._step
        return found

    def signed(self, codes: np.ndarray) -> np.ndarray:
        """Returns the codes as integers with a sign, [n, D] int8; those of bits are 1 and -1."""
        if self.binary:
            packed = codes if self.dtype == "ubinary" else _shifted(codes)
            bits = np.unpackbits(packed.view(np.uint8), axis=-1, count=self.dim).view(np.int8)
            return 2 * bits - np.int8(1)
        return codes if self.dtype == "int8" else _shifted(codes)

    def weights(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns w [Q, D] and offsets [Q] of queries [Q, D]: w · d + offset, with the signed codes d of a document, is the
        inner product of the query and the decoded document.
        """
        if self.binary:
            return vectors / np.float32(np.sqrt(self.dim)), np.zeros(len(vectors), dtype=np.float32)
        return vectors * self._step, vectors @ (self._low + np.float32(MIDDLE + 0.5) * self._step)

    def queries(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns q [Q, D] int8, scales [Q] and offsets [Q] of queries [Q, D]: scale · (q · d) + offset is about `weights`'
        inner product; of bits, the cosine of the signs.
        """
        if self.binary:
            signs = np.where(vectors > 0, np.int8(1), np.int8(-1))
            return signs, np.full(len(vectors), 1 / self.dim), np.zeros(len(vectors))
        weights, offsets = self.weights(vectors)
        largest = np.maximum(np.abs(weights).max(1, initial=0), np.finfo(np.float32).tiny)
        return np.rint(weights * (LARGEST / largest)[:, None]).astype(np.int8), largest / LARGEST, offsets


def _shifted(codes: np.ndarray) -> np.ndarray:
    """The codes minus 128 as int8, or plus 128 as uint8: both change the highest bit."""
    other = np.uint8 if codes.dtype == np.int8 else np.int8
    shifted: np.ndarray = (np.ascontiguousarray(codes).view(np.uint8) ^ np.uint8(MIDDLE)).view(other)
    return shifted


def ranges_of(blocks: Iterable[np.ndarray], dim: int) -> np.ndarray:
    """Returns [2, D] float32: the smallest and the largest value of each dimension; zeros without any vectors."""
    low, high = np.full(dim, np.inf, dtype=np.float32), np.full(dim, -np.inf, dtype=np.float32)
    for block in blocks:
        low, high = np.minimum(low, block.min(0, initial=np.inf)), np.maximum(high, block.max(0, initial=-np.inf))
    found = np.stack([low, high]).astype(np.float32)
    return found if np.isfinite(found).all() else np.zeros((2, dim), dtype=np.float32)
