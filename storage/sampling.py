"""Seeded draws that no library's random generator can change.

Every number gets a key, a hash of the number and the seed (splitmix64); a sample of size n is the
n numbers with the smallest keys. So a sample needs one pass and no list of all numbers, does not
depend on library versions, and a larger sample of the same seed contains every smaller one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def sample_keys(numbers: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """One key, uint64, for each number; distinct numbers have distinct keys."""
    with np.errstate(over="ignore"):
        start = _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64))
        return _mix(np.asarray(numbers).astype(np.uint64) ^ start)


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # splitmix64's finaliser (Steele, Lea and Flood 2014): a bijection of 64-bit numbers.
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
