"""The contrastive losses of a pair of modalities, whole or in tiles: InfoNCE and sigmoid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmssl.losses.candidates import over_present
from mmssl.losses.hard_negatives import HardNegatives
from mmssl.losses.info_nce import info_nce
from mmssl.losses.products import Products
from mmssl.losses.sigmoid import sigmoid_loss
from mmssl.losses.tiled_info_nce import tiled_info_nce
from mmssl.losses.tiled_sigmoid import tiled_sigmoid_loss
from mmssl.objectives.common import log_sum_exp_over_processes

TileSetting = bool | Annotated[int, Field(ge=1)] | Literal["tf32x3"] | None

WHOLE_UP_TO = {"cpu": 2048, "cuda": 8192}
"""Largest global batch with the logits as one matrix (16 and 256 MB), by device, where the config has tiles: null.

On a GPU the whole matrix takes three products instead of four, and fewer passes over the logits (estimated, not measured).
"""


def contrastive_loss(
    a: Tensor,
    b: Tensor,
    all_a: Tensor,
    all_b: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    among: dict[str, Any],
    tiles: TileSetting,
    hard: Mapping[str, HardNegatives] | None = None,
) -> Tensor:
    """Loss of one pair, this process' share: `sigmoid_loss` if it has a bias, else `info_nce`; the same numbers from tiles.

    Args:
        a, b: [B, E] unit-norm embeddings of this process.
        all_a, all_b: [G, E] of all processes, with gradient.
        scale: [] logit scale.
        bias: [] logit bias of a sigmoid loss, or None.
        among: offset, present and ids, as losses take them.
        tiles: whether the loss is computed from tiles, or their size; "tf32x3": from tiles, which a GPU multiplies as
            `inner_products` says; None: for sigmoid losses and large batches.
        hard: "further_b" or "further_a" -> hard negatives of rows a or b; they are always computed from tiles.
    """
    if tiles is None:
        tiles = bias is not None or len(all_b) > whole_up_to(a.device)
    products: Products = "tf32x3" if tiles == "tf32x3" and a.device.type != "cpu" else "float32"
    size = None if tiles is True or isinstance(tiles, str) else tiles
    if bias is not None:
        if tiles is False:
            loss = sigmoid_loss(a, b, scale, bias, all_b=all_b, **among)
        else:
            loss = tiled_sigmoid_loss(a, b, scale, bias, all_b=all_b, size=size, products=products, **among)
        for negatives in (hard or {}).values():
            terms = negatives.sigmoid_terms(scale, bias, size or None)
            loss = loss + over_present(terms.mean(), among["present"])
        return loss
    among = among | {name: negatives.log_sum_exp(scale, size or None) for name, negatives in (hard or {}).items()}
    if tiles is False:
        return info_nce(a, b, scale, all_a=all_a, all_b=all_b, **among)
    join = log_sum_exp_over_processes
    return tiled_info_nce(a, b, scale, all_b=all_b, over_processes=join, size=size, products=products, **among)


def whole_up_to(device: torch.device) -> int:
    """Largest global batch with the logits as one matrix; see `WHOLE_UP_TO`."""
    return WHOLE_UP_TO.get(device.type, WHOLE_UP_TO["cpu"])
