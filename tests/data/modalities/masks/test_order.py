"""Orders of tokens: permutations of as many tokens as the encoder has, alone or in tubes through time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modalities.video import VideoConfig
from mmssl.data.modality import ModalityConfig, View

AUDIO: dict[str, Any] = {"kind": "audio", "rate": 8000, "seconds": 1.0}
VIDEO: dict[str, Any] = {"kind": "video", "size": 32, "frames": 8}
IMAGE: dict[str, Any] = {"kind": "image", "size": 32}


def order(config: type[ModalityConfig], values: dict[str, Any], **view: Any) -> View:
    made = config.model_validate({**values, "views": {"order": {"kind": "order", **view}}})
    assert config.model_validate_json(made.model_dump_json()) == made
    return made.build("any").view("order")  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize(
    ("config", "values", "view", "tokens"),
    [
        (AudioConfig, AUDIO, {"tokens": 40}, 40),
        (ImageConfig, IMAGE, {"patch_size": 8}, 16),
        (VideoConfig, VIDEO, {"patch_size": 8}, 16),  # of one frame
        (VideoConfig, VIDEO, {"patch_size": 8, "tubelet": 2}, 64),
        (VideoConfig, VIDEO, {"patch_size": 8, "tubelet": 2, "tubes": True}, 64),
    ],
)
def test_it_is_a_permutation_of_the_tokens(
    config: type[ModalityConfig], values: dict[str, Any], view: dict[str, Any], tokens: int
) -> None:
    made = order(config, values, **view)
    draws = [made.draw(None, np.random.default_rng(seed)) for seed in range(3)]
    orders = [made(None, drawn) for drawn in draws]
    assert torch.equal(made(None, draws[0]), orders[0])
    assert not torch.equal(orders[0], orders[1])
    for one in [*orders, made.blank()]:
        assert one.dtype == torch.int64
        assert one.sort().values.tolist() == list(range(tokens))


def test_tubes_hide_a_place_at_all_times() -> None:
    made = order(VideoConfig, VIDEO, patch_size=8, tubelet=2, tubes=True)
    kept = made(None, made.draw(None, np.random.default_rng(0)))[:16]  # a quarter of 64: 4 places at 4 times
    seen = torch.zeros(64, dtype=torch.bool).index_fill(0, kept, True).view(4, 16)  # [times, places]
    assert torch.equal(seen.any(0), seen.all(0))
    assert seen.any(0).sum() == 4
