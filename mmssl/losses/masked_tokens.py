"""Masked prediction of classes of tokens (MLM, BEiT, HuBERT): cross entropy of masked tokens, and its mean over the batch."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core import distributed

Mean = Literal["samples", "tokens"]


def masked_cross_entropy(scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Cross entropy of the masked tokens, mean over those of each sample, [B].

    Slow loop::

        def loop(scores, targets, mask):
            samples, masked = [], 0
            for b in range(len(mask)):
                costs = []
                for t in range(len(mask[b])):
                    if mask[b][t]:
                        row = [float(s) for s in scores[masked]]
                        costs.append(log(sum(exp(s) for s in row)) - row[int(targets[b][t])])
                        masked += 1
                samples.append(mean(costs) if costs else 0.0)
            return samples

    Args:
        scores: [M, K] of the M masked tokens alone, sample by sample; float32 or float64.
        targets: [B, T] int64, classes of all tokens.
        mask: [B, T] bool, True for the M masked tokens; a sample without any costs 0.
    """
    return token_means(F.cross_entropy(scores, targets[mask], reduction="none"), mask)


def token_means(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the masked tokens of each sample, [B], of one number for each, [M], sample by sample; 0 without any."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values).sum(1) / mask.sum(1).clamp(min=1)


def mean_of_errors(errors: Tensor, counts: Tensor, mean: Mean) -> Tensor:
    """This process' share of the mean of errors over samples, or over all masked tokens of the batch (ratio of sums).

    Args:
        errors: [n], mean over the masked tokens of each sample.
        counts: [n], number of its masked tokens.
        mean: "samples": mean over samples; "tokens": each sample counts as often as it has masked tokens.
    """
    if mean == "samples":
        return distributed.mean(errors)
    everyone = distributed.total_detached(counts.sum()).clamp(min=1).to(errors.dtype)
    return (errors * counts).sum() * (distributed.world_size() / everyone)


@torch.no_grad()
def class_shares(classes: Tensor, count: int) -> Tensor:
    """Share of each class among [n, T] int64 of all processes, [K]; negative ones are left out. A collective."""
    known = classes[classes >= 0]
    totals = distributed.total_detached(torch.bincount(known, minlength=count)).double()
    return totals / totals.sum().clamp(min=1)
