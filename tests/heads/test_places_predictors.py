"""Predictors of tokens at given places: convolutions on grids of each number of axes, and the noise in their holes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmssl.heads.places_predictors import ConvPredictor, ConvPredictorConfig, Normal, TransformerPredictorConfig


def normal(rows: int, seed: int = 0) -> Normal:
    random = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(rows, *shape, generator=random)


@pytest.mark.parametrize(("grid", "width"), [((6,), 8), ((2, 3), 8), ((2, 3), 12), ((2, 1, 3), 12)])
def test_convolutions_are_those_of_the_whole_grid(grid: tuple[int, ...], width: int) -> None:
    """A sequence of layers as in fairseq's decoders, with the residual branches of layers of equal sizes."""
    torch.manual_seed(0)
    made = ConvPredictorConfig(width=width, depth=3, groups=4).build(8, grid).double()
    assert [type(layer) for layer in made.layers] == [(nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(grid) - 1]] * 3
    tokens = torch.randn(2, 2, 8, dtype=torch.float64)
    context, places = torch.tensor([[4, 1], [0, 5]]), torch.tensor([[[0, 2], [3, 5]], [[4, 3], [1, 2]]])
    noise = (0.01 * normal(2)(torch.Size((6, 8)))).double()
    for row in range(2):
        x = noise[row].clone()
        x[context[row]] = tokens[row]
        y = x.T.reshape(1, 8, *grid)
        for number, layer in enumerate(made.layers):
            z = layer(y).flatten(2).transpose(1, 2)
            z = (
                F.gelu(nn.LayerNorm(width, elementwise_affine=False).double()(z))
                .transpose(1, 2)
                .reshape(1, width, *grid)
            )
            y = y + z if number > 0 or width == 8 else z
        expected = made.predict(y.flatten(2)[0].T)
        found = made(tokens, context, places, normal(2))[row]
        torch.testing.assert_close(found, expected[places[row]], rtol=1e-10, atol=1e-12)


def test_noise_of_each_row_fills_its_holes_alone() -> None:
    torch.manual_seed(0)
    made = ConvPredictor(8, (2, 3), 8, 2, 3, 4, deviation=5.0)
    tokens, context = torch.randn(1, 2, 8), torch.tensor([[4, 1]])
    places = torch.arange(6)[None, None]
    found = made(tokens, context, places, normal(1))
    assert torch.equal(found, made(tokens, context, places, normal(1)))
    assert (found - made(tokens, context, places, normal(1, seed=1))).abs().max() > 1e-2
    first, second = made(*(x.expand(2, *x.shape[1:]) for x in (tokens, context, places)), normal(2))
    assert (first - second).abs().max() > 1e-2
    everywhere = torch.randn(1, 6, 8)
    whole = [made(everywhere, places[0], places, normal(1, seed)) for seed in (0, 1)]
    assert torch.equal(*whole)


def test_order_of_the_context_does_not_matter_but_places_do() -> None:
    torch.manual_seed(0)
    tokens, context = torch.randn(2, 3, 8), torch.tensor([[4, 9, 1], [0, 15, 7]])
    places = torch.tensor([[[2, 3]], [[5, 6]]])
    shuffled = torch.tensor([2, 0, 1])
    for config in (
        ConvPredictorConfig(width=8, depth=2, groups=2),
        TransformerPredictorConfig(width=12, depth=1, heads=3),
    ):
        made = config.build(8, (4, 4))
        out = made(tokens, context, places, normal(2))
        assert out.shape == (2, 1, 2, 8)
        torch.testing.assert_close(made(tokens[:, shuffled], context[:, shuffled], places, normal(2)), out)
        assert (made(tokens, context[:, shuffled], places, normal(2)) - out).abs().max() > 1e-3
        assert (made(tokens, context, places.flip(2), normal(2)) - out.flip(2)).abs().max() < 1e-5
