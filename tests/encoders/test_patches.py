"""Patches through a linear layer are patches through a convolution."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmssl.encoders.patches import flat_patches


@pytest.mark.parametrize(
    ("convolution", "shape"),
    [
        (nn.Conv2d(3, 7, (4, 2), (4, 2), bias=False), (2, 3, 8, 12)),
        (nn.Conv3d(2, 5, (2, 3, 4), (2, 3, 4)), (2, 2, 4, 9, 8)),
    ],
    ids=["picture", "clip"],
)
def test_a_linear_layer_of_patches_is_the_convolution(convolution: nn.Conv2d, shape: tuple[int, ...]) -> None:
    """Values and all gradients."""
    convolution = convolution.double()
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    expected = convolution(x).flatten(2).transpose(1, 2)
    made = nn.functional.linear(
        flat_patches(x, convolution.kernel_size), convolution.weight.flatten(1), convolution.bias
    )
    torch.testing.assert_close(made, expected, atol=1e-12, rtol=1e-12)
    towards = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    leaves = [x, *convolution.parameters()]
    ours, theirs = (torch.autograd.grad(out, leaves, towards) for out in (made, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
