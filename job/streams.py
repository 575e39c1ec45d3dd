"""Random numbers as a function of (seed, purpose, index), so that nothing needs a stored state.

NumPy's Philox is a counter-based generator: any part of any stream can be drawn alone, on any
machine, in any order. torch's generators promise the same numbers neither across releases nor
across devices.
"""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream is drawn for; two purposes never share a number."""

    DATA = 0  # index: chunk of rows
    INITIAL_WEIGHTS = 1  # index: layer
    SHUFFLE = 2  # index: epoch
    DROPOUT = 3  # index: step
    TEACHER = 4  # index: 0
    SPLIT = 5  # index: 0


def generator(seed: int, purpose: Purpose, index: int) -> np.random.Generator:
    """The generator of one stream; streams of different arguments are 2^192 draws apart."""
    key = np.array([seed, purpose], dtype=np.uint64)
    counter = np.array([0, 0, 0, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def seed_of(seed: int, purpose: Purpose, index: int) -> int:
    """A seed for another library's generator."""
    return int(generator(seed, purpose, index).integers(2**63))
