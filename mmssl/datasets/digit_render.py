"""Renderer of digit scenes: picture, sound and captions as pure functions of the latents.

Nothing here draws at random or touches a file. To animate a scene, move the digits of a `Scene` and render again: positions are
fractions of the picture with subpixel accuracy, times are seconds.
"""

from __future__ import annotations

import functools
import io
import math
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmssl.core.seeding import generator

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

TEMPLATES = ("the digit {}", "the number {}", "a handwritten {}", "a photo of the digit {}")
"""Zero-shot prompts; each is also a form of caption. None has an article before the name, which would differ for eight."""

KEY_TONES = (
    (941, 1336),
    *((low, high) for low in (697, 770, 852) for high in (1209, 1336, 1477)),
)
"""Low and high frequency in Hz of the telephone key of each digit, 0 to 9 (ITU-T Recommendation Q.23)."""

GRAIN = 4  # standard deviation of the noise in a picture, in grey levels of 255
RAMP_SECONDS = 0.005  # duration of the fade-in and fade-out of a tone
CLEARLY = 0.10  # a digit stands "on the left" if its centre is at least this fraction of the width left of the middle,
HARDLY = 0.05  # and "in the middle" if it is at most this far off; between the two, captions do not mention the place


@dataclass(frozen=True)
class Digit:
    """One digit of a scene.

    Attributes:
        label: 0 to 9.
        scan: row of scikit-learn's `load_digits`.
        x, y: centre as fractions of width and height, from the upper left corner.
        size: side of its square as fraction of the picture's height.
        ink: RGB, 0 to 255.
        begin, end: seconds between which its key tone sounds.
    """

    label: int
    scan: int
    x: float
    y: float
    size: float
    ink: tuple[int, int, int]
    begin: float
    end: float


@dataclass(frozen=True)
class Scene:
    """The latents of a scene, which (with the scans) determine picture, sound and captions.

    Attributes:
        split: "train", "validation" or "test".
        layout: "single", "row" (the first digit stands left of the second) or "column" (the first stands above).
        digits: one or two, in reading order.
        paper: RGB, 0 to 255.
        held_out_pair: these two digits, in this order, never stand together in training.
        level: peak of each tone before panning, 0 to 1.
        seconds: length of the sound.
        form: number of the caption in `.txt`.
        noise: seed of the grain of the picture.
    """

    split: str
    layout: str
    digits: tuple[Digit, ...]
    paper: tuple[int, int, int]
    held_out_pair: bool
    level: float
    seconds: float
    form: int
    noise: int

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Scene:
        """Make a scene from its parsed `.json` field."""
        digits = tuple(
            Digit(**{name: digit[name] for name in Digit.__annotations__ if name != "ink"}, ink=tuple(digit["ink"]))
            for digit in document["digits"]
        )
        own = {name: document[name] for name in cls.__annotations__ if name not in ("digits", "paper")}
        return cls(**own, digits=digits, paper=tuple(document["paper"]))


def render_image(scene: Scene, scans: np.ndarray, size: int = 64) -> np.ndarray:
    """Render the picture of a scene.

    Args:
        scene: what to draw.
        scans: [N, 8, 8] ink of every scan, 0 to 1.
        size: H = W in pixels.

    Returns:
        uint8 [H, W, 3].
    """
    grain = generator(scene.noise, "grain").standard_normal((size, size), dtype=np.float32)
    picture = np.tile(plane(scene.paper), (1, size, size))  # [3, H, W]
    for digit in scene.digits:
        cover = coverage(digit, scans[digit.scan], size)
        picture += cover * (plane(digit.ink) - picture)
    picture += GRAIN * grain
    return np.ascontiguousarray(np.clip(np.rint(picture), 0, 255).astype(np.uint8).transpose(1, 2, 0))


def plane(colour: tuple[int, int, int]) -> np.ndarray:
    """A colour as float32 [3, 1, 1]."""
    return np.array(colour, dtype=np.float32)[:, None, None]


def coverage(digit: Digit, scan: np.ndarray, size: int) -> np.ndarray:
    """Ink coverage of each pixel, [H, W]: the scan [8, 8] resized by Keys' bicubic kernel to the digit's place."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    rows = _cubic(((centres - digit.y) / digit.size + 0.5) * 8 - 0.5)
    columns = _cubic(((centres - digit.x) / digit.size + 0.5) * 8 - 0.5)
    # The scans are soft counts of 4 x 4 cells; the steep middle of a ramp gives a stroke an edge of about two pixels.
    cover: np.ndarray = np.clip((rows @ scan @ columns.T - 0.4) / 0.4, 0, 1, dtype=np.float32)
    return cover


def _cubic(position: np.ndarray) -> np.ndarray:
    """Weights [H, 8] of the 8 cells of a scan at positions [H] in cells (Keys 1981, a = -1/2); no ink outside."""
    t = np.abs(position[:, None] - np.arange(8, dtype=np.float32))
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return np.where(t < 1, near, np.where(t < 2, far, np.float32(0)))


def render_sound(scene: Scene, rate: int = 8000) -> np.ndarray:
    """Render the stereo sound of a scene: each digit's key tone at its time, panned to its position.

    Constant-power panning: a digit at fraction x of the width has the gains cos(x pi / 2) left and sin(x pi / 2) right, so
    mirroring the picture equals swapping the channels exactly.

    Args:
        scene: what to play.
        rate: samples a second.

    Returns:
        float32 [seconds * rate, 2], left and right, within -1 to 1.
    """
    sound = np.zeros((round(scene.seconds * rate), 2), dtype=np.float32)
    for digit in scene.digits:
        begin, end = round(digit.begin * rate), round(digit.end * rate)
        tone = scene.level * key_tone(digit.label, rate)[: end - begin]
        ramp = fade(round(RAMP_SECONDS * rate))
        tone[: len(ramp)] *= ramp
        tone[-len(ramp) :] *= ramp[::-1]
        sound[begin:end, 0] += math.cos(digit.x * math.pi / 2) * tone
        sound[begin:end, 1] += math.sin(digit.x * math.pi / 2) * tone
    return sound


@functools.lru_cache(maxsize=64)
def key_tone(label: int, rate: int) -> np.ndarray:
    """One second of the telephone key tone of a digit, [rate], peak at most 1."""
    time = np.arange(rate) / rate
    low, high = KEY_TONES[label]
    return (0.5 * np.sin(2 * np.pi * low * time) + 0.5 * np.sin(2 * np.pi * high * time)).astype(np.float32)


@functools.lru_cache(maxsize=8)
def fade(samples: int) -> np.ndarray:
    """Fade-in gains [samples] from 0 to 1 along a squared sine."""
    # Without the fade each tone would begin and end with a click, which is audible (and learnable) at all frequencies.
    return (np.sin((np.arange(samples) + 0.5) / samples * np.pi / 2) ** 2).astype(np.float32)


def captions(scene: Scene) -> tuple[str, ...]:
    """All captions of a scene; every one is true of its latents. Lower case, no full stop."""
    names = [CLASS_NAMES[digit.label] for digit in scene.digits]
    if scene.layout == "single":
        return _of_one(names[0], place(scene.digits[0]))
    (one, other), (a, b) = names, [with_article(name) for name in names]
    if scene.layout == "row":
        return (
            f"{a} to the left of {b}",
            f"{b} to the right of {a}",
            f"{a} left of {b}",
            f"{b} right of {a}",
            f"{a} on the left and {b} on the right",
            f"the digit {one} to the left of the digit {other}",
        )
    return (
        f"{a} above {b}",
        f"{b} below {a}",
        f"{a} over {b}",
        f"{b} under {a}",
        f"{a} at the top and {b} at the bottom",
        f"the digit {one} above the digit {other}",
    )


def place(digit: Digit) -> str | None:
    """Position of a digit in words; None if it is ambiguous."""
    across, down = digit.x - 0.5, digit.y - 0.5
    if any(HARDLY < abs(offset) < CLEARLY for offset in (across, down)):
        return None
    side = ("left" if across < 0 else "right") if abs(across) >= CLEARLY else ""
    end = ("top" if down < 0 else "bottom") if abs(down) >= CLEARLY else ""
    if side and end:
        return f"at the {end} {side}"
    if side:
        return f"on the {side}"
    return f"at the {end}" if end else "in the middle"


def _of_one(name: str, where: str | None) -> tuple[str, ...]:
    something = with_article(name)
    plain = (*(template.format(name) for template in TEMPLATES), something, f"a photo of {something}")
    return plain if where is None else (*plain, f"{something} {where}", f"the digit {name} {where}")


def with_article(name: str) -> str:
    """`an eight`, `a three`."""
    return f"an {name}" if name == "eight" else f"a {name}"


def to_wav(sound: np.ndarray, rate: int = 8000) -> bytes:
    """Encode a sound [samples, channels] as a 16-bit wav file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(sound.shape[1])
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(np.rint(sound * 32767).astype("<i2").tobytes())
    return file.getvalue()
