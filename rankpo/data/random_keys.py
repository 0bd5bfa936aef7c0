"""Random numbers as a pure function of (seed, epoch, example), without a generator or other state.

SplitMix64's finaliser (Steele, Lea, Flood, OOPSLA 2014, fig. 16) is applied to a 64-bit counter, so that results do not
depend on the version of a library, on the number of processes, or on interruptions of a run.
"""

from __future__ import annotations

import numpy as np
import xxhash

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, a bijection of uint64 numbers."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def text_key(text: str) -> int:
    """A 64-bit key of a text, equal in every process and on every platform (Python's own hash is salted)."""
    return xxhash.xxh3_64_intdigest(text.encode())


def random_keys(count: int, *parts: int) -> np.ndarray:
    """`count` uint64 numbers determined by `parts` (seed, epoch, example key, …)."""
    state = np.zeros(1, dtype=np.uint64)
    for part in parts:
        state = mix(state + _GOLDEN + np.uint64(part & 0xFFFFFFFFFFFFFFFF))
    return mix(state + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64))


def permutation(count: int, *parts: int) -> np.ndarray:
    """A permutation of range(count), [count] int64, determined by `parts`."""
    return np.argsort(random_keys(count, *parts), kind="stable")
