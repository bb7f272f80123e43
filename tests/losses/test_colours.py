"""Colours: the loops of the docstrings, golden values, known colours, bins of the gamut."""

from __future__ import annotations

import math

import pytest
import torch

from mmssl.losses.colours import (
    _TO_XYZ,
    colour_bins,
    rare_colour_weights,
    rgb_to_lab,
    soft_colours,
    soft_cross_entropy,
)
from tests.losses.slow_loop import slow_loop

SOFT = {
    (10, -10): 0.513698140569133, (10, 0): 0.2308194533708714, (20, -10): 0.15472290660948365, (20, 0): 0.06952148335204492,
    (0, -10): 0.031238016098467,
}  # fmt: skip
"""Of ssl-golden-values-2.json, colour_soft_target_of_12_-7, of a grid of -30 to 30."""
WEIGHTS = [1.5981735159817352, 1.2785388127853878, 1.06544901065449, 0.91324200913242, 0.7990867579908676]
"""Of ssl-golden-values-2.json, colour_rebalance_prior_1_to_5."""
CORNERS = {
    (1, 0, 0): (53.24, 80.09, 67.20), (0, 1, 0): (87.73, -86.18, 83.18), (0, 0, 1): (32.30, 79.19, -107.86), (1, 1, 1): (100, 0, 0),
    (0, 0, 0): (0, 0, 0),
}  # fmt: skip
"""sRGB -> CIELAB, D65, as published to two digits."""


def test_colours_are_those_of_the_loop_and_of_tables() -> None:
    for rgb, wanted in CORNERS.items():
        found = rgb_to_lab(torch.tensor([rgb], dtype=torch.float64))[0]
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=0.02)
    x = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
    found, loop = rgb_to_lab(x), slow_loop(rgb_to_lab, MATRIX=_TO_XYZ)
    assert (x < 0.04045).any()
    expected = [loop(colour.tolist()) for colour in x.movedim(1, -1).reshape(-1, 3)]
    torch.testing.assert_close(found.movedim(1, -1).reshape(-1, 3), torch.tensor(expected, dtype=torch.float64))
    grey = torch.linspace(0, 1, 256, dtype=torch.float64)[:, None].expand(-1, 3)
    assert rgb_to_lab(grey)[:, 1:].abs().max() < 1e-10
    with pytest.raises(ValueError, match="of red, green and blue"):
        rgb_to_lab(torch.zeros(2, 1, 4, 4))


def test_bins_hold_the_colours_of_eight_bits() -> None:
    bins = colour_bins()
    assert len(bins) == 261
    assert bins.unique(dim=0).equal(bins)
    some = torch.randint(0, 256, (20_000, 3), generator=torch.Generator().manual_seed(0)) / 255
    known = {tuple(row) for row in bins.long().tolist()}
    assert {tuple(row) for row in (10 * (rgb_to_lab(some)[:, 1:] / 10).round()).long().tolist()} <= known
    assert (0, 0) in known


def test_soft_labels_are_golden_and_those_of_the_loop() -> None:
    grid = torch.cartesian_prod(torch.arange(-30.0, 31, 10), torch.arange(-30.0, 31, 10)).double()
    places, weights = soft_colours(torch.tensor([[12.0, -7.0]], dtype=torch.float64), grid, 5, 5.0)
    found = {tuple(grid[place].int().tolist()): float(w) for place, w in zip(places[0], weights[0], strict=True)}
    assert found == pytest.approx(SOFT, rel=1e-12)
    ab = torch.tensor([[31.0, -47.5], [3.0, 1.7], [90.0, 12.0]], dtype=torch.float64)
    places, weights = soft_colours(ab, colour_bins(), 7, 9.0)
    for colour, at, w in zip(ab, places, weights, strict=True):
        nearest, expected = slow_loop(soft_colours)(colour, colour_bins().double(), 7, 9.0)
        assert at.tolist() == nearest
        assert w.tolist() == pytest.approx(expected)


def test_weights_of_rare_colours_are_golden() -> None:
    shares = torch.arange(1, 6, dtype=torch.float64) / 15
    weights = rare_colour_weights(shares, 0.5)
    assert weights.tolist() == pytest.approx(WEIGHTS, rel=1e-12)
    assert float((shares * weights).sum()) == pytest.approx(1)
    assert rare_colour_weights(shares, 1.0).tolist() == pytest.approx([1.0] * 5)


def test_equal_scores_cost_the_logarithm_of_the_bins_and_no_scores_less_than_the_entropy() -> None:
    places, weights = soft_colours(torch.tensor([[31.0, -47.5]], dtype=torch.float64), colour_bins(), 5, 5.0)
    equal = soft_cross_entropy(torch.zeros(1, 261, dtype=torch.float64), places, weights)
    assert float(equal) == pytest.approx(math.log(261))
    dense = torch.zeros(1, 261, dtype=torch.float64).scatter(1, places, weights)
    entropy = float(torch.special.entr(dense).sum())
    assert float(soft_cross_entropy((dense + 1e-30).log(), places, weights)) == pytest.approx(entropy)
    scores = torch.randn(1, 261, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(scores, dense)
    torch.testing.assert_close(soft_cross_entropy(scores, places, weights)[0], expected)
