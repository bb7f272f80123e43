"""Sounds as mp3, Opus and AAC, and through these codecs and back."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from mmssl.data.media.sound_file import open_sound, read_samples


class LossyCodec(NamedTuple):
    """FFmpeg's names of a container and an encoder, and the rates in Hz that the encoder takes, rising."""

    form: str
    encoder: str
    rates: tuple[int, ...]


_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
CODECS = {
    "mp3": LossyCodec("mp3", "libmp3lame", _RATES),
    "opus": LossyCodec("ogg", "libopus", (8_000, 12_000, 16_000, 24_000, 48_000)),
    "aac": LossyCodec("ipod", "aac", _RATES),
}
_FEW_BITS, _SLOWER = 32_000, 24_000
_FRAMES = 4096  # samples of silence behind a sound, so that no codec lacks its last frame


def coding_rate(codec: str, rate: int, bit_rate: int) -> int:
    """The rate in Hz at which a sound of `rate` is coded: the next one that the codec has.

    With less than 32 kbit/s it is at most 24 kHz: mp3 has no such bit rates above (ISO/IEC 11172-3), and FFmpeg's AAC does not
    keep them there.
    """
    rates = CODECS[codec].rates
    wanted = min(rate, _SLOWER) if bit_rate < _FEW_BITS else rate
    return next((one for one in rates if one >= wanted), rates[-1])


def through_codec(wave: np.ndarray, codec: str, rate: int, bit_rate: int) -> np.ndarray:
    """Encode a channel and decode it again, without delay: float32 [samples], as many as given.

    Args:
        wave: float [samples] in [-1, 1].
        codec: one of `CODECS`.
        rate: in Hz, one of the codec's.
        bit_rate: in bits a second.
    """
    with open_sound(encode_lossy(np.pad(wave, (0, _FRAMES))[None], codec, rate, bit_rate)) as coded:
        heard: np.ndarray = read_samples(coded, 0, len(wave))[0]
    return heard


def encode_lossy(wave: np.ndarray, codec: str, rate: int, bit_rate: int) -> bytes:
    """Encode a sound: the bytes of a file in the codec's container.

    Args:
        wave: float [channels, samples] in [-1, 1], one or two channels.
        codec, rate, bit_rate: see `through_codec`.
    """
    import av

    form, encoder, _ = CODECS[codec]
    file = io.BytesIO()
    with av.open(file, "w", format=form, options={"fflags": "+bitexact"}) as out:
        stream: Any = out.add_stream(encoder, rate=rate)
        stream.bit_rate = bit_rate
        stream.layout = "mono" if len(wave) == 1 else "stereo"
        stream.codec_context.thread_count = 1
        interleaved = np.ascontiguousarray(wave.T, dtype=np.float32).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(interleaved, format="flt", layout=stream.layout.name)
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return file.getvalue()
