"""Random numbers as pure functions of their position: the SplitMix64 generator on integers and on arrays.

The order of the samples and every sample's seed come from here, so that they depend on neither the version of
a library, the number of processes nor what was drawn before.
"""

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK = (1 << 64) - 1


def hash_integers(*values: int) -> int:
    """Mix integers (of any sign) into one of 64 bits; the order of the values matters."""
    state = 0
    for value in values:
        state = _finalise((state + _GOLDEN + (value & _MASK)) & _MASK)
    return state


def hash_range(key: int, length: int) -> NDArray[np.uint64]:
    """64 random bits for each of 0..length-1 under ``key``; no two of them are equal."""
    state = np.arange(1, length + 1, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(key & _MASK)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_FACTORS[0])
    state = (state ^ (state >> np.uint64(27))) * np.uint64(_FACTORS[1])
    return state ^ (state >> np.uint64(31))


def permutation(key: int, length: int) -> NDArray[np.int64]:
    """A random order of 0..length-1, the same for the same key everywhere."""
    return np.argsort(hash_range(key, length), kind="stable")


def _finalise(state: int) -> int:
    state = ((state ^ (state >> 30)) * _FACTORS[0]) & _MASK
    state = ((state ^ (state >> 27)) * _FACTORS[1]) & _MASK
    return state ^ (state >> 31)
