"""Smaller pictures for a part of the run: at the right steps, the same after a resume, refused early where they cannot be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmssl.core.batch import Batch
from mmssl.core.errors import RecipeError
from mmssl.core.objective import Learner
from mmssl.core.plan import Plan
from mmssl.encoders.text_transformer import TextTransformerConfig
from mmssl.encoders.vit import VisionTransformerConfig
from mmssl.objectives.clip import ClipConfig
from mmssl.objectives.mae import MaeConfig
from mmssl.training.run import Run
from mmssl.training.steps.resolution import Resolution, shrink
from tests.training.toys import Stream, assert_equal, make_run, tensors

STAGES = {"image": [{"size": 8, "until": "3 steps"}, {"size": 16, "until": "60 percent"}]}


class Pictures(Stream):
    """Pictures of 24 pixels and texts, a function of the step."""

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self.act(self.step)
            random = torch.Generator().manual_seed(self.step)
            ids = torch.randint(1, 9, (4, 6), generator=random)
            ids[:, 5] = 9
            pictures = torch.randint(0, 256, (4, 3, 24, 24), generator=random, dtype=torch.uint8)
            self.step += 1
            yield Batch({"image": {"crop0": pictures}, "text": {"tokens0": ids}}, torch.arange(4))


class Cut(Pictures):
    """Cuts the power before step 6."""

    def act(self, step: int) -> None:
        if step == 6:
            raise ConnectionAbortedError


def clip() -> Learner:
    torch.manual_seed(0)
    size: dict[str, Any] = {"width": 8, "depth": 1, "heads": 2}
    encoders = {
        "image": VisionTransformerConfig(size=24, patch_size=8, **size).build(),
        "text": TextTransformerConfig(vocab_size=10, context_length=6, **size).build(),
    }
    views = {"image": "crop", "text": "tokens"}
    config = ClipConfig(pairs=(("image", "text"),), views=views, embedding=4, temperature=0.07)
    return Learner(encoders, config.build(encoders, Plan.unknown()))


def run(folder: Path, stream: Stream, **changes: Any) -> Run:
    return make_run(folder, learner=clip(), stream=stream, **({"resolution": STAGES} | changes))


def sizes(learner: Learner) -> list[int]:
    """Fills up with the patches of a side that the encoder sees."""
    seen: list[int] = []
    encoder = learner.encoders["image"]
    convolution: nn.Module = encoder.patch_embedding  # type: ignore[assignment]
    convolution.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[-1]))
    return seen


def test_pictures_have_the_size_of_their_step_and_a_resume_changes_nothing(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", Pictures())
    seen = sizes(whole.state.learner)
    whole.train()
    assert seen == [8] * 3 + [16] * 3 + [24] * 4
    with pytest.raises(ConnectionAbortedError):
        run(tmp_path / "cut", Cut()).train()
    resumed = run(tmp_path / "cut", Pictures())
    resumed.train()
    assert_equal(tensors(resumed), tensors(whole))


def test_pictures_are_shrunk_with_antialiasing() -> None:
    x = torch.randint(0, 256, (2, 3, 32, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    small = shrink(x, 8)
    assert small.dtype == torch.uint8
    assert small.shape == (2, 3, 8, 12)
    blocks = F.avg_pool2d(x.float(), 4)
    assert (small.float() - blocks).abs().mean() < (x[:, :, ::4, ::4].float() - blocks).abs().mean() / 4
    torch.testing.assert_close(shrink(x.float() / 255, 8) * 255, small.float(), atol=0.51, rtol=0)
    white = shrink(torch.full((1, 3, 8, 8), 255, dtype=torch.uint8), 4)
    assert white.unique().tolist() == [255]
    ids = torch.ones(2, 77, dtype=torch.int64)
    assert shrink(x, 32) is x
    assert shrink(ids, 8) is ids


def test_clips_are_shrunk_frame_by_frame() -> None:
    clips = torch.randint(0, 256, (2, 3, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    small = shrink(clips, 8)
    assert small.shape == (2, 3, 3, 8, 8)
    assert torch.equal(small[1], shrink(clips[1], 8))


def test_masked_tokens_are_refused(tmp_path: Path) -> None:
    """Positions of tokens that a smaller picture does not have would be asked for."""
    encoders = {"image": VisionTransformerConfig(size=24, patch_size=8, width=8, depth=1, heads=2).build()}
    decoder = {"width": 8, "depth": 1, "heads": 2}
    objective = MaeConfig.model_validate({"modality": "image", "view": "crop", "patch_values": 192, "decoder": decoder})
    with pytest.raises(RecipeError, match=r"resolution\.image: the objective masks tokens"):
        make_run(tmp_path, learner=Learner(encoders, objective.build(encoders, Plan.unknown())), resolution=STAGES)


def test_other_modalities_and_later_steps_are_left_alone() -> None:
    views = {"a": {"crop0": torch.zeros(1, 3, 16, 16)}, "b": {"crop0": torch.zeros(1, 3, 16, 16)}}
    batch = Batch(views, torch.arange(1))
    schedule = Resolution({"a": [(8, 2)], "c": [(8, 2)]})
    assert schedule(batch, 1)["a"]["crop0"].shape[-1] == 8
    assert schedule(batch, 1)["b"]["crop0"] is views["b"]["crop0"]
    assert schedule(batch, 2)["a"]["crop0"] is views["a"]["crop0"]


def test_local_crops_stay_as_they_are_until_a_stage_is_smaller() -> None:
    views = {"a": {"crop0": torch.zeros(1, 3, 16, 16), "local0": torch.zeros(1, 3, 8, 8), "label0": torch.zeros(1)}}
    schedule = Resolution({"a": [(4, 1), (12, 2)]})
    small, middle = (schedule(Batch(views, torch.arange(1)), step)["a"] for step in range(2))
    assert [small[name].shape[-1] for name in ("crop0", "local0")] == [4, 4]
    assert middle["crop0"].shape[-1] == 12
    assert middle["local0"] is views["a"]["local0"]
    assert middle["label0"] is views["a"]["label0"]


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ({"imag": [{"size": 8, "until": "3 steps"}]}, r"resolution.imag: there is no such encoder.*image"),
        ({"image": [{"size": 12, "until": "3 steps"}]}, r"does not take 12 pixels.*multiples of the patch size 8"),
        (
            {"image": [{"size": 8, "until": "11 steps"}]},
            r"a stage until '11 steps' \(11 steps\), and the run has 10 steps",
        ),
        ({"text": [{"size": 8, "until": "3 steps"}]}, r"resolution.text: the encoder does not take 8 pixels"),
        (
            {"image": [{"size": 8, "until": "5 steps"}, {"size": 16, "until": "50 percent"}]},
            r"end after \[5, 5\] steps",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_the_run(tmp_path: Path, stages: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        run(tmp_path, Pictures(), resolution=json.loads(json.dumps(stages)))
