"""Labels of all training samples from their features: balanced by optimal transport (SeLA), or clusters (DeepCluster)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmssl.core import distributed
from mmssl.core.config import Config
from mmssl.losses.kmeans import kmeans, nearest_centroid
from mmssl.losses.sinkhorn import sinkhorn


class Labelling(Config, ABC):
    """Base of labellings.

    Attributes:
        new_head: whether the classifier begins anew after each labelling, because numbers of labels have no meaning.
        balanced: whether all labels are equally frequent, so that samples count alike.
    """

    new_head: ClassVar[bool]
    balanced: ClassVar[bool]

    @abstractmethod
    def labels(self, index: Tensor, features: Tensor, scores: Tensor, chosen: Tensor) -> Tensor:
        """Labels [n] int64 of the samples of this process. Every process must call.

        Args:
            index: [n] int64, numbers of the samples of this process.
            features: [n, D], their features.
            scores: [n, K], what the classifier says of them.
            chosen: [K] int64, numbers of random samples, the same on all processes.
        """


class OptimalTransportConfig(Labelling):
    """Labels that fit what the classifier says, and are equally frequent: SeLA (Asano et al. 2020, arXiv:1911.05371).

    By Sinkhorn-Knopp over all samples, in logarithms.

    Attributes:
        strength: lambda, exponent of the probabilities: the larger, the closer to the best assignment. SeLA: 25, on CIFAR-10 10.
        iterations: of Sinkhorn-Knopp. SeLA: until the change is small, some tens.
    """

    kind: Literal["optimal_transport"] = "optimal_transport"
    strength: float = Field(default=25.0, gt=0)
    iterations: int = Field(default=100, ge=1)
    new_head: ClassVar[bool] = False
    balanced: ClassVar[bool] = True

    def labels(self, index: Tensor, features: Tensor, scores: Tensor, chosen: Tensor) -> Tensor:
        """See the base."""
        logs = scores.double().log_softmax(1)
        return sinkhorn(logs, 1 / self.strength, self.iterations).argmax(1)


class ClustersConfig(Labelling):
    """Clusters of features, by k-means: DeepCluster (Caron et al. 2018, arXiv:1807.05520).

    Features are reduced by principal components, whitened and of unit length.

    Attributes:
        components: number of principal components. DeepCluster: 256.
        iterations: of k-means. DeepCluster: 20.
    """

    kind: Literal["clusters"] = "clusters"
    components: int = Field(default=256, ge=1)
    iterations: int = Field(default=20, ge=1)
    new_head: ClassVar[bool] = True
    balanced: ClassVar[bool] = False

    def labels(self, index: Tensor, features: Tensor, scores: Tensor, chosen: Tensor) -> Tensor:
        """See the base.

        Raises:
            ValueError: samples that k-means starts from could not be read.
        """
        x = whitened(features, self.components)
        mine = torch.isin(index, chosen)
        numbers = distributed.gather_uneven(index[mine])
        starts = distributed.gather_uneven(x[mine])[numbers.argsort()]
        if len(starts) < len(chosen):
            raise ValueError(
                f"labels: {len(chosen) - len(starts)} of {len(chosen)} samples to start from could not be read"
            )
        return nearest_centroid(x, kmeans(x, starts, self.iterations))


LabellingConfig = Annotated[OptimalTransportConfig | ClustersConfig, Field(discriminator="kind")]


@torch.no_grad()
def whitened(x: Tensor, components: int, eps: float = 1e-5) -> Tensor:
    """Principal components of the rows of all processes, each of variance 1, rows of unit length: [n, D] -> [n, C]. A collective.

    Args:
        x: [n, D] rows of this process.
        components: C, at most D; fewer where D is smaller.
        eps: least variance of a component, relative to the largest.
    """
    total, count = distributed.sum_and_count(x.double())
    centred = x.double() - total / count.clamp(min=1)
    covariance = distributed.total_detached(centred.T @ centred) / count.clamp(min=1)
    values, vectors = torch.linalg.eigh(covariance)
    kept = values.argsort(descending=True)[:components]
    scale = values[kept].clamp(min=eps * values.max().clamp(min=eps)).rsqrt()
    return F.normalize(centred @ vectors[:, kept] * scale, dim=1).to(x.dtype)
