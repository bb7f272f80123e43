"""The parts of a two-tower model of our own encoders that other libraries' CLIP can hold."""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.encoders.text_transformer import TextTransformerConfig
from mmssl.interop.open_clip import ClipState, ImageEncoderConfig
from mmssl.interop.towers import Towers


@dataclass(frozen=True)
class ClipParts:
    """A picture tower, a text tower that reads CLIP's tokens, linear projections and a temperature.

    Attributes:
        image_config, text_config: settings of the towers.
        state: tensors; see `ClipState`.
    """

    image_config: ImageEncoderConfig
    text_config: TextTransformerConfig
    state: ClipState


def clip_parts(towers: Towers) -> ClipParts:
    """The parts of two towers.

    Raises:
        ValueError: encoders or heads of other kinds.
    """
    image, text = towers.configs[towers.first], towers.configs[towers.text]
    if not isinstance(image, ImageEncoderConfig) or not isinstance(text, TextTransformerConfig):
        kinds = ", ".join(
            f"{name} ({kind})" for name, kind in zip((towers.first, towers.text), towers.kinds(), strict=True)
        )
        raise ValueError(
            f"wanted one `vit` or `resnet` and one `text_transformer` in a shared space, and this model has {kinds}"
        )
    state = ClipState(
        image=dict(towers.encoder(towers.first).state_dict()),
        text=dict(towers.encoder(towers.text).state_dict()),
        heads={"image": towers.projection(towers.first), "text": towers.projection(towers.text)},
        logit_scale=towers.logit_scale,
        logit_bias=towers.logit_bias,
    )
    return ClipParts(image, text, state)
