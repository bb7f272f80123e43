"""Inputs that an encoder would fill up or cut off: refused where its own settings say so, warned of where views do."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from mmssl.core.encoder import EncoderConfig
from mmssl.core.errors import RecipeError
from mmssl.data.modality import ModalityConfig

log = logging.getLogger(__name__)


def check_inputs(encoders: Mapping[str, EncoderConfig], modalities: Mapping[str, ModalityConfig]) -> None:
    """Refuse encoders whose settings no run should begin with, and warn of views that do not fit; see `EncoderConfig.mistakes`.

    Args:
        encoders: modality -> settings of its encoder.
        modalities: name -> settings.

    Raises:
        RecipeError: with every such encoder, one a line.
    """
    wrong = []
    for name, config in encoders.items():
        mistakes = [f"encoders.{name}.{said}" for said in config.mistakes()]
        wrong += mistakes
        if name in modalities and not mistakes:  # the views of a mistaken encoder are as long as it says
            for said in config.warnings(modalities[name].input_spec()):
                log.warning("modalities.%s.%s", name, said)
    if wrong:
        raise RecipeError("\n  ".join(["encoders would lose a part of their inputs", *wrong]))
