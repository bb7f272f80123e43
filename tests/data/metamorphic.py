"""Relations between the modalities of a moving digit scene, judged from augmented values alone, and scenes to augment.

A clip has one latent: where the digit is, and when it beeps. Frames, stereo sound and caption follow from it, so after any
synchronized operation three relations must hold: each flash is seen when a beep is heard ("sync"), each beep comes from where the
digit is ("pan"), and the caption says the side or direction that is seen ("caption"). Nothing here looks at latents or records.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from mmssl.data.media.encode import encode_clip
from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.captions.captions import Captions
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.modalities.text import TextConfig
from mmssl.data.modalities.video import VideoConfig
from mmssl.data.modalities.views.video import ClipViewConfig
from mmssl.data.modality import Modality
from mmssl.data.timeline import Clip
from mmssl.datasets.moving_render import captions
from mmssl.datasets.moving_scenes import MOTIONS, encode_scene, sample_scene
from tests.data.estimators import beeps, caption_side, flashes_of, ink, positions_of

__all__ = ["EDGE", "RATE", "Verdicts", "encode_clip", "judge", "modalities", "scenes", "with_caption"]

RATE = 8000
SIZE = 32
FPS = 15.0
VIEW_FRAMES = 45  # of one second: thrice those of the files, so that views of other speeds show each at its time
EDGE = 0.14  # seconds from a cut within which an event may be seen or heard in part only
LATE = 0.03  # seconds between flash and beep that are borne: less than half a frame
FLASH = 1.2  # ink of a frame with a flash over that of a quiet one, at least; less is noise of the codec
OFF = 0.04  # of the width between where a beep comes from and where the digit is


class Verdicts(NamedTuple):
    """What holds; None: nothing in the sample could tell."""

    sync: bool | None
    pan: bool | None
    caption: bool | None


def modalities() -> dict[str, Modality]:
    """Video, sound of the same file, caption and class."""
    whole = ClipViewConfig(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    files = ("mp4", "webm")
    return {
        "video": VideoConfig(size=SIZE, frames=VIEW_FRAMES, seconds=1.0, views={"crop": whole}, extensions=files).build(
            "video"
        ),
        "audio": AudioConfig(rate=RATE, seconds=1.0, extensions=files).build("audio"),
        "text": TextConfig().build("text"),
        "label": LabelConfig().build("label"),
    }


def scenes(count: int = 8) -> list[dict[str, Any]]:
    """Samples of all motions, as shards hold them: mp4 and webm in turn."""
    found: list[dict[str, Any]] = []
    number = 0
    while len(found) < count:
        scene = sample_scene("train", number)
        number += 1
        # Motion that starts close to the middle leaves no direction in a short window.
        if scene.motion != MOTIONS[len(found) % len(MOTIONS)]:
            continue
        form = len(found) % len(captions(scene))
        container = ("mp4", "webm")[len(found) // 2 % 2]
        sample = encode_scene(
            replace(scene, form=form), f"{number:04d}", container=container, size=SIZE, fps=FPS, rate=RATE
        )
        found.append({**sample, "captions": captions(scene)})
    return found


def with_caption(values: dict[str, Any], options: Iterable[str], number: int) -> dict[str, Any]:
    """The values with one of these captions."""
    texts = list(options)
    return {**values, "text": Captions([texts[number % len(texts)]])}


def judge(clip: Clip, sound: np.ndarray, caption: str, cuts: Iterable[float] = (), late: float = LATE) -> Verdicts:
    """What of the relations holds.

    Args:
        clip, sound, caption: augmented.
        cuts: seconds, besides beginning and end, around which events may be incomplete.
        late: seconds between flash and beep that are borne.
    """
    length = max(clip.seconds, sound.shape[1] / RATE)
    dark = clip.frames.reshape(len(clip.frames), -1).max(1) == 0
    clip = _unmasked(clip, dark)
    edges = np.array([0.0, min(clip.seconds, sound.shape[1] / RATE), length, *cuts])
    strokes = ink(clip.frames)
    x = positions_of(strokes)
    mass = strokes.sum((1, 2))
    seen = flashes_of(strokes, clip.times, clip.seconds) if mass.max() > FLASH * np.percentile(mass, 25) else []
    heard = beeps(sound, RATE)
    whole = _whole(strokes)
    return Verdicts(
        _same_moments(seen, [beep.time for beep in heard], edges, late) if whole.all() else None,
        _same_places(clip.times, x, heard, edges, whole),
        _says(clip.times[~dark], x[~dark], caption),
    )


def _unmasked(clip: Clip, dark: np.ndarray) -> Clip:
    """The clip with its quietest frame in place of dark ones."""
    if not dark.any():
        return clip
    shown = clip.frames[~dark]
    quiet = shown[int(ink(shown).sum((1, 2)).argmin())]
    return Clip(np.where(dark[:, None, None, None], quiet, clip.frames), clip.times, clip.seconds)


def _whole(mass: np.ndarray) -> np.ndarray:
    """[T] bool, frames in which all of the digit is seen: no ink at the edges."""
    columns, rows = mass.sum(1), mass.sum(2)
    edges = [columns[:, 0], columns[:, -1], rows[:, 0], rows[:, -1]]
    return np.max(edges, axis=0) <= 0.02 * max(columns.max(), rows.max())


def _inside(time: float, edges: np.ndarray) -> bool:
    return bool(np.abs(edges - time).min() > EDGE)


def _same_moments(seen: list[float], heard: list[float], edges: np.ndarray, late: float) -> bool | None:
    judged = [
        min((abs(time - other) for other in others), default=9.0) <= late
        for times, others in ((seen, heard), (heard, seen))
        for time in times
        if _inside(time, edges)
    ]
    return all(judged) if judged else None


def _same_places(
    times: np.ndarray, x: np.ndarray, heard: list[Any], edges: np.ndarray, whole: np.ndarray
) -> bool | None:
    judged = []
    for beep in heard:
        frame = max(0, int(np.searchsorted(times, beep.time, side="right")) - 1)
        if _inside(beep.time, edges) and whole[frame] and np.isfinite(x[frame]):
            judged.append(abs(beep.x - x[frame]) <= OFF)
    return all(judged) if judged else None


def _says(times: np.ndarray, x: np.ndarray, caption: str) -> bool | None:
    said = caption_side(caption)
    if said is None:
        return None
    if said in ("left", "right"):
        return said == ("left" if float(np.nanmedian(x)) < 0.5 else "right")
    moved = float(np.polyfit(times, np.nan_to_num(x, nan=float(np.nanmedian(x))), 1)[0])
    return said == ("rightward" if moved > 0 else "leftward")
