"""Mp3 streams without a length in their header are heard whole, whatever their bit rates and what stands before them."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import soundfile

from mmssl.data.media.mp3 import has_length, with_length
from mmssl.data.modality import DecodeError
from tests.data.modalities.test_audio import build

RATE = 44_100
TAG = b"ID3\x04\x00\x00" + bytes([0, 3, 127, 127]) + bytes(65_535)  # as large as a picture of a cover


def encode(wave: np.ndarray, rate: int = RATE, mode: str = "VARIABLE") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format="MP3", bitrate_mode=mode, compression_level=0.5)
    return file.getvalue()


def bare(data: bytes) -> bytes:
    """The stream without the frame that says how long it is."""
    name = max(data.find(b"Xing", 0, 100), data.find(b"Info", 0, 100))
    assert name > 0
    return data[data.index(data[:2], name) :]


def loud_and_quiet(loud_first: bool) -> np.ndarray:
    """Ten seconds of noise and silence, [samples, 2], and a click in the last half."""
    noise = 0.3 * np.random.default_rng(0).standard_normal((2 * RATE, 2))
    parts = [noise, np.zeros((8 * RATE, 2))]
    click = np.zeros((RATE // 2, 2))
    click[RATE // 4 : RATE // 4 + 1000] = 0.7 * np.sin(np.arange(1000) / 7)[:, None]
    return np.concatenate([*(parts if loud_first else parts[::-1]), click])


@pytest.mark.parametrize("tag", [b"", TAG, TAG + TAG[:10] + bytes(65_535)], ids=["bare", "a tag", "two tags"])
@pytest.mark.parametrize("loud_first", [True, False])
def test_all_of_a_stream_of_changing_bit_rates_is_heard(loud_first: bool, tag: bytes) -> None:
    wave, modality = loud_and_quiet(loud_first), build(RATE)
    data = tag + bare(encode(wave))
    whole = modality.decode(data, "mp3")
    # Encoder and decoder put up to two frames before the sound, and nothing says how much that is.
    assert 0 <= whole.shape[1] - len(wave) <= 2 * 1152
    assert whole.shape[1] % 1152 == 0
    assert modality.extent(data, "mp3").seconds == whole.shape[1] / RATE
    loud = np.flatnonzero(np.abs(whole[0, 10 * RATE + 2000 :]) > 0.3)
    assert abs(loud[0] + 10 * RATE + 2000 - 10.25 * RATE) < 2 * 1152
    part = modality.decode(data, "mp3", (9.5, 1.0))
    start = round(9.5 * RATE)
    assert np.allclose(part, whole[:, start : start + part.shape[1]], atol=1e-6)


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 48_000])
def test_every_version_and_rate(rate: int, channels: int, mode: str) -> None:
    wave = np.tile(np.sin(np.arange(rate) / 9)[:, None] / 2, (1, channels))
    data = bare(encode(wave, rate, mode))
    assert with_length(data).endswith(data)
    decoded = build(rate).decode(data, "mp3")
    assert decoded.shape[0] == channels
    assert 0 <= decoded.shape[1] - rate <= 3 * 1152


DELAY = 576 + 529  # samples of LAME and of the decoder before the sound; ffmpeg 9.0 starts there too, at all of RATES
RATES = (8_000, 22_050, 44_100, 48_000)


def without_delay(data: bytes) -> bytes:
    """The info frame of LAME with nothing but the number of frames, as older encoders write it."""
    name = max(data.find(b"Xing", 0, 100), data.find(b"Info", 0, 100))
    return data[: name + 4] + (1).to_bytes(4) + data[name + 8 : name + 12] + bytes(144) + data[name + 156 :]


def with_vbri(data: bytes) -> bytes:
    """The info frame of Fraunhofer's encoder in its place."""
    name = max(data.find(b"Xing", 0, 100), data.find(b"Info", 0, 100))
    frames = data[name + 8 : name + 12]
    start = data.rindex(b"\xff", 0, name)
    vbri = b"VBRI" + bytes([0, 1, 0, 0, 0, 75]) + len(data).to_bytes(4) + frames
    return data[: start + 4] + bytes(32) + vbri + bytes(name + 156 - start - 36 - len(vbri)) + data[name + 156 :]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("change", [bare, without_delay, with_vbri])
def test_a_stream_without_delay_starts_at_its_first_sample(change: Callable[[bytes], bytes], rate: int) -> None:
    wave = 0.5 * np.sin(np.arange(rate)[:, None] ** 2 / (3 * rate))
    data = encode(wave, rate)
    known, whole = (build(rate).decode(one, "mp3") for one in (data, change(data)))
    assert known.shape[1] == rate
    assert whole.shape[1] % 576 == 0
    np.testing.assert_allclose(whole[:, DELAY : DELAY + rate], known, atol=1e-5)
    part = build(rate).decode(change(data), "mp3", (0.0, 0.1))
    np.testing.assert_allclose(part, whole[:, : part.shape[1]], atol=1e-5)


@pytest.mark.parametrize("change", [without_delay, with_vbri])
def test_a_cut_is_noticed_where_the_number_of_frames_is_known(change: Callable[[bytes], bytes]) -> None:
    data = change(encode(loud_and_quiet(True)))
    assert has_length(data)
    with pytest.raises(DecodeError, match="truncated file"):
        build(RATE).decode(data[: len(data) // 2], "mp3")


def test_a_stream_without_length_is_counted() -> None:
    data = encode(0.1 * np.random.default_rng(0).standard_normal((RATE, 1)))
    assert has_length(data)
    assert not has_length(bare(data))
    assert not has_length(TAG + bare(data))
    assert "no length" in build(RATE).inspect(bare(data), "mp3").flags
    assert "no length" not in build(RATE).inspect(data, "mp3").flags


def test_damage_between_frames_does_not_end_the_count() -> None:
    data = bare(encode(loud_and_quiet(True)))
    place = data.index(data[:2], len(data) // 2)
    hurt = data[:place] + b"\xff\xfb damage \xff" + data[place:]
    lengths = [int.from_bytes(with_length(d).split(b"Info", 1)[1][4:8]) for d in (data, hurt)]
    assert lengths[0] - 2 <= lengths[1] <= lengths[0]


def test_what_knows_its_length_or_is_no_mp3_stays() -> None:
    known = encode(loud_and_quiet(True))
    for data in (
        known,
        TAG + known,
        TAG + b"fLaC" + bytes(100),
        b"",
        b"ID3",
        b"\xff\xfb",
        b"RIFF" + bytes(100),
        TAG[:50],
    ):
        assert with_length(data) is data
