"""Context and targets of I-JEPA: exact counts, no overlap of both, blocks at all places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mmssl.data.modalities.masks.image import ImageJepaConfig
from mmssl.data.modalities.masks.jepa import JepaLaw, JepaMask
from mmssl.data.modalities.masks.law import GridShape

GRIDS = [
    ((14, 14), {}, 58, 34),
    ((8, 64), {}, 153, 90),
    ((4, 4), {}, 4, 3),
    ((3, 5), {"targets": 2}, 4, 3),
    ((14, 14), {"targets": 8, "scale": (0.15, 0.15), "context": 0.15}, 29, 29),
    ((14, 14), {"targets": 2, "scale": (0.7, 0.7), "context": 0.1}, 19, 137),
]


def view(shape: tuple[int, int], **settings: Any) -> JepaMask:
    return ImageJepaConfig(patch_size=16, **settings).view(shape)


def draws(shape: tuple[int, int], count: int, **settings: Any) -> torch.Tensor:
    made = view(shape, **settings)
    return torch.stack([made(None, made.draw(None, np.random.default_rng(seed))) for seed in range(count)])


@pytest.mark.parametrize(("shape", "settings", "visible", "hidden"), GRIDS)
def test_counts_are_exact_and_the_context_has_no_target(
    shape: tuple[int, int], settings: dict[str, Any], visible: int, hidden: int
) -> None:
    masks = draws(shape, 300, **settings)
    targets = settings.get("targets", 4)
    assert masks.dtype == torch.bool
    assert masks.shape == (300, 1 + targets, shape[0] * shape[1]) == (300, *view(shape, **settings).blank().shape)
    assert set(masks[:, 0].sum(1).tolist()) == {visible}
    assert set(masks[:, 1:].sum(2).flatten().tolist()) == {hidden}
    assert not (masks[:, 0] & masks[:, 1:].any(1)).any()
    for seen in (masks[:, 0], masks[:, 1:].any(1)):
        grid = seen.any(0).unflatten(0, shape)
        assert grid[-1].all()
        assert grid[:, -1].all()
    contexts = masks[:, 0].nonzero()[:, 1].view(300, -1)  # as objectives read them
    places = masks[:, 1:].nonzero()[:, 2].view(300, targets, -1)
    assert (contexts.shape, places.shape) == ((300, visible), (300, targets, hidden))
    assert torch.equal(torch.zeros_like(masks[:, 1:]).scatter(2, places, True), masks[:, 1:])


def test_targets_are_nearly_blocks_of_the_drawn_aspects() -> None:
    masks = draws((14, 14), 300)[:, 1:].flatten(0, 1).unflatten(1, (14, 14)).numpy()
    heights, widths = ((masks.any(axis).sum(1)) for axis in (2, 1))
    filling = masks.sum((1, 2)) / (heights * widths)
    assert filling.mean() > 0.8  # of the smallest box around; a cell beside a block adds a row to it
    assert 4 <= np.quantile(heights, 0.02) < np.quantile(heights, 0.98) <= 9
    assert np.mean(heights / widths) == pytest.approx(1.1, abs=0.1)  # U(0.75, 1.5) has the mean 1.125


def test_random_cells_of_the_context_stay() -> None:
    """Where targets leave more than enough, each cell of the context's block is as likely: no bias to the top left."""
    masks = draws((14, 14), 2000, context=0.2)[:, 0].unflatten(1, (14, 14)).float().mean(0)
    assert masks.flip(0) == pytest.approx(masks, abs=0.06)
    assert pytest.approx(masks, abs=0.06) == masks.T
    assert masks.flip((0, 1)) == pytest.approx(masks, abs=0.06)


def test_targets_stand_at_one_place_if_no_draw_leaves_a_context(monkeypatch: pytest.MonkeyPatch) -> None:
    made, drawn = view((14, 14)), JepaLaw._draw

    def nothing(law: JepaLaw, shape: GridShape, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
        return np.zeros(shape, dtype=bool), drawn(law, shape, rng)[1]

    monkeypatch.setattr(JepaLaw, "_draw", nothing)
    context, *targets = made(None, made.draw(None, np.random.default_rng(0)))
    assert context.sum() == 58
    assert targets[0].sum() == 34
    assert all(torch.equal(target, targets[0]) for target in targets)
    assert not (context & targets[0]).any()
