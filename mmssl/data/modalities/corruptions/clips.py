"""Corruptions of clips in time: fewer frames in a second, and lost frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mmssl.data.corruption import Corruption

if TYPE_CHECKING:
    from torch import Generator, Tensor


def _frame_rate(x: Tensor, strength: float, generator: Generator) -> Tensor:
    """One frame of `strength` is shown, until the next one."""
    import torch

    places = torch.arange(len(x))
    return x[places - places % int(strength)]


def _frame_drop(x: Tensor, strength: float, generator: Generator) -> Tensor:
    """A share `strength` of the frames, never the first, is lost: the one before stays."""
    import torch

    lost = torch.randperm(len(x) - 1, generator=generator)[: round(strength * (len(x) - 1))] + 1
    places = torch.arange(len(x))
    places[lost] = 0
    return x[places.cummax(0).values]


CLIPS: Mapping[str, Corruption] = {
    "frame_rate": Corruption(_frame_rate, (2, 3, 4, 6, 8)),
    "frame_drop": Corruption(_frame_drop, (0.1, 0.25, 0.4, 0.6, 0.8)),
}
"""Corruptions of clips [T, 3, H, W]; strengths: frames of which one is shown, share of lost frames."""
