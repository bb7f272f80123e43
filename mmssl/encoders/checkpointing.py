"""Checkpointing of activations: blocks are computed again in backward, all of them or all but their products."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from mmssl.core.compat import attention_operations

Checkpointing = bool | Literal["selective"]

_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


def run_block(block: nn.Module, checkpointing: Checkpointing, *arguments: Any) -> Any:
    """Run a block, whose activations are kept for backward or computed again there; gradients are the same.

    Args:
        block: of a transformer.
        checkpointing: False: all activations are kept; True: none but the block's input; "selective": the input, and the results
            of matrix products and attention, so that the rest is computed again, which is elementwise.
        arguments: of the block.
    """
    if not checkpointing or not torch.is_grad_enabled():
        return block(*arguments)
    more: dict[str, Any] = {}
    if checkpointing == "selective":
        more["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(block, *arguments, use_reentrant=False, **more)


def _policy(context: object, operation: object, *arguments: Any, **options: Any) -> CheckpointPolicy:
    """Keep attention, and products that do not narrow: without dropout, no step of backward reads that of an mlp's second layer."""
    if operation in _PRODUCTS:
        entries, results = arguments[-1].shape
        keep = results >= entries
    else:
        keep = operation in attention_operations()
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
