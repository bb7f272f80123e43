"""The average of the weights."""

from __future__ import annotations

import pytest
import torch

from mmssl.training.steps.ema import EmaConfig
from tests.training.toys import assert_equal, make_learner


def test_the_average_follows_by_its_formula() -> None:
    learner = make_learner()
    ema = EmaConfig(decay=0.75).build(learner)
    weight, average = learner.encoders["a"].first.weight, ema.module.encoders["a"].first.weight
    expected = weight.detach().clone()
    for _ in range(3):
        with torch.no_grad():
            weight.add_(1)
        ema.update(learner)
        expected = 0.75 * expected + 0.25 * weight.detach()
        torch.testing.assert_close(average, expected)
    assert ema.updates == 3
    assert not average.requires_grad


def test_warmup_forgets_the_start() -> None:
    learner = make_learner()
    ema = EmaConfig(decay=0.5, warmup=True).build(learner)
    weight, average = learner.encoders["a"].first.weight, ema.module.encoders["a"].first.weight
    for decay in (1 / 10, 2 / 11, 3 / 12):
        before = average.clone()
        with torch.no_grad():
            weight.mul_(2)
        ema.update(learner)
        torch.testing.assert_close(average, decay * before + (1 - decay) * weight.detach())
    ema.updates = 100
    before = average.clone()
    ema.update(learner)
    torch.testing.assert_close(average, 0.5 * before + 0.5 * weight.detach())


def test_buffers_are_copied_and_the_average_is_float32_and_apart() -> None:
    learner = make_learner().to(torch.bfloat16)
    ema = EmaConfig(decay=0.5).build(learner)
    assert {p.dtype for p in ema.module.parameters()} == {torch.float32}
    learner.objective.centre.add_(3)
    learner.encoders["a"].norm.num_batches_tracked.add_(7)
    ema.update(learner)
    assert_equal(dict(ema.module.named_buffers()), dict(learner.named_buffers()))
    assert not ema.module.training
    learner.objective.centre.add_(1)
    assert not torch.equal(ema.module.objective.centre, learner.objective.centre)


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_decay_is_a_fraction(decay: float) -> None:
    with pytest.raises(ValueError, match="decay"):
        EmaConfig(decay=decay)
