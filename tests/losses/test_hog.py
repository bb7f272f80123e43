"""Histograms of oriented gradients: the loop of the docstring, golden and analytic values, patches in reading order."""

from __future__ import annotations

import math

import pytest
import torch

from mmssl.losses.hog import histograms_of_gradients
from tests.losses.slow_loop import slow_loop

LOOP = {name: getattr(math, name) for name in ("floor", "atan2", "pi", "hypot")}
GOLDEN = [
    [0.076516180373, 0.0, 0.972098747936, 0.176475531743, 0.134259282965, 0.0, 0.000360606536, 0.0, 0.0],
    [0.161538352864, 0.283933617337, 0.936302301026, 0.0, 0.128938212306, 0.0, 0.0, 0.0, 0.0],
    [0.081708270904, 0.0, 0.157596066654, 0.970139544673, 0.165277046508, 0.0, 0.0, 0.0, 0.0],
    [0.123534053378, 0.0, 0.980275904956, 0.064842844585, 0.139977990225, 0.0, 0.0, 0.0, 0.000235747373],
]
"""Of ssl-golden-values-2.json, hog_2x2_cells_9_bins; equal to MaskFeat's own code up to float32."""


def plane() -> torch.Tensor:
    r, c = torch.meshgrid(*[torch.arange(16, dtype=torch.float64)] * 2, indexing="ij")
    return torch.sin(0.6 * r + 0.9 * c + 0.05 * r * c)


def test_golden_values_and_the_slow_loop() -> None:
    found = histograms_of_gradients(plane()[None, None], (16, 16))
    assert found.shape == (1, 1, 36)
    expected = torch.tensor(GOLDEN, dtype=torch.float64)
    torch.testing.assert_close(found[0, 0].unflatten(0, (4, 9)), expected, rtol=0, atol=1e-11)
    loop = torch.tensor(slow_loop(histograms_of_gradients, **LOOP)(plane(), 4, 6), dtype=torch.float64)
    small = histograms_of_gradients(plane()[None, None], (4, 4), cell=4, bins=6)
    torch.testing.assert_close(small[0].unflatten(0, (4, 4)), loop)


def test_channels_and_patches_stand_apart_and_zeros_cost_a_ninth() -> None:
    x = torch.randn(2, 3, 32, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = histograms_of_gradients(x, (16, 16))
    assert whole.shape == (2, 2, 108)
    assert whole.square().mean().item() == pytest.approx(1 / 9)
    cells = whole.unflatten(2, (2, 2, 3, 9))
    alone = histograms_of_gradients(x[:, 1:2], (16, 16)).unflatten(2, (2, 2, 1, 9))
    torch.testing.assert_close(cells[..., 1:2, :], alone)


def test_flat_pictures_have_no_gradients_and_wrong_cells_are_refused() -> None:
    assert not histograms_of_gradients(torch.ones(1, 3, 16, 16), (16, 16)).any()
    with pytest.raises(ValueError, match="multiples of cell 8"):
        histograms_of_gradients(torch.ones(1, 3, 12, 12), (12, 12))
