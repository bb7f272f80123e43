"""Box and flip of a crop as a view: those of the crop of the same number, as fractions of its picture."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from mmssl.core.sample import Origin, Sample
from mmssl.data.draws import draw_views, make_views
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modalities.video import VideoConfig
from mmssl.data.modality import Modality
from mmssl.data.stream.collate import BatchRow, collate
from mmssl.data.timeline import Clip

GRADIENT = np.stack(
    np.broadcast_arrays(np.arange(200, dtype=np.uint8)[:, None], np.arange(100, dtype=np.uint8)[None], 0), 2
).astype(np.uint8)
"""A picture [200, 100, 3] whose first channel is the row and whose second is the column."""


def build(kind: str) -> tuple[Modality, Any]:
    view = {"kind": kind, "scale": [0.1, 0.5], "flip": 0.5} | (
        {"operations": 1, "magnitude": 0} if kind == "rand_augment" else {}
    )
    if kind in ("clip", "frame"):
        made = VideoConfig.model_validate_json(json.dumps({"size": 40, "frames": 2, "views": {"crop": view}}))
        return made.build("m"), Clip(np.stack([GRADIENT] * 2), np.array([0.0, 0.5]), 1.0)
    view |= {"jitter": 0.0, "grayscale": 0.0, "blur": 0.0} if kind == "simclr" else {}
    view |= {"among": ["identity"]} if kind == "rand_augment" else {}
    return ImageConfig.model_validate_json(json.dumps({"size": 40, "views": {"crop": view}})).build("m"), GRADIENT


KINDS = ["resized_crop", "simclr", "rand_augment", "clip", "frame"]


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_where_the_crop_of_its_number_lies(kind: str) -> None:
    """Read from the pixels: rows and columns of a gradient at the crop's borders."""
    modality, value = build(kind)
    needs = {"m": {"crop": 2, "crop.geometry": 2}}
    flips, tops = set(), set()
    for seed in range(20):
        sample = Sample("a", Origin("", "", 0, 0), 0, {"m": value})
        drawn = draw_views(sample, {"m": modality}, needs, (seed,))
        made = make_views(sample, {"m": modality}, needs, drawn)["m"]
        for number in range(2):
            geometry = made[f"crop.geometry{number}"]
            assert (geometry.dtype, geometry.shape) == (torch.float32, (5,))
            top, left, height, width, flip = geometry.tolist()
            x = made[f"crop{number}"].reshape(-1, 3, 40, 40)[0].float()
            columns = x[1].mean(0).flip(0) if flip else x[1].mean(0)
            assert x[0].mean().item() == pytest.approx(200 * (top + height / 2) - 0.5, abs=1)
            assert columns.mean().item() == pytest.approx(100 * (left + width / 2) - 0.5, abs=1)
            assert columns[-1] > columns[0]
            assert columns[-1] - columns[0] == pytest.approx(100 * width * 39 / 40, abs=2)
            assert x[0, -1].mean() - x[0, 0].mean() == pytest.approx(200 * height * 39 / 40, abs=3)
            flips.add(flip)
            tops.add(top)
        assert drawn["m"]["crop0"]["box"] == drawn["m"]["crop.geometry0"]["box"]
    assert flips == {0.0, 1.0}
    assert len(tops) > 30


@pytest.mark.parametrize("kind", KINDS)
def test_needing_it_changes_no_crop(kind: str) -> None:
    modality, value = build(kind)
    sample = Sample("a", Origin("", "", 0, 0), 0, {"m": value})
    alone = draw_views(sample, {"m": modality}, {"m": {"crop": 2}}, (3,))
    both = draw_views(sample, {"m": pickle.loads(pickle.dumps(modality))}, {"m": {"crop.geometry": 2, "crop": 2}}, (3,))
    assert {name: both["m"][name] for name in alone["m"]} == alone["m"]


def test_it_travels_with_the_batch() -> None:
    modality, value = build("resized_crop")
    needs = {"m": {"crop": 1, "crop.geometry": 1}}
    sample = Sample("a", Origin("", "", 0, 0), 0, {"m": value})
    made = make_views(sample, {"m": modality}, needs, draw_views(sample, {"m": modality}, needs, (0,)))
    batch = collate([BatchRow(0, "a", made), BatchRow(1, "b", {})], {"m": modality}, needs)
    geometry = batch["m"]["crop.geometry0"]
    assert torch.equal(geometry[0], made["m"]["crop.geometry0"])
    assert geometry[1].tolist() == [0, 0, 1, 1, 0]
    assert torch.equal(batch.rows(1, 2).to("cpu")["m"]["crop.geometry0"], geometry[1:])


def test_only_crops_have_one() -> None:
    views = '{"crop": {"kind": "resized_crop"}, "order": {"kind": "order", "patch_size": 8}}'
    modality = ImageConfig.model_validate_json(f'{{"size": 32, "views": {views}}}').build("image")
    assert sorted(modality.views) == ["crop", "crop.geometry", "eval", "order"]
