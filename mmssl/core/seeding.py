"""Random seeds as a pure function of (seed, purpose, step): a resumed run needs no stored random state."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.random.bit_generator import ISeedSequence


def fold(*parts: int | str) -> int:
    """Hash parts into a 63-bit seed; stable over machines, versions and processes (unlike `hash`)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*parts: int | str) -> np.random.Generator:
    """A numpy generator (counter-based Philox), seeded by the given parts, for data loading."""
    return np.random.Generator(np.random.Philox(_Key(fold(*parts))))  # type: ignore[arg-type]


class _Key(ISeedSequence):
    """A Philox key without hashing. `Philox(key=...)` makes the same generator, but draws unused entropy from the system."""

    def __init__(self, key: int) -> None:
        self.key = key

    def generate_state(self, n_words: int, dtype: object = np.uint64) -> np.ndarray:
        """The key's words, low first."""
        words: np.ndarray = np.array([self.key] + [0] * (n_words - 1), dtype)  # type: ignore[call-overload]
        return words
