"""Resampling of position tables."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.encoders.positions import fit_positions, resize_positions
from tests.pretended.cuda import pretended_cuda


def test_equal_grids_change_nothing() -> None:
    table = torch.randn(13, 4)
    assert resize_positions(table, (3, 4), (3, 4), prefix=1) is table


def test_prefix_stays_and_a_plane_stays_a_plane() -> None:
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 8), torch.linspace(0, 1, 8), indexing="ij")
    table = torch.cat([torch.full((1, 2), 7.0), torch.stack([rows.flatten(), columns.flatten()], dim=1)])
    smaller = resize_positions(table, (8, 8), (4, 2), prefix=1)
    assert smaller.shape == (9, 2)
    assert smaller[0].tolist() == [7, 7]
    grid = smaller[1:].unflatten(0, (4, 2))
    # rows differ in the first number only, columns in the second: nothing was transposed
    assert (grid[1:, :, 0] > grid[:-1, :, 0] + 0.1).all()
    assert (grid[:, 1, 1] > grid[:, 0, 1] + 0.1).all()
    torch.testing.assert_close(grid[:, 0, 0], grid[:, 1, 0])
    torch.testing.assert_close(grid[0, :, 1], grid[3, :, 1])


def test_only_square_tables_of_another_size_are_fitted() -> None:
    state = {"a": torch.randn(10, 4), "b": torch.randn(8, 4), "c": torch.randn(17, 4)}
    before = dict(state)
    for name in ("a", "b", "c", "missing"):
        fit_positions(state, name, (4, 4), prefix=1)
    assert state["a"].shape == (17, 4)  # 3 x 3 cells and one more
    assert state["b"] is before["b"]  # 7 cells are no square: left for the error message
    assert state["c"] is before["c"]
    assert set(state) == set(before)


@pytest.mark.parametrize("new", [(3, 5), (9, 4), (2, 2)])
def test_it_is_bicubic_and_has_deterministic_gradients_on_cuda(new: tuple[int, int]) -> None:
    table = torch.randn(2 + 6 * 4, 3, generator=torch.Generator().manual_seed(0))
    cells = F.interpolate(table[2:].T.reshape(1, 3, 6, 4), new, mode="bicubic", antialias=True)
    expected = torch.cat([table[:2], cells[0].flatten(1).T])
    with pretended_cuda(deterministic=True):
        weight = table.cuda().requires_grad_()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            found = resize_positions(weight, (6, 4), new, prefix=2)
        found.sum().backward()
        torch.testing.assert_close(found.detach().cpu(), expected)
        assert weight.grad is not None
        assert float(weight.grad.sum()) == pytest.approx(3 * len(expected))


def test_one_column_is_resampled_as_one_row() -> None:
    table = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    column = resize_positions(table, (6, 1), (3, 1), prefix=0)
    torch.testing.assert_close(column, resize_positions(table, (1, 6), (1, 3), prefix=0))
    assert not torch.allclose(column[0], column[2])


def test_compiled_grids_of_several_sizes_have_gradients() -> None:
    """As in a run whose pictures grow: torch.compile takes sizes that change for variables."""
    torch.compiler.reset()

    def positions(table: Tensor, x: Tensor) -> Tensor:
        return resize_positions(table, (4, 4), (x.shape[0] // 2, x.shape[1] // 2), prefix=1).square().sum()

    compiled = torch.compile(positions, backend="aot_eager")
    random = torch.Generator().manual_seed(0)
    for shape in ((4, 4), (6, 4), (10, 6), (8, 8), (6, 4)):
        table, x = torch.randn(17, 3, generator=random).requires_grad_(), torch.zeros(shape)
        (expected,), (got,) = (torch.autograd.grad(function(table, x), table) for function in (positions, compiled))
        torch.testing.assert_close(got, expected)
    torch.compiler.reset()
