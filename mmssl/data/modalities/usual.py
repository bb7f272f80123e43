"""Registry of modalities with usual settings, for commands without a recipe: built-in ones, and those of installed packages."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from functools import cache
from typing import Any, cast

from mmssl.core.plugins import configs
from mmssl.data.inspection import FileFormats
from mmssl.data.modalities.array import ArrayConfig
from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.modalities.multi_label import MultiLabelConfig
from mmssl.data.modalities.series import SeriesConfig
from mmssl.data.modalities.text import TextConfig
from mmssl.data.modalities.video import VideoConfig
from mmssl.data.modality import Modality, ModalityConfig

GROUP = "mmssl.modalities"
SHIPPED: tuple[type[ModalityConfig], ...] = (
    ImageConfig,
    AudioConfig,
    VideoConfig,
    TextConfig,
    LabelConfig,
    MultiLabelConfig,
    ArrayConfig,
    SeriesConfig,
)


def modality_configs() -> dict[str, type[ModalityConfig]]:
    """Kind -> config class of every installed modality."""
    found = cast("tuple[type[ModalityConfig], ...]", (*SHIPPED, *configs(GROUP, ModalityConfig, SHIPPED)))
    return {str(config.model_fields["kind"].default): config for config in found}


def usual_modalities(formats: Mapping[str, str] | None = None, **settings: Any) -> dict[str, Modality]:
    """Kind -> modality with its usual settings, for all modalities that have some.

    Args:
        formats: of the members, as the manifest of the shards says: a format that is a kind of modality is read by it alone.
        **settings: values that replace the usual ones in modalities with such a key.
    """
    made: dict[str, Modality] = {}
    known = modality_configs()
    said = {extension: kind for extension, kind in (formats or {}).items() if kind in known}
    for kind, config in known.items():
        usual = config.usual()
        if usual is not None:
            replaced = {key: value for key, value in settings.items() if key in config.model_fields}
            made[kind] = usual.model_copy(update=replaced).build(kind)
    if not said:
        return made
    for kind, modality in made.items():
        made[kind] = copy(modality)
        made[kind].extensions = tuple(one for one in modality.extensions if said.get(one, kind) == kind)
    for extension, kind in said.items():
        if kind not in made:
            made[kind] = known[kind](extensions=(extension,)).build(kind)
    return {kind: modality for kind, modality in made.items() if modality.extensions}


@cache
def file_formats() -> dict[str, FileFormats]:
    """Kind -> file formats, for all modalities that can be packed from files."""
    return {kind: config.files for kind, config in modality_configs().items() if config.files is not None}


def own_extensions(modality: Modality) -> tuple[str, ...]:
    """Extensions of a usual modality, without those of other modalities' files that contain it too, as videos contain sound."""
    formats = file_formats().get(modality.name)
    return tuple(one for one in modality.extensions if formats is None or one not in formats.within)
