"""Renderer of moving digit scenes: frames, sound and captions as pure functions of the latents.

One digit moves across the picture along a straight path. At each beat its key tone beeps, panned to its position at that time, and
a disc of its ink lights up around it. So picture, sound and caption have relations that an augmentation keeps or breaks: side,
direction, place of each beep, time of each flash.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmssl.core.seeding import generator
from mmssl.datasets.digit_render import (
    CLASS_NAMES,
    GRAIN,
    RAMP_SECONDS,
    TEMPLATES,
    Digit,
    coverage,
    fade,
    key_tone,
    plane,
    with_article,
)

BEEP_SECONDS = 0.1
GLOW = 0.6  # opacity of the disc relative to the ink


@dataclass(frozen=True)
class MovingScene:
    """The latents of a clip, which (with the scans) determine frames, sound and captions.

    Attributes:
        split: "train", "validation" or "test".
        motion: "left" or "right" (it stays on that side), "leftward" or "rightward" (it moves from one side to the other).
        label: 0 to 9. scan: row of scikit-learn's `load_digits`.
        path: x of the centre of the ink at the beginning and at the end, as fraction of the width; constant speed in between.
        y: the same from the top, as fraction of the height. size: side of its square as fraction of the height.
        ink, paper: RGB, 0 to 255; light ink on dark paper.
        beats: times in seconds of the middle of each beep and flash, rising.
        level: peak of the beeps before panning, 0 to 1.
        seconds: length of the clip.
        form: number of the caption in `.txt`.
        noise: seed of the grain of the picture, which does not move.
    """

    split: str
    motion: str
    label: int
    scan: int
    path: tuple[float, float]
    y: float
    size: float
    ink: tuple[int, int, int]
    paper: tuple[int, int, int]
    beats: tuple[float, ...]
    level: float
    seconds: float
    form: int
    noise: int

    def x(self, time: Any) -> Any:
        """Position of the digit at a time, or at an array of times, as fraction of the width."""
        return self.path[0] + (self.path[1] - self.path[0]) * (time / self.seconds)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> MovingScene:
        """Make a clip from its parsed `.json` field."""
        own: dict[str, Any] = {name: document[name] for name in cls.__annotations__}
        own |= {name: tuple(own[name]) for name in ("path", "ink", "paper", "beats")}
        return cls(**own)


def render_frames(scene: MovingScene, scans: np.ndarray, times: np.ndarray, size: int = 64) -> np.ndarray:
    """Render the frames of a clip, with a camera exposure from each frame to the next.

    A flash during half of an exposure is half as bright, so that its time can be estimated finer than by whole frames; positions
    are those in the middle of the exposure.

    Args:
        scene: what to draw.
        scans: [N, 8, 8] ink of every scan, 0 to 1.
        times: [T] seconds at which each frame is first shown, rising; the last is shown until the end of the clip.
        size: H = W in pixels.

    Returns:
        uint8 [T, H, W, 3].
    """
    grain = GRAIN * generator(scene.noise, "grain").standard_normal((size, size), dtype=np.float32)
    paper, ink = plane(scene.paper), plane(scene.ink)
    scan = scans[scene.scan]
    across, down = _centre_of_ink(scene.scan, scan)
    frames = np.empty((len(times), size, size, 3), dtype=np.uint8)
    ends = np.append(times[1:], max(scene.seconds, float(times[-1]) + 1e-3))
    for frame, begin, end in zip(frames, times.tolist(), ends.tolist(), strict=True):
        x = scene.x((begin + end) / 2)
        digit = Digit(
            scene.label, scene.scan, x - across * scene.size, scene.y - down * scene.size, scene.size, scene.ink, 0, 0
        )
        glow = GLOW * _exposure(scene, begin, end) * _disc(x, scene.y, scene.size, size)
        cover = np.maximum(coverage(digit, scan, size), glow)
        picture = paper + cover * (ink - paper) + grain
        frame[:] = np.clip(np.rint(picture), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return frames


def render_sound(scene: MovingScene, rate: int) -> np.ndarray:
    """Render the beeps of a clip, panned at constant power to the digit's position at each sample, see `digit_render.render_sound`.

    Returns:
        float32 [seconds * rate, 2], left and right, within -1 to 1.
    """
    sound = np.zeros((round(scene.seconds * rate), 2), dtype=np.float32)
    tone = scene.level * key_tone(scene.label, rate)[: round(BEEP_SECONDS * rate)]
    ramp = fade(round(RAMP_SECONDS * rate))
    tone[: len(ramp)] *= ramp
    tone[-len(ramp) :] *= ramp[::-1]
    for beat in scene.beats:
        begin = round((beat - BEEP_SECONDS / 2) * rate)
        angle = scene.x((begin + np.arange(len(tone))) / rate) * math.pi / 2
        sound[begin : begin + len(tone)] += np.stack([np.cos(angle) * tone, np.sin(angle) * tone], axis=1)
    return sound


def side_captions(scene: MovingScene) -> tuple[str, ...]:
    """Captions that name digit and side or direction, all true. Lower case, no full stop."""
    name = CLASS_NAMES[scene.label]
    a, the = with_article(name), f"the digit {name}"
    if scene.motion in ("left", "right"):
        place = f"on the {scene.motion}"
        return (f"{a} {place}", f"{the} {place}", f"{a} stays {place}", f"{a} beeps {place}")
    there = scene.motion.removesuffix("ward")
    here = {"left": "right", "right": "left"}[there]
    return (
        f"{a} moves to the {there}",
        f"{the} moves to the {there}",
        f"{a} moves from the {here} to the {there}",
        f"{the} moves from {here} to {there}",
    )


def captions(scene: MovingScene) -> tuple[str, ...]:
    """All captions of a clip: first those with side or direction, then those that name the digit alone."""
    name = CLASS_NAMES[scene.label]
    return (*side_captions(scene), *(template.format(name) for template in TEMPLATES), with_article(name))


def _exposure(scene: MovingScene, begin: float, end: float) -> float:
    """Share of the time from `begin` to `end` during which a flash is on."""
    lit = sum(max(0.0, min(end, beat + BEEP_SECONDS / 2) - max(begin, beat - BEEP_SECONDS / 2)) for beat in scene.beats)
    return lit / (end - begin)


def _disc(x: float, y: float, diameter: float, size: int) -> np.ndarray:
    """Coverage of each pixel by a disc with a soft edge of two pixels, [H, W]."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    distance = np.hypot(centres[None, :] - x, centres[:, None] - y)
    cover: np.ndarray = np.clip((diameter / 2 - distance) * size / 2 + 0.5, 0, 1).astype(np.float32)
    return cover


@functools.lru_cache(maxsize=2048)
def _centre_of(scan: int, cells: bytes) -> tuple[float, float]:
    side = 64
    ink = np.frombuffer(cells, dtype=np.float32).reshape(8, 8)
    cover = coverage(Digit(0, scan, 0.5, 0.5, 1.0, (0, 0, 0), 0, 0), ink, side)
    centres = (np.arange(side) + 0.5) / side - 0.5
    return float((cover.sum(0) * centres).sum() / cover.sum()), float((cover.sum(1) * centres).sum() / cover.sum())


def _centre_of_ink(number: int, scan: np.ndarray) -> tuple[float, float]:
    """Offset of the centre of mass of a scan's ink from the middle of its square, right and down, in sides of the square."""
    return _centre_of(number, np.ascontiguousarray(scan, dtype=np.float32).tobytes())
