"""Checks of the inputs of losses on two views."""

from __future__ import annotations

from torch import Tensor


def check_two_views(a: Tensor, b: Tensor) -> None:
    """Refuse tensors that are not two views of the same samples.

    Raises:
        ValueError: shapes do not fit.
    """
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(
            f"got a {tuple(a.shape)} and b {tuple(b.shape)}, wanted equal shapes [B, E]: two views of B samples"
        )
