"""Wav files whose header tells no length are read to their end, and are told from files that were cut short."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from mmssl.data.media.wav import PLACEHOLDER, has_length, with_length
from mmssl.data.modality import DecodeError
from tests.data.modalities.test_audio import build

RATE = 8_000
WAVE = np.random.default_rng(0).integers(-9000, 9000, (2000, 2), dtype=np.int16)
FORMS = ("WAV", "WAVEX", "RF64", "RIFX", "extra chunk")


def encode(form: str = "WAV") -> bytes:
    """A wav file: RIFF, RF64 (sizes in ds64), in big-endian order, or with a LIST of ffmpeg before the samples."""
    file = io.BytesIO()
    kind = "WAV" if form in ("RIFX", "extra chunk") else form
    soundfile.write(file, WAVE, RATE, format=kind, subtype="PCM_16", endian="BIG" if form == "RIFX" else None)
    data = file.getvalue()
    if form != "extra chunk":
        return data
    place, chunk = data.index(b"data"), b"LIST\x05\0\0\0INFOx\0"
    return told(data[:place] + chunk + data[place:], None, len(data) + len(chunk) - 8)


def told(data: bytes, samples: int | None, whole: int | None = None) -> bytes:
    """The file with other sizes in its header: of the samples, and of all (minus 8)."""
    order, wide = "big" if data[:4] == b"RIFX" else "little", data[:4] == b"RF64"
    width, place = (8, 28) if wide else (4, data.index(b"data") + 4)
    made = bytearray(data)
    if samples is not None:
        made[place : place + width] = samples.to_bytes(width, order)
    if whole is not None:
        made[20 if wide else 4 : 28 if wide else 8] = whole.to_bytes(width, order)
    return bytes(made)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("samples", "whole"),
    [
        (0xFFFFFFFF, 0xFFFFFFFF),  # ffmpeg
        (0x7FFFF000, 0x7FFFF024),  # sox
        (0x7FFFFFFF, 0x80000023),  # arecord
        (0, 0),
        (0, None),
        (0, 36),
        (0xFFFFFFFF, None),
        (2_000_000_000, None),
        (2_000_000_000, 7),
        (9_000, None),  # larger than the file, of which all is there
        (PLACEHOLDER, PLACEHOLDER + 36),
    ],
)
def test_samples_of_unknown_length_go_on_to_the_end(form: str, samples: int, whole: int | None) -> None:
    data = told(encode(form), samples, whole)
    assert not has_length(data)
    whole_wave = build(RATE).decode(data, "wav")
    assert np.array_equal(whole_wave, build(RATE).decode(encode(form), "wav"))
    assert whole_wave.shape == (2, 2000)
    assert build(RATE).extent(data, "wav").seconds == 0.25
    assert np.array_equal(build(RATE).decode(data, "wav", (0.2, 0.1)), whole_wave[:, 1600:])
    assert "no length" in build(RATE).inspect(data, "wav").flags


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kept", [0.3, 0.999])
def test_a_file_that_was_cut_is_refused(form: str, kept: float) -> None:
    data = encode(form)
    for cut in (data[: int(len(data) * kept)], told(data, PLACEHOLDER - 1, PLACEHOLDER + 35)):
        assert has_length(cut)
        with pytest.raises(DecodeError, match=r"truncated file: got \d+ bytes of samples, wanted \d+ as in the header"):
            build(RATE).decode(cut, "wav")


@pytest.mark.parametrize("form", FORMS)
def test_files_that_tell_their_length_are_not_touched(form: str) -> None:
    whole = encode(form)
    empty = told(whole, 0)[: whole.index(b"data") + 8]
    for data in (
        whole,
        whole + b"LIST\4\0\0\0INFO",
        whole + b"trailing bytes",
        empty,
        b"RIFF",
        b"",
        b"fLaC" + bytes(99),
    ):
        assert with_length(data) is data
        assert has_length(data)


def test_an_empty_file_with_further_chunks_is_empty() -> None:
    data = told(encode(), 0)
    empty = data[: data.index(b"data") + 8] + b"LIST\4\0\0\0INFO"
    assert has_length(empty)
    with pytest.raises(DecodeError, match="empty: no samples"):
        build(RATE).decode(empty, "wav")


def test_silence_is_not_taken_for_chunks() -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros((2000, 2), dtype=np.int16), RATE, format="WAV", subtype="PCM_16")
    assert build(RATE).decode(told(file.getvalue(), 0), "wav").shape == (2, 2000)
