"""Randomness as a pure function: every draw of a run is keyed by what it is for, so nothing has to be stored to resume it."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def fold(*parts: int | str) -> int:
    """A 63-bit key made from its parts; stable over machines, versions and processes (unlike `hash`)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*parts: int | str) -> np.random.Generator:
    """A counter-based generator (Philox) for the given key parts, for draws on the data side."""
    return np.random.Generator(np.random.Philox(key=fold(*parts)))


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
