"""Heads that predict classes or values of tokens: linear (BEiT), BERT's, and cosines with codes (HuBERT)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmssl.core.config import Config
from mmssl.heads.prototypes import WeightNormPrototypes


class LinearPredictorConfig(Config):
    """One linear layer, as in BEiT and MaskFeat."""

    kind: Literal["linear"] = "linear"

    def build(self, width: int, size: int) -> nn.Module:
        """Build the head [..., width] -> [..., size]."""
        return nn.Linear(width, size)


class BertPredictorConfig(Config):
    """The head of BERT (Devlin et al. 2019, arXiv:1810.04805): linear, GELU, LayerNorm, linear; not tied to the embeddings."""

    kind: Literal["bert"] = "bert"

    def build(self, width: int, size: int) -> nn.Module:
        """Build the head [..., width] -> [..., size]."""
        return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, size))


class CosinePredictor(nn.Module):
    """Cosines of projected tokens with a learned code of each class, over a temperature: the head of HuBERT.

    Hsu et al. 2021 (arXiv:2106.07447), equation 3.

    Args:
        width: D.
        embedding: E, size of projections and codes.
        size: K, number of classes.
        temperature: divisor of the cosines.
    """

    def __init__(self, width: int, embedding: int, size: int, temperature: float) -> None:
        super().__init__()
        self.project = nn.Linear(width, embedding)
        self.codes = WeightNormPrototypes(embedding, size)
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> scores [..., K]."""
        cosines: Tensor = self.codes(F.normalize(self.project(x), dim=-1))
        return cosines / self.temperature


class CosinePredictorConfig(Config):
    """Settings of cosines with codes; see `CosinePredictor`.

    Attributes:
        embedding: size of projections and codes. HuBERT: 256.
        temperature: divisor of the cosines. HuBERT: 0.1.
    """

    kind: Literal["cosine"] = "cosine"
    embedding: int = Field(default=256, gt=0)
    temperature: float = Field(default=0.1, gt=0)

    def build(self, width: int, size: int) -> nn.Module:
        """Build the head [..., width] -> [..., size]."""
        return CosinePredictor(width, self.embedding, size, self.temperature)


TokenPredictorConfig = Annotated[
    LinearPredictorConfig | BertPredictorConfig | CosinePredictorConfig, Field(discriminator="kind")
]
