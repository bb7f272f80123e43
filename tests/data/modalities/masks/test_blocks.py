"""Block masks against loops of the papers' code."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from mmssl.data.modalities.masks.blocks import squares
from mmssl.data.modalities.masks.image import ImageBlocksConfig, ImageInverseBlocksConfig


def beit(rows: int, columns: int, count: int, smallest: int, rng: random.Random) -> np.ndarray:
    """The loop of BEiT's generator of masks, in its own order; it may end short of the count."""
    mask = np.zeros((rows, columns), dtype=int)
    done = 0
    while done < count:
        most, delta = count - done, 0
        for _ in range(10):
            area = rng.uniform(smallest, most)
            aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if w < columns and h < rows:
                top, left = rng.randint(0, rows - h), rng.randint(0, columns - w)
                covered = mask[top : top + h, left : left + w].sum()
                if 0 < h * w - covered <= most:
                    for i in range(top, top + h):
                        for j in range(left, left + w):
                            if mask[i, j] == 0:
                                mask[i, j] = 1
                                delta += 1
            if delta > 0:
                break
        if delta == 0:
            break
        done += delta
    return mask.astype(bool)


def filled(mask: np.ndarray, count: int, rng: random.Random) -> np.ndarray:
    flat = mask.reshape(-1)
    flat[rng.sample(np.flatnonzero(~flat).tolist(), count - int(flat.sum()))] = True
    return mask


def neighbours(masks: np.ndarray) -> float:
    """Share of neighbouring cells that are both masked or both visible: high for blocks, 0.5 to 0.55 for random cells."""
    alike = [(masks[:, 1:] == masks[:, :-1]).mean(), (masks[:, :, 1:] == masks[:, :, :-1]).mean()]
    return float(np.mean(alike))


@pytest.mark.parametrize(("shape", "smallest"), [((14, 14), 16), ((8, 24), 16), ((14, 14), 4)])
def test_blocks_are_those_of_beit(shape: tuple[int, int], smallest: int) -> None:
    law, count, samples = ImageBlocksConfig(patch_size=16, smallest=smallest), round(0.4 * shape[0] * shape[1]), 1500
    ours = np.stack([law.choose(shape, np.random.default_rng(seed)) for seed in range(samples)])
    rng = random.Random(0)
    theirs = np.stack([filled(beit(*shape, count, smallest, rng), count, rng) for _ in range(samples)])
    assert {int(mask.sum()) for mask in ours} == {count}
    assert ours.mean(0) == pytest.approx(theirs.mean(0), abs=0.08)
    assert ours.mean((0, 2)) == pytest.approx(theirs.mean((0, 2)), abs=0.03)
    assert neighbours(ours) == pytest.approx(neighbours(theirs), abs=0.01)
    assert neighbours(ours) > 0.75


def test_some_samples_are_masked_by_a_share_of_their_own() -> None:
    """As in DINOv2: half of the pictures, int(N U(.1, .5)) cells each."""
    law = ImageBlocksConfig(patch_size=16, ratio=(0.1, 0.5), probability=0.5, smallest=4)
    counts = np.array([law.choose((14, 14), np.random.default_rng(seed)).sum() for seed in range(2000)])
    assert (counts == 0).mean() == pytest.approx(0.5, abs=0.03)
    some = counts[counts > 0]
    assert 19 <= some.min() <= 21
    assert 95 <= some.max() <= 98
    assert some.mean() / 196 == pytest.approx(0.3 - 0.5 / 196, abs=0.01)


def data2vec(centres: list[int], side: int, rows: int, columns: int) -> torch.Tensor:
    """The kept squares of fairseq's `compute_block_mask_2d`, of given centres."""
    mask = torch.zeros(1, rows, columns)
    mask.view(1, -1).scatter_(1, torch.tensor([centres]), 1)
    found = mask.nonzero(as_tuple=True)
    inds: tuple[list[torch.Tensor], ...] = ([], [], [])
    for i in range(side):
        for j in range(side):
            inds[0].append(found[0])
            inds[1].append(found[1] + i - side // 2)
            inds[2].append(found[2] + j - side // 2)
    i0, i1, i2 = torch.cat(inds[0]), torch.cat(inds[1]).clamp_(0, rows - 1), torch.cat(inds[2]).clamp_(0, columns - 1)
    mask[(i0, i1, i2)] = 1
    return mask[0].bool()


@pytest.mark.parametrize(("shape", "side"), [((14, 14), 3), ((8, 64), 5), ((6, 9), 2), ((5, 5), 1)])
def test_squares_are_those_of_data2vec(shape: tuple[int, int], side: int) -> None:
    for seed in range(50):
        centres = np.random.default_rng(seed).integers(shape[0] * shape[1], size=1 + seed % 7)
        expected = data2vec(centres.tolist(), side, *shape)
        assert np.array_equal(squares(centres, side, shape), expected.numpy())


@pytest.mark.parametrize(("shape", "side", "number"), [((14, 14), 3, 5), ((8, 64), 5, 5)])
def test_visible_cells_are_mostly_those_of_the_squares(shape: tuple[int, int], side: int, number: int) -> None:
    law, cells = ImageInverseBlocksConfig(patch_size=16, side=side), shape[0] * shape[1]
    assert int(cells * (0.2 + 0.07) / side**2) == number
    visible, kept = [], []
    for seed in range(500):
        visible.append(~law.choose(shape, np.random.default_rng(seed)))
        drawn = squares(np.random.default_rng(seed).integers(cells, size=number), side, shape)
        kept.append(int(drawn.sum()))
        inside = int((visible[-1] & drawn).sum())
        assert inside == min(kept[-1], int(cells * 0.2))  # cells outside of the squares only if these are too few
    assert np.mean(kept) / cells == pytest.approx(0.2, abs=0.03)
    assert neighbours(np.stack(visible)) > 0.8


def test_whole_numbers_are_not_lost_to_rounding() -> None:
    """100 * (1 - 0.8) is 19.999... in floating point."""
    law = ImageInverseBlocksConfig(patch_size=16, side=2)
    assert (~law.choose((10, 10), np.random.default_rng(0))).sum() == 20
