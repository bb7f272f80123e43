"""What all masks have in common: exact counts on any grid, every place can be masked, the same mask at all times of a clip."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modalities.masks.law import GridShape, Mask, MaskLaw, set_count
from mmssl.data.modalities.video import VideoConfig
from mmssl.data.modality import ModalityConfig, View

CONFIGS: dict[str, tuple[type[ModalityConfig], dict[str, Any]]] = {
    "image": (ImageConfig, {"size": 224}),
    "audio": (AudioConfig, {"rate": 8000, "seconds": 1.0}),
    "video": (VideoConfig, {"size": 64, "frames": 8}),
}


def build(modality: str, **settings: Any) -> View:
    config, values = CONFIGS[modality]
    made = config.model_validate_json(json.dumps({**values, "views": {"mask": settings}}))
    assert config.model_validate_json(made.model_dump_json()) == made
    return made.build("any").view("mask")  # type: ignore[attr-defined, no-any-return]


def draws(view: View, count: int) -> torch.Tensor:
    """Masks [count, ...] with seeds 0, 1, ..."""
    return torch.stack([view(None, view.draw(None, np.random.default_rng(seed))) for seed in range(count)])


GRIDS: list[tuple[str, dict[str, Any], int, int]] = [
    ("image", {"kind": "blocks", "patch_size": 16}, 196, 78),
    ("image", {"kind": "blocks", "patch_size": 16, "ratio": 0.6}, 196, 118),
    ("image", {"kind": "blocks", "patch_size": 16, "size": 80, "smallest": 4}, 25, 10),
    ("audio", {"kind": "blocks", "grid": [8, 64]}, 512, 205),
    ("audio", {"kind": "blocks", "grid": [2, 9], "smallest": 2}, 18, 7),
    ("image", {"kind": "inverse_blocks", "patch_size": 16}, 196, 157),
    ("audio", {"kind": "inverse_blocks", "grid": [8, 64], "side": 5}, 512, 410),
    ("audio", {"kind": "inverse_blocks", "grid": [20, 5], "side": 2}, 100, 80),
    ("audio", {"kind": "inverse_blocks", "grid": [3, 7], "side": 2, "ratio": 0.5, "adjust": 0.0}, 21, 11),
    ("audio", {"kind": "spans", "tokens": 50}, 50, 25),
    ("audio", {"kind": "spans", "tokens": 50, "ratio": 0.6}, 50, 24),
    ("audio", {"kind": "spans", "tokens": 499, "ratio": 0.8}, 499, 283),
    ("audio", {"kind": "spans", "tokens": 7, "length": 3, "least": 1}, 7, 4),
]


@pytest.mark.parametrize(("modality", "settings", "tokens", "masked"), GRIDS)
def test_counts_are_exact_and_every_place_can_be_masked(
    modality: str, settings: dict[str, Any], tokens: int, masked: int
) -> None:
    view = build(modality, **settings)
    masks = draws(view, 400)
    assert masks.dtype == torch.bool
    assert masks.shape == (400, tokens)
    assert set(masks.sum(1).tolist()) == {masked} == {int(view.blank().sum())}
    assert masks.any(0).all()
    assert not masks.all(0).any()
    assert len({tuple(mask.tolist()) for mask in masks}) > 20
    places = masks.nonzero()[:, 1].view(len(masks), -1)  # as objectives read them
    assert torch.equal(torch.zeros_like(masks).scatter(1, places, True), masks)


@pytest.mark.parametrize("kind", ["blocks", "inverse_blocks", "jepa"])
def test_places_of_clips_are_masked_at_all_times(kind: str) -> None:
    settings: dict[str, Any] = {"kind": kind, "patch_size": 8} | ({"smallest": 8} if kind == "blocks" else {})
    clip, frame = build("video", **settings, tubelet=2), build("video", **settings)
    for seed in range(20):
        masks = clip(None, clip.draw(None, np.random.default_rng(seed)))
        assert masks.shape[-1] == 4 * 64  # times x rows x columns
        alike = masks.unflatten(-1, (4, 64))
        assert torch.equal(alike.any(-2), alike.all(-2))
        assert torch.equal(alike[..., 0, :], frame(None, frame.draw(None, np.random.default_rng(seed))))


@pytest.mark.parametrize(
    ("modality", "settings", "message"),
    [
        ("image", {"kind": "blocks", "patch_size": 15}, "view 'mask': got patch_size 15, wanted a divisor of size 224"),
        ("image", {"kind": "blocks", "patch_size": 56}, "got smallest 16, wanted at most 6"),
        ("image", {"kind": "blocks", "patch_size": 112, "ratio": 0.1}, "masks 0 of 4 tokens"),
        ("audio", {"kind": "blocks", "grid": [1, 64]}, "wanted two rows and columns or more"),
        ("image", {"kind": "blocks", "patch_size": 16, "ratio": 1.0}, "less than 1"),
        ("image", {"kind": "inverse_blocks", "patch_size": 56}, "no such square fits; lower side"),
        ("image", {"kind": "inverse_blocks", "patch_size": 112}, "masks 4 of 4 tokens"),
        ("audio", {"kind": "spans", "tokens": 10}, "wanted places for all of them: lower length"),
        ("audio", {"kind": "spans", "tokens": 2, "length": 1, "least": 2}, "masks 2 of 2 tokens"),
        ("image", {"kind": "jepa", "patch_size": 224}, "wanted both to fit"),
        ("image", {"kind": "jepa", "patch_size": 16, "context": 0.9}, "wanted both to fit"),
        ("image", {"kind": "jepa", "patch_size": 16, "context": 0.6}, r"which 1 of 20 draws of 4 targets leave: lower"),
        ("video", {"kind": "jepa", "patch_size": 8, "tubelet": 3}, "tubelets of 3 frames"),
        ("video", {"kind": "spans", "patch_size": 8}, "does not match any of the expected tags"),
        ("audio", {"kind": "blocks", "grid": [8]}, "Field required"),
    ],
)
def test_masks_that_do_not_fit_are_refused(modality: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        build(modality, **settings)


class Corner(MaskLaw):
    """Masks the first cell."""

    def choose(self, shape: GridShape, rng: np.random.Generator) -> np.ndarray:
        mask = np.zeros(shape, dtype=bool)
        mask[0, 0] = True
        return mask

    def check(self, shape: GridShape) -> None:
        pass


def test_a_mask_is_made_from_its_places() -> None:
    view = Corner().view((2, 3), times=2)
    assert isinstance(view, Mask)
    assert view.draw(None, np.random.default_rng(0)) == {"masked": [0]}
    assert view(None, {"masked": [1, 5]}).tolist() == [False, True, False, False, False, True] * 2


def test_cells_are_added_and_removed_at_random() -> None:
    added, removed = np.zeros(6), np.zeros(6)
    for seed in range(3000):
        rng = np.random.default_rng(seed)
        mask = np.array([[True, False, False], [True, False, True]])
        set_count(mask, 4, rng)
        added += mask.reshape(-1)
        mask = np.array([[True, False, False], [True, False, True]])
        set_count(mask, 2, rng)
        removed += mask.reshape(-1)
    assert added / 3000 == pytest.approx(np.array([1, 1 / 3, 1 / 3, 1, 1 / 3, 1]), abs=0.03)
    assert removed / 3000 == pytest.approx(np.array([2 / 3, 0, 0, 2 / 3, 0, 2 / 3]), abs=0.03)
