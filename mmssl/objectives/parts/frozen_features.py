"""Token features of a frozen encoder, as targets of another one: MVP, EVA, the later iterations of HuBERT."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from mmssl.core.config import Config
from mmssl.core.encoder import Encoder, freeze
from mmssl.encoders.adapters.open_clip import OpenClipConfig
from mmssl.encoders.adapters.timm import TimmConfig
from mmssl.encoders.adapters.transformers import HfVisionConfig
from mmssl.encoders.adapters.transformers_audio import HfAstConfig
from mmssl.encoders.audio_transformer import AudioTransformerConfig
from mmssl.encoders.series_transformer import SeriesTransformerConfig
from mmssl.encoders.space_time import SpaceTimeConfig
from mmssl.encoders.vit import VisionTransformerConfig
from mmssl.objectives.common import at_least_float32

TokenEncoderConfig = Annotated[
    VisionTransformerConfig
    | AudioTransformerConfig
    | SpaceTimeConfig
    | SeriesTransformerConfig
    | OpenClipConfig
    | TimmConfig
    | HfVisionConfig
    | HfAstConfig,
    Field(discriminator="kind"),
]


class FrozenFeatures(nn.Module):
    """Tokens [B, T, D], or the outputs of one block, of an encoder that is never trained; kept in checkpoints.

    Attributes:
        encoder: in evaluation mode, always.
        values: D.

    Args:
        encoder: with weights.
        layer: 1-based number of the block; None: the tokens that the encoder gives.
    """

    def __init__(self, encoder: Encoder, layer: int | None) -> None:
        super().__init__()
        self.encoder, self.layer, self.values = encoder, layer, encoder.width
        freeze(encoder)
        encoder.eval()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Features of raw views [B, ...], at least float32."""
        if self.layer is None:
            found = self.encoder(x).tokens
        else:
            found = self.encoder(x, hidden=self.encoder.depth - self.layer + 1).hidden[0]
        return at_least_float32(found)

    def train(self, mode: bool = True) -> FrozenFeatures:
        """Set the mode of this module; the encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self


class FeatureRowsConfig(Config):
    """Features of a frozen encoder on the same view: of a run, a checkpoint, or a model of another library.

    Attributes:
        encoder: its settings with its weights (`weights`, or `path` of a folder of transformers); the token grid is that of the
            encoder that is trained.
        layer: 1-based number of the block whose outputs are taken; none: the tokens that the encoder gives. HuBERT: 6 of 12 in the
            second iteration.
    """

    kind: Literal["features"] = "features"
    encoder: TokenEncoderConfig
    layer: int | None = Field(default=None, ge=1)

    @field_validator("encoder")
    @classmethod
    def _is_trained(cls, encoder: TokenEncoderConfig) -> TokenEncoderConfig:
        if not encoder.pretrained:
            raise ValueError(f"{encoder.kind} has random weights, wanted trained ones: set `weights`")
        return encoder

    def build_network(self, student: Encoder) -> FrozenFeatures:
        """Build the frozen encoder.

        Raises:
            ValueError: it has no tokens, another grid than the student, or fewer blocks.
        """
        encoder = self.encoder.build()
        what = f"targets: encoder {self.encoder.kind}"
        if encoder.grid != student.grid or Encoder.TOKENS not in encoder.capabilities:
            raise ValueError(
                f"{what}: got the token grid {encoder.grid}, wanted {student.grid}, that of the encoder that is trained"
            )
        if self.layer is not None and not self.layer <= encoder.depth:
            raise ValueError(f"{what}: got layer {self.layer}, wanted 1 to {encoder.depth}, its depth; or leave it out")
        return FrozenFeatures(encoder, self.layer)
