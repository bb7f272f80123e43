"""Colour jitter, greyscale, blur and solarization of a batch of pictures on its device, each with its own drawn parameters.

Each picture is rounded to uint8 after each operation, as in the loader, so that both make the same view up to one level of 255.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DrawnColours = Sequence[Mapping[str, Any] | None]
Change = Callable[["Tensor", "Tensor"], "Tensor"]


def augment_batch(x: Tensor, parameters: DrawnColours, blur_kernel: float, threshold: int) -> Tensor:
    """What follows crop and flip in the view kind `simclr`, uint8 [B, 3, H, W] -> uint8 [B, 3, H, W].

    Args:
        x: cropped and flipped.
        parameters: of each picture, as `SimClrView.draw` gives them; None: it is absent, and stays as it is.
        blur_kernel: width of the blur's kernel as a share of the picture's width.
        threshold: smallest value that solarization inverts.
    """
    x = x.clone()
    given = [(row, drawn) for row, drawn in enumerate(parameters) if drawn is not None]
    for place in range(len(CHANGES)):
        turns = [(row, *drawn["jitter"][place]) for row, drawn in given if place < len(drawn["jitter"])]
        for name, change in CHANGES.items():
            _change_some(x, {row: [amount] for row, kind, amount in turns if kind == name}, change)
    _change_some(x, {row: [] for row, drawn in given if drawn["grayscale"]}, lambda some, _: _byte(grey(some)))
    radius = max(1, int(x.shape[-1] * blur_kernel / 2))
    sigmas = {row: gaussian_weights(drawn["sigma"], radius) for row, drawn in given if drawn["sigma"]}
    _change_some(x, sigmas, lambda some, weights: _byte(blur(some, weights).round()))
    inverted: dict[int, list[float]] = {row: [] for row, drawn in given if drawn["solarize"]}
    _change_some(x, inverted, lambda some, _: some.where(some < threshold, 255 - some))
    return x


def _change_some(x: Tensor, amounts: Mapping[int, Sequence[float]], change: Change) -> None:
    """Replace some pictures, row -> numbers, by `change` of them [n, 3, H, W] and of their numbers [n, k], in place."""
    import torch

    if amounts:
        rows = host_to_device(torch.tensor([*amounts]), x.device)
        numbers = host_to_device(torch.tensor([*amounts.values()], dtype=torch.float32), x.device)
        x.index_copy_(0, rows, change(x[rows], numbers).expand(len(amounts), *x.shape[1:]).contiguous())


def host_to_device(values: Tensor, device: torch.device) -> Tensor:
    """Host values on the device; the host does not wait."""
    return values if device.type == "cpu" else values.pin_memory().to(device, non_blocking=True)


def grey(x: Tensor) -> Tensor:
    """Luminance, [B, 3, H, W] -> float [B, 1, H, W], with torchvision's weights."""
    red, green, blue = x.unbind(1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)[:, None]


def turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of pictures [B, 3, H, W] in [0, 1] by `turns` [B] of the colour circle; saturation and value (HSV) stay."""
    import torch

    value, _ = x.max(1)
    chroma = value - x.min(1).values
    safe = chroma.clamp(min=1e-8)
    red, green, blue = x.unbind(1)
    hue = torch.where(
        value == red,
        ((green - blue) / safe) % 6,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    hue = (hue / 6 + turns.view(-1, 1, 1)) % 1
    # The channel n of HSV: value - chroma * max(0, min(k, 4 - k, 1)) with k = (n + 6 hue) mod 6, n = 5, 3, 1.
    channels = []
    for n in (5, 3, 1):
        k = (n + 6 * hue) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


def gaussian_weights(sigma: float, radius: int) -> list[float]:
    """Weights of a Gaussian at -radius ... radius; their sum is 1."""
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-radius, radius + 1)]
    return [weight / sum(weights) for weight in weights]


def blur(x: Tensor, weights: Tensor) -> Tensor:
    """Separable blur [n, C, H, W] -> float, with reflected borders; `weights` [n, k] of each picture, k odd."""
    from torch.nn.functional import pad

    height, width = x.shape[-2:]
    radius = weights.shape[1] // 2
    y = pad(x.float(), (radius, radius, radius, radius), mode="reflect")
    each = weights.T[:, :, None, None, None]
    rows = y[..., :width] * each[0]
    for i in range(1, len(each)):
        rows = rows + y[..., i : i + width] * each[i]
    out = rows[:, :, :height] * each[0]
    for i in range(1, len(each)):
        out = out + rows[:, :, i : i + height] * each[i]
    return out


def _byte(x: Tensor) -> Tensor:
    return x.clamp(0, 255).byte()


def _blend(x: Tensor, other: Tensor, share: Tensor) -> Tensor:
    return _byte(x * share + other * (1 - share))


def _wide(numbers: Tensor) -> Tensor:
    return numbers[:, :, None, None]


CHANGES: Mapping[str, Change] = {
    "brightness": lambda x, by: _byte(x * _wide(by)),
    "contrast": lambda x, by: _blend(x, grey(x).floor().mean((1, 2, 3), keepdim=True), _wide(by)),
    "saturation": lambda x, by: _blend(x, grey(x).floor(), _wide(by)),
    "hue": lambda x, by: _byte(turn_hue(x.float() / 255, by[:, 0]) * (256 - 1e-3)),
}
"""Names of `draw_jitter`'s changes -> pictures uint8 [n, 3, H, W] and amounts [n, 1] -> uint8."""
