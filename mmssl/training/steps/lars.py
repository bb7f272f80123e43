"""LARS: SGD with momentum whose update of each tensor has a norm in proportion to the norm of the tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from mmssl.core.distributed import local_shard, total_detached


class Lars(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, arXiv:1708.03888), as in the code of BYOL and Barlow Twins.

    For each tensor w with gradient g:

        u = g + weight_decay * w
        if its group is adapted, and |w| > 0 and |u| > 0:
            u = trust * |w| / |u| * u
        v = momentum * v + u
        w = w - lr * v

    |.| is the 2-norm of the whole tensor, also of one that is sharded over processes. As in torch's SGD, the rate is outside of
    the momentum; the paper and SimCLR's code have it inside, which differs only while the rate changes.

    As with torch's fused optimizers, a step with the attribute `found_inf` [] above 0 changes nothing, and no host waits for it.

    Args:
        groups: parameter groups; "adapted" says whether a group's updates are scaled by the norms. Default: they are.
        lr: rate.
        momentum: share of the last update that is kept.
        trust: norm of an update with rate 1, as a share of the tensor's norm.
        weight_decay: see above.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        trust: float = 0.001,
        weight_decay: float = 0.0,
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": weight_decay, "adapted": True}
        super().__init__(groups, settings)
        self._step_supports_amp_scaling = True
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient. Every process must call."""
        each = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        updates = [local_shard(p.grad).add(local_shard(p), alpha=group["weight_decay"]) for p, group in each]
        adapted = [i for i, (_, group) in enumerate(each) if group["adapted"]]
        if adapted:
            sharded = [isinstance(each[i][0], DTensor) for i in adapted]
            weight_norms = _whole_norms([local_shard(each[i][0]) for i in adapted], sharded)
            update_norms = _whole_norms([updates[i] for i in adapted], sharded)
            usual = (weight_norms > 0) & (update_norms > 0)
            scales = torch.where(usual, self.defaults["trust"] * weight_norms / update_norms, 1.0)
            for i, scale in zip(adapted, scales, strict=True):
                updates[i].mul_(scale)
        for (p, group), update in zip(each, updates, strict=True):
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            velocity = local_shard(self.state[p]["momentum_buffer"])
            moved = velocity.mul(group["momentum"]).add_(update)
            if self.found_inf is None:
                velocity.copy_(moved)
            else:
                bad = self.found_inf > 0
                velocity.copy_(torch.where(bad, velocity, moved))
                moved.masked_fill_(bad, 0)
            local_shard(p).add_(moved, alpha=-group["lr"])


def _whole_norms(parts: Sequence[Tensor], sharded: Sequence[bool]) -> Tensor:
    """[n] 2-norms of tensors, of which this process may have shards only."""
    squares = torch.stack([torch.linalg.vector_norm(part).square() for part in parts])
    if any(sharded):
        squares = torch.where(torch.tensor(sharded, device=squares.device), total_detached(squares), squares)
    return squares.sqrt()
