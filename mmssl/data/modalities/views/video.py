"""Video views (temporal and spatial crops): clips to uint8 tensors [T, 3, size, size], or to one frame [3, size, size].

A view of T frames over s seconds has the frames on screen in the middle of T equal parts. If a video is shorter than a view, its
last frame repeats. All frames of a view have the same crop, flip, colours and blur, so that motion is that of the video.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from mmssl.core.config import Probability, Range, Share
from mmssl.data.modalities.arrays import to_tensor
from mmssl.data.modalities.views.colours import (
    FactorRange,
    HueRange,
    JitterConfig,
    change_colours,
    draw_jitter,
    to_grey,
)
from mmssl.data.modalities.views.geometry import GeometryView
from mmssl.data.modalities.views.image import CropConfig, centre_crop, gaussian_blur, random_box, resize
from mmssl.data.modality import View
from mmssl.data.timeline import Clip

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Span:
    """Frames, seconds and size of a view of a video.

    Attributes:
        frames: T.
        seconds: its length; None: the whole decoded clip.
        size: H = W in pixels.
    """

    frames: int
    seconds: float | None
    size: int

    def resized(self, size: int | None) -> Span:
        """The same frames at `size` pixels; None: at this size."""
        return self if size is None else replace(self, size=size)

    def instants(self, clip: Clip, start: float) -> list[float]:
        """The T sampled times of a view that begins at `start`."""
        seconds = clip.seconds if self.seconds is None else self.seconds
        return [start + (i + 0.5) * seconds / self.frames for i in range(self.frames)]

    def room(self, clip: Clip) -> float:
        """Seconds by which the clip is longer than the view, at least 0."""
        return 0.0 if self.seconds is None else max(0.0, clip.seconds - self.seconds)


class _FramesConfig(CropConfig, JitterConfig):
    """Attributes: see `ClipViewConfig`."""

    scale: Share = (0.9, 1.0)
    flip: Probability = 0.0
    jitter: Probability = 0.0
    brightness: FactorRange = 0.4
    contrast: FactorRange = 0.4
    saturation: FactorRange = 0.4
    hue: HueRange = 0.1
    grayscale: Probability = 0.0
    blur: Probability = 0.0
    sigma: Range = (0.1, 2.0)
    blur_kernel: float = Field(default=0.1, gt=0, le=0.5)


class ClipViewConfig(_FramesConfig):
    """Random clip: T frames from a random start, with one random resized crop for all frames.

    Attributes:
        size: height and width of the view in pixels; None: the modality's.
        scale, ratio, interpolation: of the crop, as for pictures.
        flip: probability of a horizontal flip of the frames alone. If sounds are stereo or captions name sides, use the
            synchronized augmentation `flip` instead, which flips all modalities together.
        jitter, brightness, contrast, saturation, hue: colour jitter as for pictures (`simclr`), the same for all frames.
        grayscale, blur, sigma, blur_kernel: greyscale and blur as for pictures (`simclr`), the same for all frames.
    """

    kind: Literal["clip"] = "clip"

    def build(self, span: Span) -> ClipView:
        """The view, of the span's size unless its settings have a size."""
        return ClipView(self, span.resized(self.size))


class FrameViewConfig(_FramesConfig):
    """Random frame: one picture [3, size, size], for image encoders.

    Attributes:
        at: time of the frame: "random", or the "middle" of the decoded clip.
        size, scale, ratio, interpolation, flip, jitter, brightness, contrast, saturation, hue: as in a clip.
        grayscale, blur, sigma, blur_kernel: as in a clip, too.
    """

    kind: Literal["frame"] = "frame"
    at: Literal["random", "middle"] = "random"

    def build(self, span: Span) -> FrameView:
        """The view, of the span's size unless its settings have a size."""
        return FrameView(self, span.resized(self.size).size)


class ClipView(View):
    """Random clip: uint8 [T, 3, size, size].

    Parameters: start in seconds, box [top, left, height, width], flip, jitter;
    and if configured: grayscale, sigma (of the blur; 0: none).
    """

    random_time = True

    def __init__(self, config: ClipViewConfig, span: Span) -> None:
        self.config = config
        self.span = span
        self.pixels = span.size

    def draw(self, value: Clip, rng: np.random.Generator) -> dict[str, Any]:
        """Draw start, box, flip and colour jitter."""
        return {"start": float(rng.uniform(0, self.span.room(value))), **_draw(self.config, value, rng)}

    def __call__(self, value: Clip, parameters: Mapping[str, Any]) -> Tensor:
        """The frames."""
        frames = on_screen(value, self.span.instants(value, parameters["start"]))
        return _make(self.config, self.span.size, frames, parameters)

    def blank(self) -> Tensor:
        """Black."""
        return to_tensor(np.zeros((self.span.frames, 3, self.span.size, self.span.size), dtype=np.uint8))

    def companions(self, kind: str) -> Mapping[str, View]:
        """Box and flip."""
        return {f"{kind}.geometry": GeometryView(kind, self, _sides)}


class FrameView(View):
    """Random frame: uint8 [3, size, size]. Parameters: time in seconds, box [top, left, height, width], flip, jitter."""

    def __init__(self, config: FrameViewConfig, size: int) -> None:
        self.config = config
        self.size = self.pixels = size

    def draw(self, value: Clip, rng: np.random.Generator) -> dict[str, Any]:
        """Draw time, box, flip and colour jitter."""
        share = 0.5 if self.config.at == "middle" else float(rng.random())
        return {"time": share * value.seconds, **_draw(self.config, value, rng)}

    def __call__(self, value: Clip, parameters: Mapping[str, Any]) -> Tensor:
        """The picture."""
        return _make(self.config, self.size, on_screen(value, [parameters["time"]]), parameters)[0]

    def blank(self) -> Tensor:
        """Black."""
        return to_tensor(np.zeros((3, self.size, self.size), dtype=np.uint8))

    def companions(self, kind: str) -> Mapping[str, View]:
        """Box and flip."""
        return {f"{kind}.geometry": GeometryView(kind, self, _sides)}


class EvalClipView(View):
    """Deterministic clip from the middle of the video: shortest side resized, centre crop. uint8 [T, 3, size, size]."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.pixels = span.size

    def draw(self, value: Clip, rng: np.random.Generator) -> dict[str, Any]:
        """Nothing."""
        return {}

    def __call__(self, value: Clip, parameters: Mapping[str, Any]) -> Tensor:
        """The frames."""
        frames = on_screen(value, self.span.instants(value, self.span.room(value) / 2))
        return _stack(frames, lambda frame: centre_crop(frame, self.span.size))

    def resized(self, pixels: int) -> EvalClipView:
        """The view of other pixels."""
        return EvalClipView(self.span.resized(pixels))

    def lasting(self, share: float) -> EvalClipView:
        """The view of more or fewer frames, at least one."""
        frames = max(1, round(self.span.frames * share))
        seconds = None if self.span.seconds is None else self.span.seconds * frames / self.span.frames
        return EvalClipView(replace(self.span, frames=frames, seconds=seconds))

    def blank(self) -> Tensor:
        """Black."""
        return to_tensor(np.zeros((self.span.frames, 3, self.span.size, self.span.size), dtype=np.uint8))


class EvalFrameView(View):
    """Deterministic frame from the middle of the video, resized and cropped as in `EvalClipView`: uint8 [3, size, size]."""

    def __init__(self, size: int) -> None:
        self.size = self.pixels = size

    def draw(self, value: Clip, rng: np.random.Generator) -> dict[str, Any]:
        """Nothing."""
        return {}

    def __call__(self, value: Clip, parameters: Mapping[str, Any]) -> Tensor:
        """The picture."""
        return centre_crop(on_screen(value, [value.seconds / 2])[0], self.size)

    def resized(self, pixels: int) -> EvalFrameView:
        """The view of other pixels."""
        return EvalFrameView(pixels)

    def blank(self) -> Tensor:
        """Black."""
        return to_tensor(np.zeros((3, self.size, self.size), dtype=np.uint8))


def on_screen(clip: Clip, instants: Sequence[float]) -> list[np.ndarray]:
    """The frame [H, W, 3] on screen at each time; the first or last frame outside of the clip.

    Repeated frames are the same array, so that `_stack` can transform each once.
    """
    places = np.maximum(np.searchsorted(clip.times, np.asarray(instants), side="right") - 1, 0).tolist()
    seen = {place: clip.frames[place] for place in set(places)}
    return [seen[place] for place in places]


def _sides(clip: Clip) -> tuple[int, int]:
    return clip.frames.shape[1], clip.frames.shape[2]


def _draw(config: _FramesConfig, clip: Clip, rng: np.random.Generator) -> dict[str, Any]:
    height, width = _sides(clip)
    drawn = {
        "box": random_box(height, width, config.scale, config.ratio, rng),
        "flip": bool(rng.random() < config.flip),
        "jitter": draw_jitter(config, rng),
    }
    if config.grayscale:
        drawn["grayscale"] = bool(rng.random() < config.grayscale)
    if config.blur:
        drawn["sigma"] = float(rng.uniform(*config.sigma)) if rng.random() < config.blur else 0.0
    return drawn


def _make(config: _FramesConfig, size: int, frames: Sequence[np.ndarray], parameters: Mapping[str, Any]) -> Tensor:
    x = _stack(frames, lambda frame: resize(frame, parameters["box"], (size, size), config.interpolation))
    if parameters["flip"]:
        x = x.flip(-1)
    x = change_colours(x, parameters["jitter"]) if parameters["jitter"] else x
    x = to_grey(x) if parameters.get("grayscale") else x
    if parameters.get("sigma"):
        x = gaussian_blur(x.flatten(0, 1), config.blur_kernel, parameters["sigma"]).view_as(x)
    return x.contiguous()


def _stack(frames: Sequence[np.ndarray], make: Any) -> Tensor:
    """Transform frames and stack them to [T, 3, H, W]; a frame that repeats in a row is transformed once."""
    import torch  # slow to import, and only needed here

    made: list[Tensor] = []
    for i, frame in enumerate(frames):
        same = i > 0 and frame is frames[i - 1]
        made.append(made[-1] if same else make(frame))
    return torch.stack(made).contiguous()
