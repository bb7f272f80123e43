"""Sounds: wav, flac, ogg, opus and mp3 bytes to float32 waveforms at one rate, decoded once for any number of views.

The format is taken from the bytes, never from the extension. Batches travel as int16 in units of 1 / 32768: half the size of
floats, and for 16-bit sources at the modality's rate not a bit is lost; what lies outside [-1, 1) is clipped. The encoder's
`prepare` scales them back and makes the spectrogram.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from mmssl.data.audio_views import CentreWindowView, Pad, RandomWindowConfig
from mmssl.data.modality import DecodeError, Modality, ModalityConfig, View
from mmssl.data.timeline import Extent, Window

Channels = Literal["keep", "mono", "stereo"]

RATES = (1_000, 192_000)  # Hz; a header that says anything else is damaged, or its sound is of no use
_MAGIC = re.compile(rb"RIFF....WAVE|RF64....WAVE|RIFX....WAVE|fLaC|OggS|ID3|\xff[\xe2-\xff]", re.DOTALL)
_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3")
_FILTERS = 600_000  # numbers in the filter bank of a ratio of rates, about: enough for all usual ones to be exact
_STREAMED = (0, 0xFFFFFFFF, 0x7FFFFFFF, 0xFFFFFFFF - 36, 0x7FFFFFFF - 36)  # sizes that say "unknown" in a wav header
_MP3_AHEAD = 20 * 1152  # frames of an mp3 lean on bits of those before them; after a jump the first come out silent
_MP3_LENGTH = 0.9  # without a length in its header, that of an mp3 is an estimate: so much of it must be there


class AudioModality(Modality):
    """Sounds as float32 arrays [channels, samples] at `rate`, in [-1, 1] but for what the source holds beyond.

    Args:
        rate: samples a second of every value, in Hz.
        channels: "keep": as stored (one or two); "mono": their mean; "stereo": one channel is doubled, two stay.
        max_samples: limit on seconds x channels x rate of what is decoded at once, at the stored rate and at `rate`; checked
            against the header, before anything is decoded.
    """

    def __init__(
        self,
        name: str,
        extensions: tuple[str, ...],
        views: Mapping[str, View],
        rate: int,
        channels: Channels,
        max_samples: int,
    ) -> None:
        super().__init__(name, extensions, views)
        self.rate = rate
        self.channels = channels
        self.max_samples = max_samples

    def extent(self, data: bytes, extension: str) -> Extent:
        """Length of the sound by its header.

        Raises:
            DecodeError: as `decode`, as far as the header tells.
        """
        with _opened(data) as file:
            return Extent(file.frames / file.samplerate)

    def decode(self, data: bytes, extension: str, window: Window | None = None) -> np.ndarray:
        """Waveform [channels, samples], float32.

        Args:
            data: the file.
            extension: not looked at.
            window: (start, length) in seconds: only this span is read and resampled. It equals that span of the whole to the
                rounding of floats, and is shorter where the sound ends within it.

        Raises:
            DecodeError: "undecodable" (foreign, damaged or cut short), "empty" (no samples, or none in the window), "no_rate"
                (the header names no usable rate), "not_finite" (NaN or infinite samples), "channels" (more than two, and mono
                was not asked for), "too_large".
        """
        with _opened(data) as file:
            wave = self._read(file, window)
        if not np.isfinite(wave).all():
            raise DecodeError("not_finite", f"{int((~np.isfinite(wave)).sum())} samples are NaN or infinite")
        return wave

    def _read(self, file: Any, window: Window | None) -> np.ndarray:
        ratio = resampling_ratio(self.rate, file.samplerate)
        whole = math.ceil(file.frames * ratio)
        first = 0 if window is None else max(0, round(window[0] * self.rate))
        count = (whole if window is None else min(whole, first + round(window[1] * self.rate))) - first
        if count <= 0:
            raise DecodeError(
                "empty", f"no sample in {window or 'the sound'}: it has {file.frames} at {file.samplerate} Hz"
            )
        start, stop, skip = _source_span(first, count, ratio, file.frames)
        _check_channels(file.channels, self.channels)
        samples = file.channels * max(stop - start, count)
        if samples > self.max_samples:
            raise DecodeError(
                "too_large",
                f"{(stop - start) / file.samplerate:.1f} s of {file.channels} channels at {file.samplerate} Hz are {samples} "
                f"samples (at {self.rate} Hz if that is more), wanted at most {self.max_samples} (`max_samples`)",
            )
        ahead = min(start, _MP3_AHEAD) if file.format == "MP3" else 0
        file.seek(start - ahead)
        stored = file.read(ahead + stop - start, dtype="float32", always_2d=True)[ahead:].T
        _check_length(stored.shape[1], stop - start, file.format)
        wave = self._mix(stored)
        return wave if ratio == 1 else np.ascontiguousarray(_resample(wave, ratio)[:, skip : skip + count])

    def _mix(self, wave: np.ndarray) -> np.ndarray:
        if self.channels == "mono":
            mixed: np.ndarray = wave.mean(axis=0, keepdims=True, dtype=np.float32)
            return mixed
        if self.channels == "stereo" and len(wave) == 1:
            return np.repeat(wave, 2, axis=0)
        return np.ascontiguousarray(wave)


class AudioConfig(ModalityConfig):
    """Sounds.

    Attributes:
        rate: samples a second of every view, in Hz: what the encoder's front-end wants.
        seconds: length of every view.
        channels: "keep": one or two as stored, and views have two (a single one is doubled) so that they stack; "mono": the
            mean of all; "stereo": always two.
        views: kind of view, as objectives ask for it -> how to make it. "eval" is always there besides: the window in the
            middle.
        pad: how sounds shorter than a view are made as long: "repeat" (as often as it fits whole, then silence; LAION-CLAP's
            rule) or "zero" (silence behind them).
        max_samples: sounds of more seconds x channels x rate are refused before they are decoded; the default is ten minutes
            of 48 kHz stereo, 230 MB.
    """

    kind: Literal["audio"] = "audio"
    rate: int = Field(ge=RATES[0], le=RATES[1])
    seconds: float = Field(gt=0)
    channels: Channels = "keep"
    views: dict[str, RandomWindowConfig] = Field(default={"crop": RandomWindowConfig()})
    pad: Pad = "repeat"
    max_samples: int = Field(default=57_600_000, ge=1)

    @model_validator(mode="after")
    def _check(self) -> AudioConfig:
        if "eval" in self.views:
            raise ValueError(
                "the view 'eval' is made from `seconds` alone and cannot be configured: give the view another name"
            )
        samples = round(self.rate * self.seconds)
        if samples < 1:
            raise ValueError(f"seconds {self.seconds:g} at {self.rate} Hz is less than one sample")
        if samples * (1 if self.channels == "mono" else 2) > self.max_samples:
            raise ValueError(
                f"views of {self.seconds:g} s at {self.rate} Hz are longer than max_samples {self.max_samples}: raise it"
            )
        return self

    def build(self, name: str) -> AudioModality:
        """The modality under the name that the recipe gives it."""
        shape = (1 if self.channels == "mono" else 2, round(self.rate * self.seconds))
        views: dict[str, View] = {kind: view.build(shape, self.pad) for kind, view in self.views.items()}
        views["eval"] = CentreWindowView(shape, self.pad)
        extensions = self.extensions or ("wav", "flac", "ogg", "opus", "mp3")
        return AudioModality(name, extensions, views, self.rate, self.channels, self.max_samples)


@contextmanager
def _opened(data: bytes) -> Iterator[Any]:
    """The sound file with a header that was looked at; what libsndfile finds wrong becomes a DecodeError."""
    import soundfile

    if not data:
        raise DecodeError("empty", "0 bytes, wanted a sound")
    if not _MAGIC.match(data):
        raise DecodeError(
            "undecodable", f"{len(data)} bytes beginning with {data[:12]!r}, wanted wav, flac, ogg, opus or mp3"
        )
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_header(file, data)
            yield file
    except soundfile.LibsndfileError as error:
        # This is what libsndfile says of a header with a zero in the place of the rate.
        reason = "no_rate" if "SF_INFO struct incomplete" in str(error) else "undecodable"
        text = str(error.error_string).strip() or type(error).__name__
        raise DecodeError(reason, f"{len(data)} bytes beginning with {data[:12]!r}: {text}") from error


def resampling_ratio(rate: int, stored: int) -> Fraction:
    """`rate` / `stored`, or, where its filter bank would be huge (a header may say 44,101 Hz), that to 0.1 %.

    torchaudio's bank has numerator x denominator entries and takes gigabytes where they have no common factor.
    """
    exact = Fraction(rate, stored)
    ratio, limit = exact, 1024
    while ratio.numerator * ratio.denominator > _FILTERS:
        ratio, limit = exact.limit_denominator(limit), limit // 2
    return ratio


def _check_header(file: Any, data: bytes) -> None:
    if file.format not in _FORMATS:
        raise DecodeError("undecodable", f"{file.format} behind a tag, wanted wav, flac, ogg, opus or mp3")
    if not RATES[0] <= file.samplerate <= RATES[1]:
        raise DecodeError("no_rate", f"the header says {file.samplerate} Hz, wanted {RATES[0]} to {RATES[1]}")
    if file.format == "OGG" and not _ends_with_last_page(data):
        raise DecodeError("undecodable", f"cut short: {len(data)} bytes of Ogg without a last page")
    if file.frames <= 0:
        raise DecodeError("empty", f"no samples in {len(data)} bytes of {file.format}")
    if file.frames > 1 << 48:  # libsndfile can neither tell the length of such streams nor read them to their end
        raise DecodeError("undecodable", f"the {file.format} header does not say how long it is: write the file anew")
    cut = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    if cut and int(cut[1]) > int(cut[2]) and int(cut[1]) not in _STREAMED:
        raise DecodeError(
            "undecodable", f"cut short: the header says {cut[1]} bytes of samples, and there are {cut[2]}"
        )


def _ends_with_last_page(data: bytes) -> bool:
    page = data[data.rfind(b"OggS") :][
        : 27 + 255
    ]  # RFC 3533: flags at byte 5 (4: the last), lengths of segments from byte 27
    lengths = page[27 : 27 + page[26]] if len(page) > 26 else b""
    return bool(lengths) and bool(page[5] & 4) and data.rfind(b"OggS") + 27 + len(lengths) + sum(lengths) <= len(data)


def _check_channels(got: int, wanted: Channels) -> None:
    if got > 2 and wanted != "mono":
        raise DecodeError(
            "channels", f"{got} channels, wanted one or two; `channels: mono` takes the mean of any number"
        )


def _check_length(got: int, wanted: int, form: str) -> None:
    if got < wanted * (_MP3_LENGTH if form == "MP3" else 1):
        raise DecodeError("undecodable", f"cut short: {wanted} samples were announced, and {got} could be decoded")


def _source_span(first: int, count: int, ratio: Fraction, frames: int) -> tuple[int, int, int]:
    """Stored samples [start, stop) from which output samples [first, first + count) are made, and how many come out before them.

    The span begins at a multiple of the ratio's denominator, where the filter bank begins anew, and reaches as far to both
    sides as the filter does.
    """
    new, old = ratio.numerator, ratio.denominator
    if ratio == 1:
        return first, first + count, 0
    reach = math.ceil(6 * old / (0.99 * min(new, old))) + 1  # torchaudio's filter: 6 zero crossings, roll-off 0.99
    block = max(0, first // new - math.ceil(reach / old))
    stop = min(frames, math.ceil((first + count) * old / new) + reach + old)
    return block * old, stop, first - block * new


def _resample(wave: np.ndarray, ratio: Fraction) -> np.ndarray:
    from torchaudio.functional import resample

    made: np.ndarray = resample(torch.from_numpy(wave), ratio.denominator, ratio.numerator).numpy()
    return made
