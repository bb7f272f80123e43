"""Cross entropy between views of assignments to prototypes (DINO, SwAV), and measures of assignments."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core import distributed
from mmssl.losses.masked_tokens import token_means

LEAST_USED = 1.5
"""Prototypes in use below which all samples have collapsed to one."""


def view_cross_entropy(targets: Tensor, scores: Tensor, temperature: float) -> Tensor:
    """Cross entropy of soft assignments of some views and predictions of all other views, mean over pairs and samples.

    The loss of DINO (Caron et al. 2021, arXiv:2104.14294, equation 3) and of SwAV (Caron et al. 2020, arXiv:2006.09882, equation
    1), as a mean. Stop-gradient on the targets. Uniform predictions cost ln K. Slow loop::

        def loop(targets, scores, temperature):
            T, V, N, total, pairs = len(targets), len(scores), len(scores[0]), 0.0, 0
            for i in range(T):
                for j in range(V):
                    if i == j:
                        continue
                    pairs += 1
                    for n in range(N):
                        logits = [float(s) / temperature for s in scores[j][n]]
                        log_sum = log(sum(exp(x) for x in logits))
                        total += sum(float(p) * (log_sum - x) for p, x in zip(targets[i][n], logits))
            return total / (pairs * N)

    Args:
        targets: [T, n, K] probabilities of the first T views of this process' samples; detached here.
        scores: [V, n, K] scores of all V views, the first T of the same views as the targets; float32 or float64.
        temperature: divisor of the scores.

    Returns:
        [] this process' share of the mean over pairs of views and over the samples of all processes; 0 if there are none.

    Raises:
        ValueError: shapes do not match, or there is no pair of different views.
    """
    views, pairs = len(scores), len(targets) * (len(scores) - 1)
    fits = targets.ndim == scores.ndim == 3 and targets.shape[1:] == scores.shape[1:]
    if not fits or not 0 < len(targets) <= views or pairs == 0:
        raise ValueError(
            f"got targets {list(targets.shape)} and scores {list(scores.shape)}, wanted [T, n, K] and [V, n, K] with "
            "1 <= T <= V and at least 2 views"
        )
    targets = targets.detach()
    everything = targets.sum(0)
    costs = []
    for number, predicted in enumerate(scores):
        others = [targets[i] for i in range(len(targets)) if i != number]
        if others:  # the only target view predicts no other
            target = everything if len(others) == len(targets) else torch.stack(others).sum(0)
            costs.append(F.cross_entropy(predicted / temperature, target, reduction="none"))
    return distributed.mean(torch.stack(costs).sum(0) / pairs)


def masked_assignment_cross_entropy(targets: Tensor, scores: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Cross entropy of soft assignments of masked patches, mean over those of each picture and over all pictures.

    The patch loss of iBOT (Zhou et al. 2022, arXiv:2111.07832, equation 3) as DINOv2 weighs it: a picture without masked patches
    counts, and costs 0. Stop-gradient on the targets. Uniform predictions cost ln K times the share of masked pictures. Slow
    loop::

        def loop(targets, scores, mask, temperature):
            pictures, masked = [], 0
            for row in mask:
                costs = []
                for m in row:
                    if m:
                        logits = [float(s) / temperature for s in scores[masked]]
                        log_sum = log(sum(exp(x) for x in logits))
                        costs.append(sum(float(p) * (log_sum - x) for p, x in zip(targets[masked], logits)))
                        masked += 1
                pictures.append(mean(costs) if costs else 0.0)
            return mean(pictures)

    Args:
        targets: [M, K] probabilities of the M masked patches of this process, picture by picture; detached here.
        scores: [M, K] scores of the same; float32 or float64.
        mask: [n, T] bool, True for the M masked patches.
        temperature: divisor of the scores.

    Returns:
        [] this process' share of the mean over the pictures of all processes; 0 if there are none.
    """
    costs = F.cross_entropy(scores / temperature, targets.detach(), reduction="none")
    return distributed.mean(token_means(costs, mask))


@torch.no_grad()
def mean_entropy(probabilities: Tensor) -> Tensor:
    """Mean entropy of the rows of [..., K] over all processes, from 0 (one-hot) to ln K (uniform). A collective.

    Returns:
        [] the same on every process; 0 if there are no rows.
    """
    total, rows = distributed.sum_and_count(torch.special.entr(probabilities).sum(-1).flatten())
    mean: Tensor = total / rows.clamp(min=1)
    return mean


@torch.no_grad()
def perplexity(probabilities: Tensor) -> Tensor:
    """Perplexity of the mean of the rows of [..., K] over all processes: how many prototypes are in use, 1 to K. A collective.

    Returns:
        [] the same on every process; 1 if there are no rows.
    """
    total, rows = distributed.sum_and_count(probabilities.flatten(0, -2))
    usage: Tensor = torch.special.entr(total / rows.clamp(min=1)).sum().exp()
    return usage


def assignment_metrics(loss: Tensor, targets: Tensor, usage: Tensor) -> dict[str, Tensor]:
    """Metrics of a loss between assignments to prototypes. A collective: every process must call it.

    target_entropy: mean entropy of the targets, 0 to ln K;  kl: the loss minus it, the mean divergence of predictions from targets;
    prototypes_used: perplexity of the mean assignment, 1 to K;  prototypes_used_least: below it all samples have one prototype;
    chance_loss: ln K, of a uniform guess.

    Args:
        loss: [] this process' share, detached.
        targets: [..., K] probabilities.
        usage: [..., K] probabilities whose mean shows which prototypes are in use.
    """
    entropy = mean_entropy(targets)
    return {
        "target_entropy": entropy,
        "kl": distributed.total_detached(loss) / distributed.world_size() - entropy,
        "prototypes_used": perplexity(usage),
        "prototypes_used_least": torch.full_like(loss, LEAST_USED),
        "chance_loss": torch.full_like(loss, math.log(targets.shape[-1])),
    }
