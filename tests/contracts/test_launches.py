"""A ratchet of what a step asks of the device: operations that are not views, each about one launch of a kernel.

Counted on the CPU with texts padded as on a GPU, after a first step. A bound is the count at its last change, plus 2 %: lower it
where a change saves launches, and raise it only with a reason.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmssl.core.batch import Batch
from mmssl.core.objective import Learner
from mmssl.core.plan import Plan
from mmssl.encoders import attend, text_transformer
from mmssl.encoders.text_transformer import TextTransformerConfig
from mmssl.encoders.vit import VisionTransformerConfig
from mmssl.objectives.clip import ClipConfig
from mmssl.training.run import StepConfig
from mmssl.training.runtime.launch import Launch
from mmssl.training.steps.cached import CachedStepConfig
from mmssl.training.steps.optim import AdamWConfig
from mmssl.training.steps.plain import PlainStepConfig
from mmssl.training.steps.state import TrainState
from tests.training.toys import Stream

FREE = {
    "view", "t", "transpose", "unsqueeze", "expand", "slice", "select", "detach", "alias", "_unsafe_view", "permute", "split",
    "split_with_sizes", "unbind", "as_strided", "squeeze", "diagonal", "empty", "empty_like", "new_empty", "_reshape_alias",
    "lift_fresh", "unfold", "device", "empty_strided", "set_data",
}  # fmt: skip
"""Operations that launch nothing: views, and memory."""
PLAIN, CACHED = PlainStepConfig(), CachedStepConfig(micro_batches=4)
BOUNDS: dict[str, tuple[StepConfig, dict[str, Any], int]] = {
    "plain": (PLAIN, {}, 1540),
    "plain, tiles": (PLAIN, {"tiles": True}, 1645),
    "plain, sigmoid": (PLAIN, {"loss": "sigmoid", "temperature": 0.1}, 1568),
    "cached in 4": (CACHED, {}, 9097),
}


class Launches(TorchDispatchMode):
    """Context that counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))

    def total(self) -> int:
        return sum(count for name, count in self.counts.items() if name not in FREE)


def clip(depth: int, settings: dict[str, Any]) -> Learner:
    size: dict[str, Any] = {"width": 16, "depth": depth, "heads": 2}
    encoders: dict[str, Any] = {
        "image": VisionTransformerConfig(size=16, patch_size=8, **size).build(),
        "text": TextTransformerConfig(vocab_size=40, context_length=8, **size).build(),
    }
    usual = {"pairs": (("image", "text"),), "views": {"image": "crop", "text": "tokens"}, "embedding": 8}
    objective = ClipConfig.model_validate({**usual, "temperature": 0.07, **settings})
    return Learner(encoders, objective.build(encoders, Plan.unknown()))


def batch() -> Batch:
    ids = torch.ones(8, 8, dtype=torch.int64)
    ids[:, 5] = 39
    pictures = torch.zeros(8, 3, 16, 16, dtype=torch.uint8)
    return Batch({"image": {"crop0": pictures}, "text": {"tokens0": ids}}, torch.arange(8))


def launches(config: StepConfig, settings: dict[str, Any], depth: int) -> Launches:
    """Of one whole step in bf16: gradients, norms, clipping, checks, update."""
    torch.manual_seed(0)
    launch, learner = Launch("bf16", "cpu"), clip(depth, settings)
    step = config.build(learner, launch.wrap(learner), launch, 0, 1.0)
    state = TrainState(learner.train(), AdamWConfig(lr=1e-4).build(learner), Stream(), 10)
    step(state, batch())
    with Launches() as found:
        step(state, batch())
    return found


@pytest.mark.parametrize("name", BOUNDS)
def test_a_step_launches_no_more_than_it_did(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For towers of 12 blocks each, from those of 2 and of 3: the first and the last block differ from others."""
    monkeypatch.setattr(text_transformer, "_on_cpu", lambda x: False)
    monkeypatch.setattr(attend, "SHORT", 0)  # fused attention
    config, settings, bound = BOUNDS[name]
    one, two = (launches(config, settings, depth).total() for depth in (2, 3))
    total = one + 10 * (two - one)
    assert total <= bound, f"{total} launches a step, {one} of them of towers of two blocks"
    assert total > 0.9 * bound, f"{total} launches a step: lower the bound of {bound}"
