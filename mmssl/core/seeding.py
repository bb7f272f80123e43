"""Random seeds as a pure function of (seed, purpose, step): a resumed run needs no stored random state."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
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


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Seed torch (CPU), numpy and Python inside the block, for initial weights; then restore their states."""
    key = fold(*parts)
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(key)  # `torch.manual_seed` would seed the generators of all devices for good
    np.random.seed(key % 2**32)
    random.seed(key)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


def seed_step(seed: int, step: int, *place: int) -> None:
    """Seed torch on all devices for one optimizer step of one process, or for one micro-batch of it.

    Dropout and its kin become a pure function of (seed, step, place): a resumed run draws what the uninterrupted one drew, and a
    micro-batch that is encoded twice draws the same twice.

    Args:
        seed: of the run.
        step: 0-based optimizer step.
        place: the rank, followed by the micro-batch number where each micro-batch has a separate random stream.
    """
    torch.manual_seed(fold(seed, "step", step, *place))
