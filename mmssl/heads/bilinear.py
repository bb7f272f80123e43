"""Bilinear similarity of two embeddings, as in COLA."""

from __future__ import annotations

from torch import Tensor, nn


class BilinearSimilarity(nn.Module):
    """Bilinear similarity of projections x and y, tanh(norm(x))ᵀ W tanh(norm(y)), with a learned matrix W and layer norm.

    Saeed, Grangier and Zeghidour 2021, "Contrastive Learning of General-Purpose Audio Representations" (COLA, arXiv:2010.10915). It
    takes the place of the cosine: W learns the scale, and need not be symmetric.

    Args:
        embedding: E.
    """

    def __init__(self, embedding: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embedding)
        self.matrix = nn.Linear(embedding, embedding, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Projections [B, E] of two views -> queries and keys [B, E]: the product of query i and key j is their similarity.

        The weight of `matrix` is the transpose of W.
        """
        return self.matrix(self.norm(x).tanh()), self.norm(y).tanh()
