"""Contradictions between parts of a recipe that are each right alone: how samples are augmented, and what is made of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mmssl.core.objective import Objective
from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.video import VideoConfig
from mmssl.data.modality import ModalityConfig
from mmssl.data.stream.config import DataConfig
from mmssl.data.synchronized.space import Flip
from mmssl.data.synchronized.time import TimeCrop
from mmssl.objectives.clip import Clip
from mmssl.objectives.weighted import Weighted


def contradictions(data: DataConfig, modalities: Mapping[str, ModalityConfig], objective: Objective) -> Iterator[str]:
    """Sentences, one for each."""
    yield from _mirrors(data, modalities, objective)
    yield from _windows(data, modalities, objective)
    yield from _absences(data, objective)


def _mirrors(data: DataConfig, modalities: Mapping[str, ModalityConfig], objective: Objective) -> Iterator[str]:
    """Views that are mirrored alone, and compared with modalities that were mirrored together with them."""
    flips = [one for one in data.synchronized if isinstance(one, Flip) and one.probability > 0]
    if not flips:
        return
    paired = {
        (name, kind)
        for one in objective.modules()
        if isinstance(one, Clip)
        for name in one.needs()
        for kind in one.needs()[name]
    }
    for name, kind in sorted(paired):
        view = (modalities[name].model_dump().get("views") or {}).get(kind) or {}
        if view.get("flip") and not all(name in flip.without_sides for flip in flips):
            yield (
                f"modalities.{name}.views.{kind}.flip: got {view['flip']:g} beside the flip of data.synchronized, which keeps left "
                "and right of all modalities together: this one would be mirrored once more and alone; set it to 0"
            )


def _windows(data: DataConfig, modalities: Mapping[str, ModalityConfig], objective: Objective) -> Iterator[str]:
    """Views that are longer than what is decoded for them, or that each take a part of their own of what was cut alike."""
    crop = next((one for one in data.synchronized if isinstance(one, TimeCrop)), None)
    for name in sorted(objective.needs()):
        config = modalities[name]
        seconds = config.seconds if isinstance(config, AudioConfig | VideoConfig) else None
        if crop is not None and seconds is not None and seconds > crop.seconds:
            yield (
                f"modalities.{name}.seconds: got {seconds:g}, and time_crop of data.synchronized leaves {crop.seconds:g} s of "
                "every sample, so that all views would be padded: raise time_crop.seconds, or lower this"
            )
    for one in objective.modules():
        if crop is None or not isinstance(one, Clip):
            continue
        parts = {
            name: s for name in sorted(one.needs()) if (s := _part(modalities[name], one.needs()[name], crop.seconds))
        }
        if len(parts) > 1:
            got = ", ".join(f"modalities.{name}.seconds {seconds:g}" for name, seconds in parts.items())
            yield (
                f"{got}: each view would take a part of its own of the {crop.seconds:g} s that time_crop of data.synchronized cuts "
                "alike, and what is seen and heard would not be of one moment: set all of them to one length"
            )


def _part(config: ModalityConfig, views: Mapping[str, int], whole: float) -> float | None:
    """Seconds of the modality's views, where they lie anywhere in a longer window."""
    if not isinstance(config, AudioConfig | VideoConfig) or config.seconds is None or config.seconds >= whole:
        return None
    anywhere = any(config.views[kind].kind in ("random_window", "clip") for kind in views if kind in config.views)
    return config.seconds if anywhere else None


def _absences(data: DataConfig, objective: Objective) -> Iterator[str]:
    """Objectives that use every sample of a batch, of modalities that samples may lack."""
    for path, part in objective.named_modules():
        if not isinstance(part, Objective) or isinstance(part, Clip | Weighted):
            continue
        where = ".".join(["objective", *path.replace("parts.", "objectives.").split(".")]).rstrip(".")
        for name in sorted(part.needs().keys() & set(data.optional)):
            yield (
                f"data.optional: got {name!r}, and {where} ({type(part).__name__}) needs it of every sample of a batch: take it "
                "out and leave such samples out of the shards, or take the objective 'clip', which aligns what is there"
            )
