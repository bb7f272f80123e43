"""Projection heads: pooled features to an embedding space."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from torch import Tensor, nn

from mmssl.core.batch_norm import GlobalBatchNorm
from mmssl.core.config import Config


class LinearProjection(nn.Module):
    """Linear projection [B, D] -> [B, E] without bias, initialised from N(0, 1/D), as in CLIP.

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
    """Settings of a linear projection without bias, as in CLIP."""

    kind: Literal["linear"] = "linear"

    def build(self, width: int, embedding: int) -> nn.Module:
        """Build the head [B, width] -> [B, embedding]."""
        return LinearProjection(width, embedding)


class IdentityProjectionConfig(Config):
    """Settings of no projection: the pooled features already lie in the shared space (LiT's locked tower, adapters)."""

    kind: Literal["identity"] = "identity"

    def build(self, width: int, embedding: int) -> nn.Module:
        """Build an `nn.Identity`, after a check of the widths.

        Raises:
            ValueError: the encoder's width differs from `embedding`.
        """
        if width != embedding:
            raise ValueError(
                f"head 'identity' got an encoder of width {width} for an embedding of {embedding}, wanted equal sizes; "
                f"set embedding: {width}, or use head 'linear'"
            )
        return nn.Identity()


Norm = Literal["batch", "layer", "none"]
HeadActivation = Literal["relu", "gelu"]
_ACTIVATIONS: dict[HeadActivation, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


class MLPProjection(nn.Module):
    """MLP projection head [B, D] -> [B, E]: `layers` linear layers with norm and activation between them.

    SimCLR's head is 2 layers with "batch" and `norm_last`; SLIP's is 3 layers of hidden 4096 with "batch" and no last norm.

    Args:
        width: D.
        hidden: size of the hidden layers.
        embedding: E.
        layers: number of linear layers, at least 1.
        norm: "batch" (over the global batch: only inside a criterion), "layer" or "none", before each activation.
        norm_last: whether the output is normalised too.
        affine_last: whether that norm has a scale and a shift.
        bias_last: whether the last layer has a bias; False for losses that subtract the mean over the batch.
        activation: "relu" or "gelu", of the hidden layers.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        embedding: int,
        layers: int = 2,
        norm: Norm = "batch",
        norm_last: bool = False,
        affine_last: bool = True,
        bias_last: bool = True,
        activation: HeadActivation = "relu",
    ) -> None:
        super().__init__()
        sizes = [width, *[hidden] * (layers - 1), embedding]
        steps: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise(sizes), start=1):
            last = number == layers
            normed = norm != "none" and (norm_last or not last)
            # Batch norm subtracts the mean over rows, which removes a bias.
            bias = not (normed and norm == "batch") and (bias_last or not last)
            steps.append(nn.Linear(before, after, bias=bias))
            if normed:
                affine = affine_last or not last
                steps.append(
                    GlobalBatchNorm(after, affine)
                    if norm == "batch"
                    else nn.LayerNorm(after, elementwise_affine=affine)
                )
            if not last:
                steps.append(_ACTIVATIONS[activation]())
        self.steps = nn.Sequential(*steps)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, E]."""
        return self.steps(x)  # type: ignore[no-any-return]


class MLPProjectionConfig(Config):
    """Settings of an MLP projection head; see `MLPProjection`.

    Attributes:
        hidden: size of the hidden layers.
        layers: number of linear layers.
        norm: normalisation before each activation: "batch" (over the global batch), "layer" or "none".
        norm_last: whether the output is normalised too.
        activation: of the hidden layers: "relu", or "gelu" as in DINO.
    """

    kind: Literal["mlp"] = "mlp"
    hidden: int = Field(gt=0)
    layers: int = Field(default=2, ge=2)
    norm: Norm = "batch"
    norm_last: bool = False
    activation: HeadActivation = "relu"

    @model_validator(mode="after")
    def _norm_last_needs_norm(self) -> MLPProjectionConfig:
        if self.norm_last and self.norm == "none":
            raise ValueError(
                "got norm_last: true with norm: none, which has no effect; set norm: batch or layer, or leave norm_last out"
            )
        return self

    def build(self, width: int, embedding: int, *, affine_last: bool = True, bias_last: bool = True) -> nn.Module:
        """Build the head [B, width] -> [B, embedding]."""
        last = (self.norm_last, affine_last, bias_last)
        return MLPProjection(width, self.hidden, embedding, self.layers, self.norm, *last, self.activation)


def _without_norm_last(head: MLPProjectionConfig) -> MLPProjectionConfig:
    if head.norm_last:
        raise ValueError(
            "norm_last: got true, and the loss subtracts the mean over the batch: the shift of a last norm would "
            "get no gradient; leave norm_last out"
        )
    return head


CentredHeadConfig = Annotated[MLPProjectionConfig, AfterValidator(_without_norm_last)]
"""The MLP before a loss that subtracts the mean over the batch; build it with `bias_last=False`."""

HeadConfig = Annotated[
    LinearProjectionConfig | MLPProjectionConfig | IdentityProjectionConfig, Field(discriminator="kind")
]
