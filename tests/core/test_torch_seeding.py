"""Torch's random state is a pure function of seed, step and place."""

from __future__ import annotations

import torch

from mmssl.core.torch_seeding import seed_step


def test_seed_step_is_a_function_of_seed_step_and_rank() -> None:
    def draw(*key: int) -> float:
        seed_step(*key)
        return float(torch.rand(()))

    assert draw(1, 2, 0) == draw(1, 2, 0)
    assert len({draw(1, 2, 0), draw(1, 2, 1), draw(1, 3, 0), draw(2, 2, 0)}) == 4


def test_micro_batches_have_streams_of_their_own() -> None:
    def draw(*key: int) -> float:
        seed_step(*key)
        return float(torch.rand(()))

    assert draw(1, 2, 0, 3) == draw(1, 2, 0, 3)
    assert len({draw(1, 2, 0), *(draw(1, 2, rank, number) for rank in range(2) for number in range(3))}) == 7
