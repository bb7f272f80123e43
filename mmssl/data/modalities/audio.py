"""Audio modality: wav, flac, ogg, opus, mp3 and the sound of videos, decoded once to float32 waveforms at one sample rate.

Decoding clips nothing. Views are int16 in units of 1 / 32768: half the size of floats, and lossless for 16-bit sources at the
modality's rate; values outside [-1, 1) are clipped there. The encoder's `prepare` scales them back and makes the spectrogram.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from mmssl.core.input_spec import InputSpec
from mmssl.data.inspection import FileFormats, Inspection
from mmssl.data.media.container import SOUNDS as SOUND_FILES
from mmssl.data.media.container import VIDEOS as VIDEO_FILES
from mmssl.data.media.container import first_stream, is_media, open_container, stream_extent
from mmssl.data.media.sound import MediaSound
from mmssl.data.media.sound_file import (
    RATES,
    check_sample_count,
    check_sound,
    check_wave,
    open_sound,
    read_samples,
    sound_figures,
)
from mmssl.data.modalities.arrays import as_array
from mmssl.data.modalities.corruptions.sounds import SOUNDS as CORRUPTIONS
from mmssl.data.modalities.kernels.audio import SOUNDS
from mmssl.data.modalities.masks.audio import (
    SoundBlocksConfig,
    SoundInverseBlocksConfig,
    SoundJepaConfig,
    SoundOrderConfig,
    SpansConfig,
)
from mmssl.data.modalities.resampling import resample, resampling_ratio, source_span
from mmssl.data.modalities.views.audio import (
    FULL_SCALE,
    CentreWindowView,
    Pad,
    RandomWindowConfig,
    SpreadWindowsView,
)
from mmssl.data.modalities.views.byol_a import ByolAConfig
from mmssl.data.modalities.views.choice import ChoiceConfig
from mmssl.data.modality import DecodeError, Modality, ModalityConfig, View, build_views
from mmssl.data.timeline import Extent, Window

ChannelRule = Literal["keep", "mono", "stereo"]
SoundViewConfig = Annotated[
    RandomWindowConfig
    | ByolAConfig
    | SoundOrderConfig
    | SpansConfig
    | SoundBlocksConfig
    | SoundInverseBlocksConfig
    | SoundJepaConfig
    | ChoiceConfig,
    Field(discriminator="kind"),
]

SILENT = -60.0
"""Level in dB relative to full scale below which a sound counts as silent."""
BEYOND = 1.122
"""Peak as a multiple of full scale from which on a sound counts as beyond it: 1 dB, as lossy coding exceeds it by a little."""
_WANTED = (
    "a path, bytes, an array or tensor [channels, samples] or [samples] of floats in [-1, 1] or int16, or a pair "
    "(array, rate in Hz)"
)


class AudioModality(Modality):
    """Audio: sounds as float32 arrays [channels, samples] at `rate`, in [-1, 1] unless the source exceeds it.

    Args:
        rate: sample rate of all values, in Hz.
        channels: "keep": as stored (one or two); "mono": mean of all; "stereo": a single channel is duplicated.
        max_samples: limit on seconds x channels x rate of one decoded window, at the stored rate and at `rate`; checked against
            the header before decoding.
    """

    kernels = SOUNDS
    corruptions = CORRUPTIONS
    audible = True
    relations = frozenset({"shifted", "reversed", "channels"})
    warnings: ClassVar[Mapping[str, str]] = {
        "silent": f"sounds are silent (below {SILENT:g} dB): they carry no information about the other modalities",
        "beyond full scale": "sounds exceed full scale by 1 dB or more: views clip them; scale them to [-1, 1] and pack again",
        "no length": "sounds have no length in their header and are read to their end: a cut would not be noticed",
    }

    def __init__(
        self,
        name: str,
        extensions: tuple[str, ...],
        views: Mapping[str, View],
        rate: int,
        channels: ChannelRule,
        max_samples: int,
    ) -> None:
        super().__init__(name, extensions, views)
        self.rate = self.values_per_second = rate
        self.channels = channels
        self.max_samples = max_samples
        if channels == "mono":
            self.relations = self.relations - {"channels"}

    def length(self, value: np.ndarray) -> float:
        """Seconds of a waveform [channels, samples]."""
        return float(value.shape[1] / self.rate)

    def inspect(self, data: bytes, extension: str) -> Inspection:
        """Length, level, rate and channels of the stored sound, decoded in blocks to save memory."""
        sound = sound_figures(data, self.max_samples)
        check_channels(sound.channels, self.channels)
        flags = {
            "silent": sound.level < SILENT,
            "clipped": sound.clipped,
            "beyond full scale": sound.peak >= BEYOND,
            "no length": not sound.has_length,
        }
        return Inspection(
            {"seconds": [sound.seconds], "level (dB)": [sound.level]},
            {"rate (Hz)": sound.rate, "channels": sound.channels},
            tuple(flag for flag, holds in flags.items() if holds),
        )

    def extent(self, data: bytes, extension: str) -> Extent:
        """Start and length of the sound by its header.

        Raises:
            DecodeError: as `decode`, as far as the header tells.
        """
        if is_media(data):
            with open_container(data) as container:
                return stream_extent(container, first_stream(container, "audio"))
        with open_sound(data) as file:
            return Extent(file.frames / file.samplerate)

    def decode(self, data: bytes, extension: str, window: Window | None = None) -> np.ndarray:
        """Decode to a waveform [channels, samples], float32. Sound of a video that starts after the frames gets silence before it.

        Args:
            data: the file.
            extension: ignored.
            window: (start, length) in seconds: only this span is read and resampled. It equals that span of the whole sound up to
                float rounding, and is shorter if the sound ends within it. From second 20 of a video on, the noise that AAC
                decoders synthesize (at low bit rates) may differ.

        Raises:
            DecodeError: "undecodable" (foreign, damaged or cut short), "empty" (no samples, or none in the window), "no_rate"
                (no valid rate in the header), "not_finite" (NaN or infinite samples), "range" (floats beyond 8 times full scale),
                "channels" (more than two without `mono`), "too_large", "missing" (a video without sound).
        """
        with open_sound(data) as file:
            wave = self._read(file, window)
        check_wave(wave)
        return wave

    def from_value(self, value: Any) -> np.ndarray:
        """Check an array or tensor (floats in [-1, 1], or int16): waveform [channels, samples], float32.

        Args:
            value: [channels, samples], or [samples] for one channel, at `rate`; or a pair (array, rate in Hz), to be resampled.

        Raises:
            DecodeError: "type", "shape", "empty", "not_finite", "range", "channels", "too_large", "no_rate".
        """
        array, stored = value if isinstance(value, tuple) and len(value) == 2 else (value, self.rate)
        wave = np.atleast_2d(as_array(array, _WANTED))
        if wave.dtype.kind != "f" and wave.dtype != np.int16:
            raise DecodeError("type", f"got {wave.dtype}, wanted {_WANTED}")
        if wave.ndim != 2 or wave.shape[0] > wave.shape[1]:
            raise DecodeError(
                "shape", f"got shape {list(wave.shape)}, wanted {_WANTED}; transpose soundfile's [samples, channels]"
            )
        check_channels(len(wave), self.channels)
        if len(wave) > 2:
            raise DecodeError(
                "shape",
                f"got shape {list(wave.shape)}, wanted one or two channels: give a batch as a list, list(batch); mix more, "
                "or give their file",
            )
        ratio = resampling_ratio(self.rate, check_rate(stored))
        if wave.size * max(1.0, float(ratio)) > self.max_samples:
            raise DecodeError(
                "too_large", f"got {wave.size} samples, wanted at most {self.max_samples} (`max_samples`)"
            )
        scale = FULL_SCALE if wave.dtype == np.int16 else 1
        wave = self._mix(wave.astype(np.float32) / np.float32(scale))
        check_wave(wave)
        return wave if ratio == 1 else resample(wave, ratio)

    def _read(self, file: Any, window: Window | None) -> np.ndarray:
        ratio = resampling_ratio(self.rate, file.samplerate)
        late = round(file.start * self.rate) if isinstance(file, MediaSound) else 0
        whole = late + math.ceil(file.frames * ratio)
        first = 0 if window is None else max(0, round(window[0] * self.rate))
        count = (whole if window is None else min(whole, first + round(window[1] * self.rate))) - first
        if count <= 0:
            raise DecodeError(
                "empty", f"no samples in {window or 'the sound'}: it has {file.frames} at {file.samplerate} Hz"
            )
        check_channels(file.channels, self.channels)
        silent = min(max(0, late - first), count)  # samples of the window before the sound starts
        start, stop, skip = source_span(max(0, first - late), count - silent, ratio, file.frames)
        check_sample_count(file, start, stop, count, self.rate, self.max_samples)
        wave = self._mix(read_samples(file, start, stop))
        wave = wave if ratio == 1 else np.ascontiguousarray(resample(wave, ratio)[:, skip : skip + count - silent])
        if wave.shape[1] == 0 and not silent:
            raise DecodeError("empty", f"no samples in {window}: the sound ends before it")
        return np.pad(wave, ((0, 0), (silent, 0))) if silent else wave

    def _mix(self, wave: np.ndarray) -> np.ndarray:
        if self.channels == "mono":
            mixed: np.ndarray = wave.mean(axis=0, keepdims=True, dtype=np.float32)
            return mixed
        if self.channels == "stereo" and len(wave) == 1:
            return np.repeat(wave, 2, axis=0)
        return np.ascontiguousarray(wave)


class AudioConfig(ModalityConfig):
    """Audio settings: sample rate, length and channels of the views.

    Attributes:
        rate: sample rate of all views in Hz, as the encoder needs it.
        seconds: length of every view.
        channels: "keep": one or two as stored, and views have two (a single one is duplicated) so that they stack; "mono": mean
            of all; "stereo": always two.
        views: kind of view that an objective needs -> its settings. The view "eval" always exists: the window in the middle.
        pad: padding of sounds shorter than a view: "repeat" (as many whole repeats as fit, then silence, as in LAION-CLAP) or
            "zero" (silence after them).
        eval_windows: number of windows of the view "eval": 1: the one in the middle; more: evenly spaced from the beginning to
            the end, and encoders average their features. They cover a sound of `eval_windows` x `seconds`.
        max_samples: limit on seconds x channels x rate, checked before decoding; the default is ten minutes of 48 kHz stereo,
            230 MB.
    """

    kind: Literal["audio"] = "audio"
    rate: int = Field(ge=RATES[0], le=RATES[1])
    seconds: float = Field(gt=0)
    channels: ChannelRule = "keep"
    views: dict[str, SoundViewConfig] = Field(default={"crop": RandomWindowConfig()})
    pad: Pad = "repeat"
    eval_windows: int = Field(default=1, ge=1)
    max_samples: int = Field(default=57_600_000, ge=1)

    files = FileFormats(
        "a sound",
        {
            "wav": rb"(RIFF|RF64|RIFX)....WAVE",
            "flac": rb"fLaC",
            "opus": rb"OggS.{24}OpusHead",
            "ogg": rb"OggS",
            "mp3": rb"ID3|\xff[\xe2-\xff]",
            "m4a": rb"....ftypM4[AB]",
        },
        within=VIDEO_FILES,
        columns=("audio", "sound"),
        template="a sound of a {}",
        verify=check_sound,
    )

    @classmethod
    def usual(cls) -> AudioConfig:
        """Sounds with any number of channels, also in videos."""
        return cls(rate=16_000, seconds=10.0, channels="mono", extensions=SOUND_FILES + VIDEO_FILES)

    def input_spec(self) -> InputSpec:
        """Length, rate and channels of the views."""
        return InputSpec(seconds=self.seconds, rate=self.rate, channels=1 if self.channels == "mono" else 2)

    @model_validator(mode="after")
    def _check(self) -> AudioConfig:
        samples = round(self.rate * self.seconds)
        if samples < 1:
            raise ValueError(
                f"got {self.seconds:g} seconds at {self.rate} Hz, wanted at least one sample: raise `seconds`"
            )
        if samples * (1 if self.channels == "mono" else 2) > self.max_samples:
            raise ValueError(
                f"got views of {self.seconds:g} s at {self.rate} Hz, longer than max_samples {self.max_samples}: raise it"
            )
        self._views()  # raises on settings that do not fit
        return self

    def build(self, name: str) -> AudioModality:
        """Build the modality with its name in the recipe."""
        extensions = self.extensions or ("wav", "flac", "ogg", "opus", "mp3", "m4a")
        return AudioModality(name, extensions, self._views(), self.rate, self.channels, self.max_samples)

    def _views(self) -> dict[str, View]:
        shape = (1 if self.channels == "mono" else 2, round(self.rate * self.seconds))
        centre, windows = CentreWindowView(shape, self.pad), self.eval_windows
        evaluation = SpreadWindowsView(shape, self.pad, windows) if windows > 1 else centre
        return build_views(self.views, lambda view: view.build(shape, self.pad), evaluation)


def check_rate(rate: Any) -> int:
    """Check the rate that goes with an array.

    Raises:
        DecodeError: "no_rate".
    """
    if not isinstance(rate, int | float | np.integer | np.floating) or not RATES[0] <= rate <= RATES[1] or rate % 1:
        raise DecodeError("no_rate", f"got the rate {rate!r}, wanted a whole number from {RATES[0]} to {RATES[1]} Hz")
    return int(rate)


def check_channels(got: int, wanted: ChannelRule) -> None:
    """Refuse more than two channels unless they are mixed to mono.

    Raises:
        DecodeError: "channels".
    """
    if got > 2 and wanted != "mono":
        raise DecodeError("channels", f"got {got} channels, wanted one or two; `channels: mono` averages any number")
