"""Video modality: mp4, mov, webm and mkv bytes to clips of frames with their times, decoded once for any number of views.

All times are from time stamps, not from frame numbers; `timeline.py` defines time 0. Pixels are RGB as FFmpeg converts them,
turned and mirrored by the display matrix in the file. Views are uint8.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from mmssl.core.errors import RecipeError
from mmssl.core.input_spec import InputSpec
from mmssl.data.corruption import Corruptions
from mmssl.data.inspection import FileFormats, Inspection
from mmssl.data.media.container import BOXES, MATROSKA, check_video
from mmssl.data.media.frames import decode_video, frame_start, too_long, video_extent, video_figures
from mmssl.data.media.torchcodec import decode_with_torchcodec, torchcodec_failure
from mmssl.data.modalities.arrays import as_pixels
from mmssl.data.modalities.corruptions.clips import CLIPS as CORRUPTIONS
from mmssl.data.modalities.corruptions.pictures import PICTURES
from mmssl.data.modalities.kernels.video import CLIPS
from mmssl.data.modalities.masks.video import (
    VideoBlocksConfig,
    VideoInverseBlocksConfig,
    VideoJepaConfig,
    VideoOrderConfig,
)
from mmssl.data.modalities.views.choice import ChoiceConfig
from mmssl.data.modalities.views.video import (
    ClipViewConfig,
    EvalClipView,
    EvalFrameView,
    FrameViewConfig,
    Span,
)
from mmssl.data.modality import DecodeError, Modality, ModalityConfig, View, build_views
from mmssl.data.timeline import Clip, Extent, Window

_WANTED = (
    "a path, bytes, a pair (frames [T, H, W, 3], frames a second), or a mmssl.data.timeline.Clip: frames, non-decreasing "
    "times [T], seconds"
)

Backend = Literal["pyav", "torchcodec"]
VideoViewConfig = Annotated[
    ClipViewConfig
    | FrameViewConfig
    | VideoOrderConfig
    | VideoBlocksConfig
    | VideoInverseBlocksConfig
    | VideoJepaConfig
    | ChoiceConfig,
    Field(discriminator="kind"),
]


class VideoModality(Modality):
    """Videos: frames with times, as `Clip`s.

    Args:
        fps: frame rate to keep, see `VideoConfig`.
        max_pixels: limit for one frame. max_bytes: limit for all frames of a clip. Both are checked before decoding.
        backend: decoder, see `VideoConfig`.
    """

    kernels = CLIPS
    visual = True
    moving = True

    def __init__(
        self,
        name: str,
        extensions: tuple[str, ...],
        views: Mapping[str, View],
        fps: float | None,
        max_pixels: int,
        max_bytes: int,
        backend: Backend = "pyav",
    ) -> None:
        super().__init__(name, extensions, views)
        self.fps = fps
        self.backend = backend
        self.max_pixels = max_pixels
        self.max_bytes = max_bytes

    @property
    def corruptions(self) -> Corruptions:  # type: ignore[override]
        """Those of pictures; of several frames also those in time."""
        return {**PICTURES, **CORRUPTIONS} if self.view("eval").blank().ndim == 4 else PICTURES

    def extent(self, data: bytes, extension: str) -> Extent:
        """Start and end of the video stream, by the header, or else by the time stamps.

        Raises:
            DecodeError: as `decode`, as far as the header tells.
        """
        return video_extent(data, self.max_pixels)

    def frame_start(self, data: bytes, moment: float) -> float:
        """Start time of the frame on screen at `moment`; `moment` itself before the first frame.

        Raises:
            DecodeError: "missing" (no video stream), "undecodable".
        """
        return frame_start(data, moment)

    def decode(self, data: bytes, extension: str, window: Window | None = None) -> Clip:
        """Decode the frames on screen within the window, with their times. The format is detected from the bytes.

        Decoding starts at the key frame before the window. The clip is shorter than the window if the video ends within it.

        Raises:
            DecodeError: "missing" (no video stream), "undecodable" (foreign, damaged, cut short), "empty" (0 bytes, or no frame
                in the window), "too_large".
        """
        decode = decode_video if self.backend == "pyav" else decode_with_torchcodec
        return decode(data, window, fps=self.fps, max_pixels=self.max_pixels, max_bytes=self.max_bytes)

    def length(self, value: Clip) -> float:
        """Duration of a clip in seconds."""
        return value.seconds

    def frame_times(self, value: Clip) -> np.ndarray:
        """Time at which each frame is first shown."""
        return value.times

    def inspect(self, data: bytes, extension: str) -> Inspection:
        """Length, frame rate and size, from headers and time stamps; decodes every frame and keeps none."""
        video = video_figures(data, self.max_pixels)
        rate = video.frames / video.seconds
        return Inspection(
            {"seconds": [video.seconds], "frames a second": [rate], "width": [video.width], "height": [video.height]}
        )

    def from_value(self, value: Any) -> Clip:
        """Check a clip; frames may be a tensor, uint8 or floats in [0, 1].

        Args:
            value: a `Clip` (frames, their times, seconds), or a pair (frames, frames a second).

        Raises:
            DecodeError: "type", "shape", "empty", "not_finite", "range", "too_large".
        """
        if isinstance(value, tuple) and len(value) == 2:
            value = _clip_at(*value)
        if not isinstance(value, Clip):
            raise DecodeError("type", f"got {type(value).__qualname__}, wanted {_WANTED}")
        frames, times = as_pixels(value.frames, _WANTED), np.asarray(value.times, dtype=np.float64)
        if frames.ndim != 4 or frames.shape[3] != 3 or times.shape != frames.shape[:1]:
            raise DecodeError(
                "shape", f"got frames {list(frames.shape)} and times {list(times.shape)}, wanted {_WANTED}"
            )
        if not (np.diff(times, prepend=0, append=value.seconds) >= 0).all() or not 0 < value.seconds < np.inf:
            raise DecodeError(
                "range", f"got times that decrease, or lie outside 0 to {value.seconds:g} s, wanted {_WANTED}"
            )
        pixels = frames.shape[1] * frames.shape[2]
        if pixels > self.max_pixels:
            raise DecodeError(
                "too_large", f"got frames of {pixels} pixels, wanted at most {self.max_pixels} (`max_pixels`)"
            )
        if frames.nbytes > self.max_bytes:
            raise too_long(f"{len(frames)}", pixels, self.max_bytes)
        return Clip(frames, times, float(value.seconds))


def _clip_at(frames: Any, rate: Any) -> Clip:
    """A clip of constant frame rate.

    Raises:
        DecodeError: "range": no frame rate.
    """
    if not isinstance(rate, int | float | Fraction | np.integer | np.floating) or not 0 < rate < np.inf:
        raise DecodeError("range", f"got {rate!r} frames a second, wanted a number above 0")
    frames = as_pixels(frames, _WANTED)
    return Clip(frames, np.arange(len(frames)) / float(rate), len(frames) / float(rate))


class VideoConfig(ModalityConfig):
    """Video settings: size, length and frame rate of the views, and the decoder.

    Attributes:
        size: height and width of views in pixels; a view may have a `size` of its own.
        frames: number of frames of every view that is a clip.
        seconds: length of these views; None: the whole decoded window, so that frames are closer in shorter videos.
        fps: keep only frames on screen at multiples of 1 / fps seconds; saves memory and time if views have a lower frame rate
            than videos. None: keep all.
        views: kind of view that an objective needs -> its settings.
        eval: the view "eval", which always exists: a "clip", or the "frame" in the middle.
        max_pixels: videos with larger frames are refused before decoding; the default is 4096 x 2304.
        max_bytes: clips with more bytes of pixels are refused; the default is 540 frames of 640 x 480.
        backend: decoder of frames: "pyav", or "torchcodec", which must be installed with FFmpeg libraries that it can load.
            Frames and times are equal; pixels differ slightly by the conversion to RGB.
    """

    kind: Literal["video"] = "video"
    size: int = Field(ge=8)
    frames: int = Field(default=8, ge=1)
    seconds: float | None = Field(default=None, gt=0)
    fps: float | None = Field(default=None, gt=0, le=1000)
    views: dict[str, VideoViewConfig] = Field(default={"crop": ClipViewConfig()})
    eval: Literal["clip", "frame"] = "clip"
    max_pixels: int = Field(default=4096 * 2304, ge=1)
    max_bytes: int = Field(default=500_000_000, ge=1)
    backend: Backend = "pyav"

    files = FileFormats(
        "a video",
        {"mov": rb"....ftypqt", "webm": MATROSKA + rb".{0,40}webm", "mkv": MATROSKA, "mp4": BOXES},
        columns=("video",),
        template="a video of a {}",
        verify=check_video,
    )

    @classmethod
    def usual(cls) -> VideoConfig:
        """Videos of any size and length."""
        return cls(size=224)

    def input_spec(self) -> InputSpec:
        """Size and length of the views."""
        return InputSpec(pixels=self.size, seconds=self.seconds)

    @model_validator(mode="after")
    def _check(self) -> VideoConfig:
        if self.fps is not None and self.seconds is not None and self.fps * self.seconds < self.frames:
            raise ValueError(
                f"got views of {self.frames} frames in {self.seconds:g} s, and fps {self.fps:g}, which keeps fewer: "
                f"raise fps to {self.frames / self.seconds:g} or more, or remove it"
            )
        self._views()  # raises on settings that do not fit
        return self

    @property
    def span(self) -> Span:
        """Frames, seconds and size of the views."""
        return Span(self.frames, self.seconds, self.size)

    def build(self, name: str) -> VideoModality:
        """Build the modality with its name in the recipe.

        Raises:
            RecipeError: the backend cannot decode on this machine.
        """
        failure = torchcodec_failure() if self.backend == "torchcodec" else None
        if failure is not None:
            raise RecipeError(
                f"modalities.{name}.backend: got 'torchcodec', which cannot decode here ({failure}): install a torchcodec for this "
                "torch and the FFmpeg libraries, or set backend 'pyav', which needs neither"
            )
        extensions = self.extensions or ("mp4", "webm", "mkv", "mov")
        return VideoModality(name, extensions, self._views(), self.fps, self.max_pixels, self.max_bytes, self.backend)

    def _views(self) -> dict[str, View]:
        evaluation = EvalClipView(self.span) if self.eval == "clip" else EvalFrameView(self.size)
        return build_views(self.views, lambda view: view.build(self.span), evaluation)
