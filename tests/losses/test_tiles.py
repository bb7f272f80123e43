"""Tiles cover the matrix once, know their positives, and rank as the whole does."""

from __future__ import annotations

import pytest
import torch

from mmssl.losses import tiles
from mmssl.losses.candidates import first_hits
from tests.losses.inputs import unit_rows


@pytest.mark.parametrize("size", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("offset", [0, 3, 5])
def test_tiles_make_up_the_matrix(size: int, offset: int) -> None:
    a, b = unit_rows(5, 4)[0], unit_rows(10, 4, seed=1)[0]
    whole = 3.0 * a @ b.T
    made, positive = torch.full_like(whole, torch.nan), torch.full((5,), torch.nan, dtype=torch.float64)
    ids = torch.tensor([0, 1, 0, 2, 1, 0, 1, 0, 2, 1])
    present = torch.tensor([True, False, True, True, True, True, False, True, True, True])
    hidden = torch.zeros(5, 10, dtype=torch.bool)
    same = torch.zeros(5, 10, dtype=torch.bool)
    for tile in tiles.TiledScores(a, b, torch.tensor(3.0, dtype=torch.float64), offset, size):
        assert made[tile.rows, tile.columns].isnan().all()
        made[tile.rows, tile.columns] = tile.logits
        positive[tile.diagonal_rows] = tile.diagonal
        for sums, weights in ((tile.sums(None), None), (tile.sums(present.double()), present)):
            kept = tile.logits if weights is None else tile.logits * weights[tile.columns]
            torch.testing.assert_close(sums[0], kept.sum(1))
            kept = tile.logits if weights is None else tile.logits * weights[tile.positives, None]
            torch.testing.assert_close(sums[1], kept.sum(0))
        assert tile.same_ids(None) is None
        left_out = tile.same_ids(ids[:, None])
        assert left_out is not None
        same[tile.rows, tile.columns] = left_out
        tile.hide(present)
        hidden[tile.rows, tile.columns] = tile.logits == -torch.inf
    torch.testing.assert_close(made, whole)
    at = torch.arange(5)
    torch.testing.assert_close(positive, whole[at, at + offset])
    own = slice(offset, offset + 5)
    assert torch.equal(same, ids[own, None] == ids)
    assert torch.equal(hidden, ~(present[own, None] & present))


@pytest.mark.parametrize("edge", [1, 5, 100])
def test_nearest_rate_is_that_of_the_matrix(edge: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "tile_size", lambda device: edge)
    a, b = unit_rows(17, 3)
    b[4] = b[9]  # a tie
    target = torch.arange(17)
    expected = first_hits(a @ b.T, target).mean()
    assert 0 < expected < 0.5
    assert tiles.nearest_rate(a, b, target).item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_tile_gives_its_memory_back_before_the_next_one() -> None:
    a = torch.ones(6, 4)
    held = [tile.logits for tile in tiles.TiledScores(a, a, torch.tensor(1.0), 0, 2)]
    assert len(held) == 9
    assert not any(logits.untyped_storage().nbytes() for logits in held)
