"""Seeds of torch's random state, for weights and dropout; `seeding` has keys and numpy generators, and does not import torch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from mmssl.core.seeding import fold


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
