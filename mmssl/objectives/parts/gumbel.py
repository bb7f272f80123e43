"""Gumbel quantizer: features to products of learned codes, with a straight-through gradient (wav2vec 2.0)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmssl.objectives.parts.noises import uniform_noise


class Quantised(NamedTuple):
    """Quantised features [B, M, E], probabilities [B, M, G, V] without noise, and the number of each product of codes [B, M]."""

    features: Tensor
    probabilities: Tensor
    codes: Tensor


class GumbelQuantizer(nn.Module):
    """Product quantization by Gumbel softmax (Jang et al. 2017, arXiv:1611.01144), as in wav2vec 2.0 (arXiv:2006.11477, section 2).

    Each of G groups picks one of V learned codes; the codes of all groups side by side are the features. In training the choice has
    Gumbel noise; backwards, it is a softmax.

    Args:
        width: D of the features.
        groups: G.
        count: V.
        embedding: E, a multiple of G.
    """

    def __init__(self, width: int, groups: int, count: int, embedding: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, groups * count)
        self.codes = nn.Parameter(torch.rand(groups, count, embedding // groups))
        nn.init.normal_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, x: Tensor, noise: Tensor, temperature: float) -> Quantised:
        """Quantise features.

        Args:
            x: [B, M, D] float32 or float64.
            noise: [B, M, G * V] Gumbel noise, or zeros; see `gumbel_noise`.
            temperature: of the softmax.
        """
        groups, count, _ = self.codes.shape
        scores: Tensor = self.score(x).view(*x.shape[:2], groups, count)
        soft = ((scores + noise.view_as(scores)) / temperature).softmax(-1)
        chosen = soft.argmax(-1, keepdim=True)
        hard = torch.zeros_like(soft).scatter_(-1, chosen, 1.0) + soft - soft.detach()
        features = torch.einsum("bmgv,gve->bmge", hard, self.codes).flatten(2)
        place = count ** torch.arange(groups, device=x.device)
        return Quantised(features, scores.softmax(-1), (chosen[..., 0] * place).sum(-1))


@torch.no_grad()
def gumbel_noise(index: Tensor, seed: int, frames: int, values: int) -> Tensor:
    """Gumbel noise [B, frames, values] float32, a pure function of (seed, sample number): equal on any number of processes.

    Args:
        index: [B] int64, numbers of the samples.
        seed: of the step.
        frames: frames of a sample.
        values: numbers of a frame.
    """
    uniform = uniform_noise(index, seed, frames * values)
    return -torch.log(-torch.log(uniform)).view(-1, frames, values)
