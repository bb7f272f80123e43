"""Read audio files at their stored rate: wav, flac, ogg, opus and mp3, and the containers that `sound.py` opens.

The format is detected from the bytes, not from the extension. Headers are checked before decoding.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import numpy as np

from mmssl.data.media import mp3, wav
from mmssl.data.media.container import is_media
from mmssl.data.media.sound import MediaSound, opened_sound
from mmssl.data.modality import DecodeError

RATES = (1_000, 192_000)  # Hz; other rates mean a damaged header or useless sound
LOUDEST = 8.0
"""Largest sample of a sound, as a multiple of full scale: 18 dB. Floats beyond it have the range of integers."""
_MAGIC = re.compile(rb"RIFF....WAVE|RF64....WAVE|RIFX....WAVE|fLaC|OggS|ID3|\xff[\xe2-\xff]", re.DOTALL)
_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3")
_OGG = {
    b"\x7fFLAC": "FLAC",
    b"Speex ": "Speex",
    b"\x80theora": "Theora",
    b"fishead\0": "a skeleton",
}  # first packet -> codec
_MP3_AHEAD = 20 * 1152  # mp3 frames need bits of earlier ones; after a seek the first frames are silent
_MP3_LENGTH = 0.9  # share of mp3 samples that must decode: decoders silently skip some damaged frames
_LAST = {
    "FLAC": 1.0,
    "MP3": _MP3_LENGTH,
}  # the last sample that must be there, as a share of all; headers tell of other formats


def open_sound(data: bytes) -> AbstractContextManager[Any]:
    """Open a sound and check its header: `samplerate`, `channels` and `frames`, for `read_samples`.

    Raises:
        DecodeError: "undecodable", "empty", "no_rate", "missing" (a video without sound).
    """
    return opened_sound(data) if is_media(data) else _opened(data)


def check_sound(data: bytes) -> None:
    """Check the header of a sound, and that the file is as long as it says: at most the last samples are decoded.

    Raises:
        DecodeError: as `open_sound` and `read_samples`.
    """
    with open_sound(data) as file:
        if not isinstance(file, MediaSound) and file.format in _LAST:
            last = math.ceil(_LAST[file.format] * file.frames) - 1
            read_samples(file, last, last + 1)


def read_samples(file: Any, start: int, stop: int) -> np.ndarray:
    """Read stored samples `start` to `stop` - 1, [channels, stop - start]; fewer only at the end of a video's audio stream."""
    if isinstance(file, MediaSound):
        return file.read(start, stop)
    ahead = min(start, _MP3_AHEAD) if file.format == "MP3" else 0
    file.seek(start - ahead)
    read: np.ndarray = file.read(ahead + stop - start, dtype="float32", always_2d=True)[ahead:].T
    _check_length(read.shape[1], stop - start, file.format)
    return read


class SoundFigures(NamedTuple):
    """Figures of a stored sound.

    Attributes:
        seconds: its length. rate: in Hz. channels: their number.
        level: root mean square in dB below full scale, at least -120.
        peak: largest absolute sample, as a multiple of full scale.
        clipped: whether three samples in a row are at full scale.
        has_length: whether the header of the file tells the length, so that a cut would be noticed.
    """

    seconds: float
    rate: int
    channels: int
    level: float
    peak: float
    clipped: bool
    has_length: bool


def sound_figures(data: bytes, max_samples: int) -> SoundFigures:
    """Decode a whole sound without resampling, and measure it.

    Raises:
        DecodeError: as `AudioModality.decode`, except that any number of channels is accepted.
    """
    with open_sound(data) as file:
        check_sample_count(file, 0, file.frames, file.frames, file.samplerate, max_samples)
        wave = read_samples(file, 0, file.frames)
        rate, channels = int(file.samplerate), int(file.channels)
    check_wave(wave)
    if wave.shape[1] == 0:
        raise DecodeError("empty", "no samples")
    full = (np.abs(wave) >= 0.999).astype(np.int8)
    clipped = bool((full[:, :-2] & full[:, 1:-1] & full[:, 2:]).any())
    level = 10 * math.log10(max(1e-12, float(np.square(wave, dtype=np.float64).mean())))
    has_length = wav.has_length(data) and mp3.has_length(data)
    return SoundFigures(wave.shape[1] / rate, rate, channels, level, peak_of(wave), clipped, has_length)


def check_wave(wave: np.ndarray) -> None:
    """Refuse NaN, infinity, and floats far beyond full scale, which hold the range of integers.

    Raises:
        DecodeError: "not_finite", "range".
    """
    peak = peak_of(wave)
    if peak <= LOUDEST:
        return
    if not np.isfinite(wave).all():
        raise DecodeError("not_finite", f"{int((~np.isfinite(wave)).sum())} samples are NaN or infinite")
    raise DecodeError(
        "range",
        f"got samples up to {peak:g}, wanted floats in [-1, 1] (at most {LOUDEST:g}, and those beyond 1 are clipped): divide by "
        "32768 if they have the range of int16",
    )


def peak_of(wave: np.ndarray) -> float:
    """Largest absolute sample; NaN if there is one."""
    return float(np.maximum(wave.max(initial=0), -wave.min(initial=0)))


def check_sample_count(file: Any, start: int, stop: int, count: int, rate: int, limit: int) -> None:
    """Refuse more than `limit` samples over all channels: stored samples `start` to `stop`, or `count` samples at `rate`.

    Raises:
        DecodeError: "too_large".
    """
    samples = file.channels * max(stop - start, count)
    if samples > limit:
        raise DecodeError(
            "too_large",
            f"got {(stop - start) / file.samplerate:.1f} s of {file.channels} channels at {file.samplerate} Hz, {samples} "
            f"samples (at {rate} Hz if that is more), wanted at most {limit} (`max_samples`)",
        )


@contextmanager
def _opened(data: bytes) -> Iterator[Any]:
    """Open a sound file and check its header; errors of libsndfile become DecodeErrors."""
    import soundfile

    if not data:
        raise DecodeError("empty", "got 0 bytes, wanted a sound")
    if not _MAGIC.match(data):
        raise DecodeError(
            "undecodable", f"got {len(data)} bytes beginning with {data[:12]!r}, wanted wav, flac, ogg, opus or mp3"
        )
    _check_codec(data)
    try:
        with soundfile.SoundFile(io.BytesIO(wav.with_length(mp3.with_length(data)))) as file:
            _check_header(file, data)
            yield file
    except soundfile.LibsndfileError as error:
        # libsndfile's message for a header with rate 0.
        if "SF_INFO struct incomplete" in str(error):
            raise DecodeError(
                "no_rate", f"the header has no sample rate, wanted {RATES[0]} to {RATES[1]} Hz"
            ) from error
        text = str(error.error_string).strip() or type(error).__name__
        raise DecodeError("undecodable", f"{len(data)} bytes beginning with {data[:12]!r}: {text}") from error


def _check_header(file: Any, data: bytes) -> None:
    if file.format not in _FORMATS:
        raise DecodeError("undecodable", f"got {file.format} after a tag, wanted wav, flac, ogg, opus or mp3")
    if not RATES[0] <= file.samplerate <= RATES[1]:
        raise DecodeError("no_rate", f"got {file.samplerate} Hz in the header, wanted {RATES[0]} to {RATES[1]}")
    if file.format == "OGG" and not _ends_with_last_page(data):
        raise DecodeError("undecodable", f"truncated file: got {len(data)} bytes of Ogg without a last page")
    if file.format == "OGG" and _is_chained(data):
        raise DecodeError(
            "undecodable",
            "got several concatenated Ogg streams, of which only the first would be decoded: merge them into one",
        )
    if file.frames <= 0:
        raise DecodeError("empty", f"no samples in {len(data)} bytes of {file.format}")
    if file.frames > 1 << 48:  # libsndfile neither knows the length of such streams nor reads them to their end
        raise DecodeError("undecodable", f"the {file.format} header has no length: write the file again")


def _check_codec(data: bytes) -> None:
    """Refuse Ogg files of other codecs by name: libsndfile has no words for them."""
    packet = data[27 + data[26] :][:8] if data.startswith(b"OggS") and len(data) > 26 else b""
    for start, codec in _OGG.items():
        if packet.startswith(start):
            raise DecodeError(
                "undecodable",
                f"got {codec} in Ogg, wanted Vorbis or Opus: convert it, as in `ffmpeg -i a.ogg a.flac`",
            )


def _ends_with_last_page(data: bytes) -> bool:
    page = data[data.rfind(b"OggS") :][
        : 27 + 255
    ]  # RFC 3533: flags at byte 5 (4: the last), lengths of segments from byte 27
    lengths = page[27 : 27 + page[26]] if len(page) > 26 else b""
    return bool(lengths) and bool(page[5] & 4) and data.rfind(b"OggS") + 27 + len(lengths) + sum(lengths) <= len(data)


def _is_chained(data: bytes) -> bool:
    """Whether another stream follows the last page of the first one (RFC 3533, 4)."""
    place, ended = 0, False
    while data[place : place + 4] == b"OggS" and len(data) >= place + 27:
        flags, segments = data[place + 5], data[place + 26]
        if ended and flags & 2:
            return True
        ended = ended or bool(flags & 4)
        place += 27 + segments + sum(data[place + 27 : place + 27 + segments])
    return False


def _check_length(got: int, wanted: int, form: str) -> None:
    if got < wanted * (_MP3_LENGTH if form == "MP3" else 1):
        raise DecodeError("undecodable", f"truncated file: decoded {got} samples, wanted {wanted} as in the header")
