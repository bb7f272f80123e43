"""Latent prediction (data2vec): normalised layers of a teacher as targets, and the error of the masked tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core import distributed

TargetNorm = Literal["layer", "instance"]
OverFeatures = Literal["mean", "sum", "sqrt"]
EPS = 1e-5
LEAST_STD = 0.1
"""Spread of the targets below which they have collapsed; fairseq stops such a run."""


@torch.no_grad()
def latent_targets(
    layers: Sequence[Tensor], real: Tensor | None = None, *, norm: TargetNorm, norm_mean: bool
) -> Tensor:
    """Average of normalised layers, the target of data2vec, [K x [B, T, D]] -> [B, T, D], float32 or float64, without gradient.

    Baevski et al. 2022, "data2vec" (arXiv:2202.03555), section 3.3. No norm has a scale or shift. Slow loop::

        def loop(layers, real, norm, norm_mean):
            def normed(x):
                return (x - x.mean()) / (x.var(correction=0) + 1e-5) ** 0.5

            K, (B, T, D) = len(layers), layers[0].shape
            y = 0 * layers[0]
            for b in range(B):
                for x in layers:
                    if norm == "layer":
                        for t in range(T):
                            y[b, t] += normed(x[b, t]) / K
                    else:
                        for d in range(D):
                            y[b, real[b], d] += normed(x[b, real[b], d]) / K
                for t in range(T):
                    if norm_mean:
                        y[b, t] = normed(y[b, t])
            return y

    Args:
        layers: outputs of the last K blocks, [B, T, D] each.
        real: [B, T] bool, False at padding, which instance norm leaves out and where its result is 0; None: no padding.
        norm: "layer": each token over its D features; "instance": each feature over the real tokens of a sample.
        norm_mean: whether each token of the average is normalised again over its features.
    """
    total = sum(_normalised(x if x.dtype == torch.float64 else x.float(), norm, real) for x in layers)
    mean = torch.as_tensor(total) / len(layers)
    return F.layer_norm(mean, mean.shape[-1:], eps=EPS) if norm_mean else mean


def _normalised(x: Tensor, norm: TargetNorm, real: Tensor | None) -> Tensor:
    if norm == "layer":
        return F.layer_norm(x, x.shape[-1:], eps=EPS)
    weight = x.new_ones(*x.shape[:2], 1) if real is None else real[..., None].to(x.dtype)
    count = weight.sum(1, keepdim=True).clamp(min=1)
    centred = (x - (x * weight).sum(1, keepdim=True) / count) * weight
    return centred * torch.rsqrt(centred.square().sum(1, keepdim=True) / count + EPS)


def masked_latent_error(
    prediction: Tensor, target: Tensor, mask: Tensor, beta: float | None, over_features: OverFeatures
) -> Tensor:
    """Error of predicted latents, mean over the masked tokens of each sample, [B]: smooth L1 or squared error.

    data2vec (arXiv:2202.03555), equation 4. Images there: beta 2, mean over features; sounds: squared, sum divided by sqrt(D);
    texts: beta 4, sum. Slow loop::

        def loop(prediction, target, mask, beta, over_features):
            def error(d):
                if beta is None:
                    return d * d
                return d * d / (2 * beta) if abs(d) < beta else abs(d) - beta / 2

            B, T, D = prediction.shape
            divisor = {"mean": D, "sum": 1, "sqrt": D**0.5}[over_features]
            samples = []
            for p, y, m in zip(prediction, target, mask):
                tokens = [sum(error(float(d)) for d in p[t] - y[t]) / divisor for t in range(T) if m[t]]
                samples.append(mean(tokens) if tokens else 0.0)
            return samples

    Args:
        prediction: [B, T, D] float32 or float64.
        target: [B, T, D].
        mask: [B, T] bool, True where the token was hidden; a sample without any has error 0.
        beta: difference at which the error turns from squared to absolute; None: squared everywhere, not halved.
        over_features: the features of a token are averaged, summed, or summed and divided by sqrt(D).

    Raises:
        ValueError: the shapes do not match.
    """
    if prediction.shape != target.shape or mask.shape != target.shape[:2]:
        raise ValueError(
            f"got prediction {tuple(prediction.shape)}, target {tuple(target.shape)} and mask {tuple(mask.shape)}, "
            "wanted [B, T, D], [B, T, D] and [B, T]"
        )
    if beta is None:
        errors = F.mse_loss(prediction, target, reduction="none")
    else:
        errors = F.smooth_l1_loss(prediction, target, reduction="none", beta=beta)
    size = target.shape[-1]
    tokens = errors.sum(-1) / {"mean": size, "sum": 1, "sqrt": math.sqrt(size)}[over_features]
    return (tokens * mask).sum(1) / mask.sum(1).clamp(min=1)


def place_error(prediction: Tensor, target: Tensor, beta: float | None) -> Tensor:
    """Error of latents predicted at given places, mean over places and features of each sample, [B]: smooth L1, or 2 - 2 cosines.

    I-JEPA (arXiv:2301.08243): beta 1; V-JEPA (arXiv:2404.08471): beta 0, the absolute error; M2D (arXiv:2210.14648, equation 2):
    2 - 2 cosines of a token. Slow loop::

        def loop(prediction, target, beta):
            def error(d):
                return d * d / (2 * beta) if abs(d) < beta else abs(d) - beta / 2

            samples = []
            for p, y in zip(prediction, target):
                if beta is None:
                    samples.append(mean([2 - 2 * dot(a, b) / (dot(a, a) * dot(b, b)) ** 0.5 for a, b in zip(p, y)]))
                else:
                    samples.append(mean([error(float(d)) for d in (p - y).flatten()]))
            return samples

    Args:
        prediction: [B, ..., D] float32 or float64.
        target: [B, ..., D].
        beta: difference at which the error turns from squared to absolute; None: the error is 2 - 2 cosines.
    """
    if beta is None:
        return (2 - 2 * F.cosine_similarity(prediction, target, dim=-1)).flatten(1).mean(1)
    return F.smooth_l1_loss(prediction, target, reduction="none", beta=beta).flatten(1).mean(1)


@torch.no_grad()
def masked_sums(x: Tensor, mask: Tensor) -> Tensor:
    """Sums and sums of squares of the masked tokens of each sample, [B, T, D] -> [B, 2, D] of its type, for `token_std`."""
    weight = mask.to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return torch.stack([torch.einsum("bt,btd->bd", weight, y) for y in (x, x.square())], 1)


@torch.no_grad()
def token_std(sums: Tensor, counts: Tensor) -> Tensor:
    """Standard deviation of each feature over the masked tokens of the global batch, mean over features; 0 at collapse.

    As in fairseq's data2vec, which stops a run whose targets fall below 0.1 or predictions below 0.01. A collective: every process
    must call it.

    Args:
        sums: [B, 2, D] of this process, from `masked_sums`.
        counts: [B] masked tokens of each sample.

    Returns:
        [], the same on every process; 0 with fewer than two tokens.
    """
    totals = distributed.total_detached(torch.cat([sums.sum(0).flatten(), counts.sum()[None]]).double())
    (x, square), n = totals[:-1].view(2, -1), totals[-1]
    variance = (square - x.square() / n.clamp(min=1)).clamp(min=0) / (n - 1).clamp(min=1)
    deviation: Tensor = variance.sqrt().mean()
    return deviation.to(sums.dtype)
