"""The parts of a two-tower model that other libraries' CLIP can hold."""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.core.encoder import EmbeddingModel
from mmssl.data.modalities.image_views import Fit, Interpolation
from mmssl.encoders.text_transformer import TextTransformerConfig
from mmssl.interop.open_clip import ClipState, ImageEncoderConfig


@dataclass(frozen=True)
class ClipParts:
    """A picture tower, a text tower that reads CLIP's tokens, linear projections and a temperature.

    Attributes:
        image, text: names of the modalities.
        image_config, text_config: settings of the towers.
        state: tensors; see `ClipState`.
        embedding: the towers and heads, to compare with.
        fit, interpolation: how pictures become squares; see `ImageConfig`.
    """

    image: str
    text: str
    image_config: ImageEncoderConfig
    text_config: TextTransformerConfig
    state: ClipState
    embedding: EmbeddingModel
    fit: Fit = "crop"
    interpolation: Interpolation = "bicubic"
