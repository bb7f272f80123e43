"""Fixed quantizers, rows to codes: centroids of k-means over the training samples, and a random projection."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.core.config import Config
from mmssl.losses.kmeans import draw_starts, kmeans, nearest_centroid


class Centroids(nn.Module):
    """The nearest centroid of k-means; equal on all processes, saved in checkpoints.

    Attributes:
        points: [K, P]; zero before `fit`.

    Args:
        count: K.
        width: P.
        iterations: of k-means, at most.
        rows: rows of the training samples that it is fitted to, about.
    """

    points: Tensor

    def __init__(self, count: int, width: int, iterations: int, rows: int) -> None:
        super().__init__()
        self.iterations, self.rows = iterations, rows
        self.register_buffer("points", torch.zeros(count, width))

    def forward(self, x: Tensor) -> Tensor:
        """Rows [..., P] -> codes [...] int64."""
        return nearest_centroid(x, self.points.to(x.dtype))

    @torch.no_grad()
    def fit(self, index: Tensor, rows: Tensor, random: torch.Generator) -> None:
        """Cluster rows of all processes, from starts that are drawn among them. Every process must call.

        Args:
            index: [n] int64, numbers of the samples of this process: the result does not depend on who has which.
            rows: [n, r, P], rows of each.
            random: on the CPU, equal on all processes.

        Raises:
            ValueError: there are fewer different rows than centroids.
        """
        order = distributed.gather_uneven(index).sort(stable=True).indices
        x, count = distributed.gather_uneven(rows)[order].flatten(0, 1), len(self.points)
        starts, different = draw_starts(x, count, random)
        if different < count:
            raise ValueError(
                f"codes: got {count}, wanted at most {different}, the different rows among the {len(x)} that it is fitted to: "
                "lower codes, or raise rows"
            )
        mine = x.tensor_split(distributed.world_size())[distributed.rank()]
        self.points.copy_(kmeans(mine, starts, self.iterations))


class CentroidsConfig(Config):
    """K-means, fitted once before the first step; centroids are stored, not codes.

    Attributes:
        codes: K. HuBERT: 100 for MFCC.
        iterations: of k-means, at most.
        rows: rows of the training samples that it is fitted to, about; every process holds them. All samples are read once.
    """

    kind: Literal["kmeans"] = "kmeans"
    codes: int = Field(ge=2)
    iterations: int = Field(default=30, ge=1)
    rows: int = Field(default=100_000, ge=2)

    def build(self, width: int) -> Centroids:
        """Build it for rows of this width."""
        return Centroids(self.codes, width, self.iterations, self.rows)


class RandomProjection(nn.Module):
    """Code with the largest cosine with a random projection: BEST-RQ, and the first tokenizer of BEATs.

    Chiu et al. 2022 (arXiv:2202.01855), section 3.1; Chen et al. 2023 (arXiv:2212.09058). Never trained.

    Attributes:
        projection: [P, E], from Xavier's uniform distribution.
        codes: [K, E], unit vectors.

    Args:
        count: K.
        width: P.
        embedding: E.
    """

    projection: Tensor
    codes: Tensor

    def __init__(self, count: int, width: int, embedding: int) -> None:
        super().__init__()
        self.register_buffer("projection", nn.init.xavier_uniform_(torch.empty(width, embedding)))
        self.register_buffer("codes", F.normalize(torch.randn(count, embedding), dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """Rows [..., P] -> codes [...] int64; in the type of the rows, also under autocast."""
        with torch.autocast(x.device.type, enabled=False):
            return (x @ self.projection.to(x.dtype) @ self.codes.to(x.dtype).T).argmax(-1)


class RandomProjectionConfig(Config):
    """Random projection; see `RandomProjection`.

    Attributes:
        codes: K. BEST-RQ: 8192, BEATs: 1024.
        embedding: size of projections and codes. BEST-RQ: 16, BEATs: 256.
    """

    kind: Literal["random_projection"] = "random_projection"
    codes: int = Field(ge=2)
    embedding: int = Field(default=16, ge=1)

    def build(self, width: int) -> RandomProjection:
        """Build it for rows of this width."""
        return RandomProjection(self.codes, width, self.embedding)


QuantizerConfig = Annotated[CentroidsConfig | RandomProjectionConfig, Field(discriminator="kind")]
