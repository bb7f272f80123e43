"""Lengths of sounds beside the fixed number of frames of a front-end: what it would fill with silence, or cut off."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from mmssl.core.encoder import EncoderConfig
from mmssl.core.errors import RecipeError
from mmssl.data.modality import ModalityConfig
from mmssl.encoders.audio_resnet import AudioResNetConfig
from mmssl.encoders.audio_transformer import AudioTransformerConfig

log = logging.getLogger(__name__)

SILENCE = 0.05
"""Largest share of a spectrogram that may be silence: AST fills the 998 frames of ten seconds up to 1024."""


def check_frames(encoders: Mapping[str, EncoderConfig], modalities: Mapping[str, ModalityConfig]) -> None:
    """Refuse encoders whose `seconds` do not fit the fixed number of frames of their front-end; such views are a warning.

    Args:
        encoders: modality -> settings of its encoder.
        modalities: name -> settings.

    Raises:
        RecipeError: with every such encoder, one a line.
    """
    wrong = []
    for name, config in encoders.items():
        if isinstance(config, AudioTransformerConfig | AudioResNetConfig):
            for said in _misfit(config, config.seconds):
                wrong.append(
                    f"encoders.{name}.seconds: got {config.seconds:g}, {said}; set front_end.frames to the former, or seconds to "
                    "the length of the sounds"
                )
            seconds = modalities[name].input_spec().seconds if name in modalities else None
            for said in _misfit(config, seconds) if seconds not in (None, config.seconds) else ():
                log.warning("modalities.%s.seconds: got %g, %s", name, seconds, said)
    if wrong:
        raise RecipeError("\n  ".join(["sounds do not fit their front-ends", *wrong]))


def _misfit(config: AudioTransformerConfig | AudioResNetConfig, seconds: float | None) -> Iterator[str]:
    """What happens to sounds of this length, if the front-end has another number of frames."""
    frames = config.front_end.settings.frames
    if frames is None or seconds is None:
        return
    made = config.front_end.build().frame_count(round(config.rate * seconds))
    if made > frames:
        yield f"of which {made} frames are made, and the front_end has {frames}: the end of each sound would be cut off"
    elif frames - made > SILENCE * frames:
        share = 100 * (frames - made) / frames
        yield f"of which {made} frames are made, and the front_end has {frames}: {share:.0f} % of each would be silence"
