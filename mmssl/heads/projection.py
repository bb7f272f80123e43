"""Projections of pooled features into an embedding space, and their configs."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from mmssl.core.config import Config
from mmssl.heads.batch_norm import GlobalBatchNorm


class LinearProjection(nn.Module):
    """[B, D] -> [B, E], no bias, weights drawn from N(0, 1/D): CLIP's projection of both towers.

    Args:
        width: D.
        embedding: E.
    """

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, embedding, bias=False)
        nn.init.normal_(self.linear.weight, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, E]."""
        return self.linear(x)  # type: ignore[no-any-return]


class LinearProjectionConfig(Config):
    """CLIP's projection."""

    kind: Literal["linear"] = "linear"

    def build(self, width: int, embedding: int) -> nn.Module:
        """The head [B, width] -> [B, embedding]."""
        return LinearProjection(width, embedding)


class IdentityProjectionConfig(Config):
    """No head: the encoder's pooled features already lie in the shared space (LiT's locked tower, projected adapters)."""

    kind: Literal["identity"] = "identity"

    def build(self, width: int, embedding: int) -> nn.Module:
        """Nothing, with shapes checked.

        Raises:
            ValueError: the encoder is not as wide as the space.
        """
        if width != embedding:
            raise ValueError(
                f"head 'identity' got an encoder of width {width} for an embedding of {embedding}, wanted equal sizes: "
                f"set embedding: {width}, or take the head 'linear'"
            )
        return nn.Identity()


Norm = Literal["batch", "layer", "none"]


class MLPProjection(nn.Module):
    """[B, D] -> [B, E] through `layers` linear layers with norm and ReLU between them.

    SimCLR's head is 2 layers with "batch" and `norm_last`; SLIP's is 3 layers of hidden 4096 with "batch" and no last norm.

    Args:
        width: D.
        hidden: size of the layers between.
        embedding: E.
        layers: number of linear layers, at least 1.
        norm: "batch" (over the global batch: only inside a criterion), "layer" or "none", before each ReLU.
        norm_last: whether the output is normalised too.
    """

    def __init__(
        self, width: int, hidden: int, embedding: int, layers: int = 2, norm: Norm = "batch", norm_last: bool = False
    ) -> None:
        super().__init__()
        sizes = [width, *[hidden] * (layers - 1), embedding]
        steps: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise(sizes), start=1):
            last = number == layers
            normed = norm != "none" and (norm_last or not last)
            # Batch norm subtracts the mean over rows and the bias with it.
            steps.append(nn.Linear(before, after, bias=not (normed and norm == "batch")))
            if normed:
                steps.append(GlobalBatchNorm(after) if norm == "batch" else nn.LayerNorm(after))
            if not last:
                steps.append(nn.ReLU())
        self.steps = nn.Sequential(*steps)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, E]."""
        return self.steps(x)  # type: ignore[no-any-return]


class MLPProjectionConfig(Config):
    """A projection with hidden layers; see `MLPProjection`.

    Attributes:
        hidden: size of the layers between.
        layers: number of linear layers.
        norm: before each ReLU: over the global batch, over each row, or none.
        norm_last: whether the output is normalised too.
    """

    kind: Literal["mlp"] = "mlp"
    hidden: int = Field(gt=0)
    layers: int = Field(default=2, ge=2)
    norm: Norm = "batch"
    norm_last: bool = False

    @model_validator(mode="after")
    def _norm_last_needs_norm(self) -> MLPProjectionConfig:
        if self.norm_last and self.norm == "none":
            raise ValueError(
                "norm_last: true has no effect with norm: none; choose norm: batch or layer, or leave norm_last out"
            )
        return self

    def build(self, width: int, embedding: int) -> nn.Module:
        """The head [B, width] -> [B, embedding]."""
        return MLPProjection(width, self.hidden, embedding, self.layers, self.norm, self.norm_last)


HeadConfig = Annotated[
    LinearProjectionConfig | MLPProjectionConfig | IdentityProjectionConfig, Field(discriminator="kind")
]
