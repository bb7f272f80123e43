"""Prototypes: scores of embeddings by learned unit vectors, the last layer of DINO and of SwAV."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WeightNormPrototypes(nn.Module):
    """Weight-normalised linear layer [n, E] -> [n, K] without bias, each weight vector's norm fixed at 1: the last layer of DINO.

    Salimans and Kingma 2016, "Weight Normalization" (arXiv:1602.07868), with g = 1: the gradient goes through the normalisation,
    and the length of a weight vector has no effect on the scores. Scores of unit-norm embeddings are cosines.

    Args:
        embedding: E.
        count: K, number of prototypes.
    """

    def __init__(self, embedding: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(embedding, count, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """[n, E] -> scores [n, K]."""
        return F.linear(x, F.normalize(self.weight, dim=-1))


class Prototypes(nn.Module):
    """Prototypes of SwAV: linear layer [n, E] -> [n, K] without bias, whose rows have unit length after every `normalise`.

    Caron et al. 2020 (arXiv:2006.09882). Scores of unit-norm embeddings are cosines. Unlike weight normalisation, the gradient does
    not go through the normalisation: call it after every update.

    Args:
        embedding: E.
        count: K, number of prototypes.
    """

    def __init__(self, embedding: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(nn.Linear(embedding, count, bias=False).weight.detach(), dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        """[n, E] -> scores [n, K]."""
        return F.linear(x, self.weight)

    @torch.no_grad()
    def normalise(self) -> None:
        """Divide each prototype by its length, in place."""
        self.weight.copy_(F.normalize(self.weight, dim=-1))


def truncated_normal(head: nn.Module, std: float = 0.02) -> nn.Module:
    """Initialise the linear layers of a head as DINO does: weights from a normal distribution within [-2, 2], biases 0."""
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return head
