"""Patches of the prepared view of an encoder: what masked objectives predict, or make their targets of."""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.core.encoder import Encoder
from mmssl.losses.mae import patch_shape, patchify
from mmssl.objectives.common import at_least_float32


@torch.no_grad()
def prepared_input(encoder: Encoder, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The input of the first layer [B, C, *spatial] for a raw view, at least float32, and the extent of a token in it.

    Raises:
        ValueError: the token grid does not tile it.
    """
    prepared = at_least_float32(encoder.prepare(x))
    assert encoder.grid is not None, "checked at build"
    return prepared, patch_shape(prepared.shape, encoder.grid)


def prepared_patches(encoder: Encoder, x: Tensor, values: int) -> Tensor:
    """Patches [B, T, P] of the prepared view of raw views [B, ...].

    Args:
        encoder: prepares the view; it has a token grid.
        x: raw view.
        values: P that the recipe says.

    Raises:
        ValueError: patches have another number of values.
    """
    prepared, patch = prepared_input(encoder, x)
    patches = patchify(prepared, patch)
    check_token_values("patch_values", values, patches, prepared, encoder)
    return patches


def check_token_values(key: str, values: int, found: Tensor, prepared: Tensor, encoder: Encoder) -> None:
    """Refuse another number of values of a token [B, T, P] than the recipe says at `key`.

    Raises:
        ValueError: says what was wanted.
    """
    if found.shape[2] != values:
        raise ValueError(
            f"{key}: got {values}, wanted {found.shape[2]}, the numbers of a token of the prepared view "
            f"{list(prepared.shape)} on the token grid {encoder.grid}"
        )
