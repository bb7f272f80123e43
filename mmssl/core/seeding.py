"""Randomness as a pure function: every draw of a run is keyed by what it is for, so nothing has to be stored to resume it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence


def fold(*parts: int | str) -> int:
    """A 63-bit key made from its parts; stable over machines, versions and processes (unlike `hash`)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*parts: int | str) -> np.random.Generator:
    """A counter-based generator (Philox) for the given key parts, for draws on the data side."""
    return np.random.Generator(np.random.Philox(_Key(fold(*parts))))  # type: ignore[arg-type]


class _Key(ISeedSequence):
    """A Philox key as it is. `Philox(key=...)` makes the same generator, but asks the system for entropy that it then drops."""

    def __init__(self, key: int) -> None:
        self.key = key

    def generate_state(self, n_words: int, dtype: object = np.uint64) -> np.ndarray:
        """The key's words, low first."""
        words: np.ndarray = np.array([self.key] + [0] * (n_words - 1), dtype)  # type: ignore[call-overload]
        return words


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Seed what initial weights are drawn from (torch on the CPU, numpy, Python) for the block; then put all back as it was."""
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
        place: the rank, and after it the number of the micro-batch where each has a stream of its own.
    """
    torch.manual_seed(fold(seed, "step", step, *place))
