"""Keys and generators are pure functions of their parts, on every machine."""

from __future__ import annotations

import random

import numpy as np
import torch

from mmssl.core.seeding import fold, generator


def test_fold_is_stable_over_machines_and_versions() -> None:
    assert fold(0, "order", 3) == 1855528780364446383
    assert all(0 <= fold(number) < 2**63 for number in range(1000))


def test_fold_tells_parts_apart() -> None:
    keys = [(1, 2), (2, 1), (12,), ("1", 2), (1, "2"), ("1\x1f2",), (1,), (), ("",), ("a", "b"), ("ab",), (-1, 2)]
    assert len({fold(*key) for key in keys}) == len(keys)


def test_generators_repeat_and_differ_by_key() -> None:
    draws = generator(7, "crop", 0).random(5)
    assert (draws == generator(7, "crop", 0).random(5)).all()
    assert not (draws == generator(7, "crop", 1).random(5)).any()
    assert generator(7, "crop", 0).bit_generator.state["bit_generator"] == "Philox"


def test_generators_are_philox_keyed_by_fold() -> None:
    for parts in [(7, "crop", 0), (), (0, "data", "000000.tar", 17, "image", "crop0")]:
        ours, plain = generator(*parts), np.random.Generator(np.random.Philox(key=fold(*parts)))
        assert ours.random(5).tolist() == plain.random(5).tolist()
        assert ours.integers(0, 1000, 7).tolist() == plain.integers(0, 1000, 7).tolist()
        assert ours.permutation(50).tolist() == plain.permutation(50).tolist()


def test_generators_leave_global_randomness_alone() -> None:
    torch_before, python_before = torch.get_rng_state(), random.getstate()
    generator(1).random()
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert random.getstate() == python_before
