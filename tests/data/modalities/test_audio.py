from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from pydantic import ValidationError

from mmssl.core.seeding import generator
from mmssl.data.modalities.audio import AudioConfig, AudioModality
from mmssl.data.modality import DecodeError
from mmssl.data.shards.index import ShardIndex
from mmssl.data.stream.batches import EvalStream, TrainStream
from mmssl.datasets import digit_scenes

RATE = 48_000


def sound(seconds: float = 1.0, rate: int = RATE, channels: int = 2) -> np.ndarray:
    """Tones that differ between channels and swell with time, [samples, channels]."""
    t = np.arange(round(seconds * rate)) / rate
    tones = [(0.2 + 0.3 * t / seconds) * np.sin(2 * np.pi * 220 * (c + 1) * t) for c in range(channels)]
    return np.stack(tones, axis=1)


def encode(wave: np.ndarray, form: str = "WAV", subtype: str | None = None, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=form, subtype=subtype)
    return file.getvalue()


def build(rate: int = RATE, seconds: float = 1.0, **options: object) -> AudioModality:
    return AudioConfig(rate=rate, seconds=seconds, **options).build("audio")  # type: ignore[arg-type]


FORMATS = {
    "wav": ("WAV", "PCM_16", 2**-15),
    "wav24": ("WAV", "PCM_24", 2**-23),
    "wav float": ("WAV", "FLOAT", 1e-7),
    "wavex": ("WAVEX", "PCM_16", 2**-15),
    "rf64": ("RF64", "PCM_16", 2**-15),
    "flac": ("FLAC", "PCM_16", 2**-15),
    "ogg": ("OGG", "VORBIS", 0.05),
    "opus": ("OGG", "OPUS", 0.05),
    "mp3": ("MP3", None, 0.05),
}
EVERY = pytest.mark.parametrize("name", FORMATS)
DATA = {name: encode(sound(), form, subtype) for name, (form, subtype, _) in FORMATS.items()}


@EVERY
def test_what_was_encoded_is_decoded(name: str) -> None:
    wave = build().decode(DATA[name], "bin")
    assert wave.dtype == np.float32
    assert wave.shape == (2, RATE)
    assert wave.flags.c_contiguous
    middle = slice(RATE // 10, -RATE // 10)  # lossy formats ring at the ends
    assert np.abs(wave - sound().T)[:, middle].max() <= FORMATS[name][2]


def test_stereo_stays_stereo_and_mono_mono() -> None:
    stereo, mono = encode(sound()), encode(sound(channels=1))
    assert [len(build().decode(data, "wav")) for data in (stereo, mono)] == [2, 1]
    assert [len(build(channels="stereo").decode(data, "wav")) for data in (stereo, mono)] == [2, 2]
    assert [len(build(channels="mono").decode(data, "wav")) for data in (stereo, mono)] == [1, 1]
    kept, mixed = build().decode(stereo, "wav"), build(channels="mono").decode(stereo, "wav")
    assert np.abs(kept[0] - kept[1]).max() > 0.5
    np.testing.assert_allclose(mixed[0], kept.mean(0), atol=1e-7)
    doubled = build(channels="stereo").decode(mono, "wav")
    assert (doubled[0] == doubled[1]).all()


def test_six_channels_have_a_mean_and_no_sides() -> None:
    data = encode(sound(channels=6))
    assert build(channels="mono").decode(data, "wav").shape == (1, RATE)
    for channels in ("keep", "stereo"):
        assert reason(build(channels=channels), data) == "channels"


@EVERY
@pytest.mark.parametrize("rate", [RATE, 16_000, 44_100])
def test_a_window_is_that_part_of_the_whole(name: str, rate: int) -> None:
    modality = build(rate)
    whole = modality.decode(DATA[name], "bin")
    for start, length in ((0.0, 0.25), (0.4013, 0.3), (0.9, 0.5)):
        first = round(start * rate)
        wanted = whole[:, first : first + round(length * rate)]
        got = modality.decode(DATA[name], "bin", (start, length))
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, atol=1e-6)
    assert reason(modality, DATA[name], (1.5, 0.1)) == "empty"


def test_only_the_window_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = soundfile.SoundFile.read

    def counted(self: soundfile.SoundFile, frames: int = -1, *args: object, **options: object) -> np.ndarray:
        read.append(frames)
        return original(self, frames, *args, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    build(16_000).decode(encode(sound(20.0)), "wav", (10.0, 1.0))
    assert len(read) == 1
    assert RATE <= read[0] < 1.01 * RATE


@pytest.mark.parametrize(("stored", "rate"), [(48_000, 16_000), (44_100, 16_000), (8_000, 48_000), (22_254, 16_000)])
def test_resampling_keeps_length_and_pitch(stored: int, rate: int) -> None:
    wave = build(rate).decode(encode(sound(1.0, stored, 1), rate=stored), "wav")
    assert abs(wave.shape[1] - rate) <= 1
    spectrum = np.abs(np.fft.rfft(wave[0, : rate - 1], n=rate))
    assert spectrum.argmax() == 220
    expected = sound(1.0, rate, 1).T[:, : wave.shape[1]]
    middle = slice(rate // 10, -rate // 10)
    assert np.abs(wave[:, : expected.shape[1]] - expected)[:, middle].max() < 1e-3


def reason(modality: AudioModality, data: bytes, window: tuple[float, float] | None = None) -> str:
    with pytest.raises(DecodeError) as caught:
        modality.decode(data, "wav", window)
    assert caught.value.detail
    return caught.value.reason


def without_rate() -> bytes:
    data = bytearray(DATA["wav"])
    data[24:28] = struct.pack("<I", 0)
    return bytes(data)


def with_rate(rate: int) -> bytes:
    data = bytearray(DATA["wav"])
    data[24:28] = struct.pack("<I", rate)
    return bytes(data)


def spoilt(value: float) -> bytes:
    wave = sound()
    wave[100, 1] = value
    return encode(wave, "WAV", "FLOAT")


def unknown_length() -> bytes:
    data = bytearray(DATA["flac"])
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    return bytes(data)


def test_flac_in_ogg_is_refused_by_name() -> None:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as out:
        stream = out.add_stream("flac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = RATE
        out.mux([*stream.encode(frame), *stream.encode()])
    with pytest.raises(
        DecodeError, match="undecodable: got FLAC in Ogg, wanted Vorbis or Opus: convert it, as in `ffmpeg"
    ):
        build().decode(file.getvalue(), "ogg")


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "empty"),
    "no samples": (lambda: encode(sound()[:0]), "empty"),
    "no rate": (without_rate, "no_rate"),
    "rate of 1 Hz": (lambda: with_rate(1), "no_rate"),
    "rate of 2 GHz": (lambda: with_rate(2_000_000_000), "no_rate"),
    "NaN": (lambda: spoilt(np.nan), "not_finite"),
    "infinity": (lambda: spoilt(np.inf), "not_finite"),
    "the range of int16": (lambda: encode(30_000 * sound(), "WAV", "FLOAT"), "range"),
    "the range of int16 in float64": (lambda: encode(30_000 * sound(), "WAV", "DOUBLE"), "range"),
    "html": (lambda: b"<html>not found</html>", "undecodable"),
    "aiff": (lambda: encode(sound(), "AIFF"), "undecodable"),
    "aiff behind a tag": (lambda: b"ID3\x03\0\0\0\0\0\x0a" + bytes(10) + encode(sound(), "AIFF"), "undecodable"),
    "magic alone": (lambda: b"fLaC", "undecodable"),
    "flac of unknown length": (unknown_length, "undecodable"),
    "two ogg streams": (lambda: DATA["ogg"] + DATA["ogg"], "undecodable"),
    "two opus streams": (lambda: DATA["opus"] + DATA["opus"], "undecodable"),
    **{
        f"{name} cut": (lambda name=name: DATA[name][: len(DATA[name]) * 6 // 10], "undecodable")  # type: ignore[misc]
        for name in ("wav", "wav float", "flac", "ogg", "opus", "mp3")
    },
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_by_what_is_wrong(name: str) -> None:
    make, wanted = BAD[name]
    assert reason(build(), make()) == wanted


@pytest.mark.parametrize("name", ["wav", "wav float", "flac", "ogg", "opus", "mp3"])
def test_damage_never_ends_in_another_error(name: str) -> None:
    rng = np.random.default_rng(0)
    modality = build(16_000, max_samples=2_000_000)
    ends: set[str] = set()
    for trial in range(40):
        data = bytearray(DATA[name])
        for place in rng.integers(0, 200 if trial % 2 else len(data), 8):
            data[place] ^= 1 << int(rng.integers(8))
        try:
            wave = modality.decode(bytes(data[: rng.integers(len(data))] if trial % 4 == 0 else data), name)
            assert wave.size <= 4_000_000
            assert np.isfinite(wave).all()
        except DecodeError as error:
            ends.add(error.reason)
    assert "undecodable" in ends


def test_float_files_are_decoded_beyond_full_scale() -> None:
    wave = sound(channels=1) / np.abs(sound(channels=1)).max()
    for peak in (1.0, 1.3, 7.9):
        got = build().decode(encode(peak * wave, "WAV", "FLOAT"), "wav")
        np.testing.assert_allclose(got, peak * wave.T, atol=1e-5)
        flags = build().inspect(encode(peak * wave, "WAV", "FLOAT"), "wav").flags
        assert ("beyond full scale" in flags) == (peak > 1)


def test_hours_of_silence_are_refused_before_memory_is_taken() -> None:
    file, minutes = io.BytesIO(), np.zeros((8_000 * 600, 1), dtype=np.int16)
    with soundfile.SoundFile(file, "w", 8_000, 1, format="FLAC", subtype="PCM_16") as writer:
        for _ in range(13):  # 62 million samples in all
            writer.write(minutes)
    data = file.getvalue()
    assert len(data) < 400_000
    tracemalloc.start()
    try:
        assert reason(build(8_000), data) == "too_large"
        assert reason(build(192_000), data, (0.0, 600.0)) == "too_large"  # small as stored, large when resampled
        assert build(8_000).decode(data, "flac", (7_790.0, 1.0)).shape == (1, 8_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000  # all of it would be 250 MB


def test_the_limit_counts_channels() -> None:
    assert build(channels="mono", max_samples=2 * RATE).decode(encode(sound()), "wav").shape == (1, RATE)
    assert reason(build(channels="mono", max_samples=2 * RATE - 1), encode(sound())) == "too_large"


def test_views_have_one_length_and_half_the_size_of_floats() -> None:
    modality = build(seconds=0.5)
    for kind in ("crop", "eval"):
        view = modality.view(kind)
        for channels in (1, 2):
            wave = modality.decode(encode(sound(channels=channels)), "wav")
            made = view(wave, view.draw(wave, np.random.default_rng(0)))
            assert made.dtype == torch.int16
            assert made.shape == view.blank().shape == (2, RATE // 2)
            assert torch.equal(made[0], made[1]) == (channels == 1)
        assert not view.blank().any()
    assert build(channels="mono").view("crop").blank().shape == (1, RATE)


def test_sixteen_bits_travel_without_loss() -> None:
    whole = np.random.default_rng(0).integers(-32768, 32768, (RATE, 2), dtype=np.int16)
    modality = build()
    view = modality.view("eval")(modality.decode(encode(whole), "wav"), {})
    assert (view.numpy() == whole.T).all()


def test_what_is_too_loud_is_clipped_and_does_not_wrap() -> None:
    view = build().view("eval")(np.full((1, RATE), 1.5, dtype=np.float32), {})
    assert (view == 32767).all()
    assert (build().view("eval")(np.full((1, RATE), -1.5, dtype=np.float32), {}) == -32768).all()


def test_eval_is_the_middle_and_crops_are_everywhere() -> None:
    wave = (np.arange(1000, dtype=np.float32) / 32768)[None]
    modality = AudioConfig(rate=1000, seconds=0.1, channels="mono").build("audio")
    middle = modality.view("eval")
    assert middle.draw(wave, np.random.default_rng(0)) == {}
    assert middle(wave, {})[0].tolist() == list(range(450, 550))
    crop = modality.view("crop")
    starts = [crop.draw(wave, np.random.default_rng(seed))["start"] for seed in range(2000)]
    assert min(starts) < 10
    assert max(starts) > 890
    assert all(type(start) is int and 0 <= start <= 900 for start in starts)
    assert np.mean(starts) == pytest.approx(450, abs=25)
    assert crop(wave, {"start": 900})[0].tolist() == list(range(900, 1000))


def test_the_same_seed_gives_the_same_view() -> None:
    wave = sound(3.0).T.astype(np.float32)
    crop = build().view("crop")
    one, same, other = (crop(wave, crop.draw(wave, generator(seed, "audio", "crop0"))) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(("pad", "wanted"), [("repeat", [1, 2, 3, 1, 2, 3, 1, 2, 3, 0]), ("zero", [1, 2, 3] + [0] * 7)])
def test_short_sounds_follow_the_stated_rule(pad: str, wanted: list[int]) -> None:
    wave = (np.array([[1, 2, 3]], dtype=np.float32)) / 32768
    modality = AudioConfig(rate=1000, seconds=0.01, channels="mono", pad=pad).build("audio")  # type: ignore[arg-type]
    for kind in ("crop", "eval"):
        view = modality.view(kind)
        assert view(wave, view.draw(wave, np.random.default_rng(0)))[0].tolist() == wanted


def test_workers_get_equal_copies() -> None:
    copy = pickle.loads(pickle.dumps(build(16_000)))
    assert (copy.decode(DATA["flac"], "flac") == build(16_000).decode(DATA["flac"], "flac")).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"rate": 16000, "seconds": 1.0, "views": {"eval": {"kind": "random_window"}}}', "is reserved"),
        ('{"rate": 16000, "seconds": 0.00001}', "wanted at least one sample"),
        ('{"rate": 16000, "seconds": 4000.0}', "longer than max_samples"),
        ('{"rate": 16, "seconds": 1.0}', "greater than or equal to 1000"),
        ('{"rate": 16000, "seconds": 1.0, "extensions": [".wav"]}', "without a leading dot"),
    ],
)
def test_configs_that_mean_nothing(text: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AudioConfig.model_validate_json(text)


def test_scenes_come_through_the_streams(tmp_path: Path) -> None:
    digit_scenes.write(tmp_path, train=12, validation=0, test=0, shards=2, size=16)
    modalities = {"audio": AudioConfig(rate=8_000, seconds=0.5).build("audio")}
    index = ShardIndex.open([str(tmp_path / "train")], source="train")
    needs = {"audio": {"crop": 2}}
    first, again = (next(TrainStream(index, modalities, needs, batch_size=8, seed=3)) for _ in range(2))
    assert first["audio"]["crop0"].shape == (8, 2, 4_000)
    assert torch.equal(first["audio"]["crop0"], again["audio"]["crop0"])
    assert not torch.equal(first["audio"]["crop0"], first["audio"]["crop1"])
    assert first["audio"]["crop0"].abs().max() > 3_000
    batches = list(EvalStream(index, modalities, {"audio": {"eval": 1}}, batch_size=5))
    assert sum(len(batch) for batch in batches) == 12
