"""Colorization: the colours of pictures in CIELAB, their bins, soft labels, and weights of rare colours."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

STEP = 10
"""Side of a bin of colours in a and b."""
_LEVELS = 86
"""Each third of 256: with them the bins are those of all colours of 8 bits."""
_TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
"""Linear sRGB -> CIE XYZ (IEC 61966-2-1); the sums of its rows are the white point D65."""


def rgb_to_lab(x: Tensor) -> Tensor:
    """Colours of sRGB, [B, 3, ...] between 0 and 1 -> CIELAB of the white point D65 [B, 3, ...]: L of 0 to 100, a, b.

    Greys have a = b = 0. In the type of `x`, also under autocast. Slow loop for one colour::

        def loop(rgb):
            linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
            x, y, z = [sum(m * c for m, c in zip(row, linear)) / sum(row) for row in MATRIX]

            def f(t):
                return t ** (1 / 3) if t > (6 / 29) ** 3 else t * (29 / 6) ** 2 / 3 + 4 / 29

            return [116 * f(y) - 16, 500 * (f(x) - f(y)), 200 * (f(y) - f(z))]

    Raises:
        ValueError: there are not three channels.
    """
    if x.ndim < 2 or x.shape[1] != 3:
        raise ValueError(f"got pictures {list(x.shape)}, wanted [B, 3, ...] of red, green and blue")
    linear = torch.where(x <= 0.04045, x / 12.92, ((x.clamp(min=0) + 0.055) / 1.055) ** 2.4)
    matrix = x.new_tensor(_TO_XYZ)
    with torch.autocast(x.device.type, enabled=False):
        xyz = torch.einsum("mc,bc...->bm...", matrix / matrix.sum(1, keepdim=True), linear)
    f = torch.where(xyz > (6 / 29) ** 3, xyz.clamp(min=1e-6) ** (1 / 3), xyz * ((29 / 6) ** 2 / 3) + 4 / 29)
    return torch.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


@cache
def colour_bins() -> Tensor:
    """The Q = 261 bins of a and b, of side 10, that hold colours of sRGB: their centres, [Q, 2] float32, in ascending order.

    Zhang et al. 2016 (arXiv:1603.08511) have 313, of a file; these are the bins that colours of 8 bits are rounded to. The faces of
    the cube of colours suffice: from a colour within it, a and b stay the same along the way of L to a face.
    """
    levels = torch.linspace(0, 1, _LEVELS, dtype=torch.float64)
    face = torch.cartesian_prod(levels, levels)
    ends = [torch.full((len(face), 1), end, dtype=torch.float64) for end in (0.0, 1.0)]
    faces = [torch.cat([face[:, :axis], end, face[:, axis:]], 1) for axis in range(3) for end in ends]
    ab = rgb_to_lab(torch.cat(faces))[:, 1:]
    bins: Tensor = torch.round(ab / STEP).unique(dim=0).float()
    return STEP * bins + 0.0  # no -0


def soft_colours(ab: Tensor, bins: Tensor, neighbours: int, deviation: float) -> tuple[Tensor, Tensor]:
    """Soft labels of colours: the bins next to each, weighted by a normal density of their distance.

    Zhang et al. 2016 (arXiv:1603.08511), section 2.2: 5 neighbours and deviation 5; their code has 10. Slow loop for one colour::

        def loop(ab, bins, neighbours, deviation):
            def squared(bin):
                return sum((float(x) - float(y)) ** 2 for x, y in zip(ab, bin))

            nearest = sorted(range(len(bins)), key=lambda q: squared(bins[q]))[:neighbours]
            weights = [exp(-squared(bins[q]) / (2 * deviation**2)) for q in nearest]
            return nearest, [w / sum(weights) for w in weights]

    Args:
        ab: [N, 2] float32 or float64.
        bins: [Q, 2] centres.
        neighbours: n, number of bins of a label.
        deviation: of the density, in units of a and b.

    Returns:
        Bins [N, n] int64, the nearest first, and their weights [N, n], which sum to 1.
    """
    squared = (ab[:, None] - bins.to(ab)).square().sum(-1)
    nearest = squared.topk(neighbours, largest=False)
    return nearest.indices, torch.softmax(nearest.values / (-2 * deviation**2), -1)


def rare_colour_weights(shares: Tensor, uniform: float) -> Tensor:
    """Weights [Q] of colours by their shares [Q]: 1 / ((1 - uniform) share + uniform / Q), divided by their mean over these shares.

    Zhang et al. 2016 (arXiv:1603.08511), equation 4; there `uniform` is 0.5. With 1 all weights are 1.
    """
    weights = 1 / ((1 - uniform) * shares + uniform / len(shares))
    return weights / (shares * weights).sum()


def soft_cross_entropy(scores: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """Cross entropy [N] of scores [N, Q] with labels of n classes: `places` [N, n] and their weights [N, n]. Equal scores: ln Q."""
    return -(F.log_softmax(scores, -1).gather(1, places) * weights).sum(1)
