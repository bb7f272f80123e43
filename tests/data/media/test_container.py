"""The sound of video files in the audio modality, and files that are not what they should be."""

from __future__ import annotations

import functools
import io
import struct
import wave as wavefile
from collections.abc import Callable

import numpy as np
import pytest

from mmssl.data.media.container import open_container
from mmssl.data.media.encode import encode_clip, exact_rate
from mmssl.data.modalities.audio import AudioConfig, AudioModality
from mmssl.data.modalities.video import VideoConfig, VideoModality
from mmssl.data.modality import DecodeError, Modality

RATE = 48_000
CONTAINERS = ("mp4", "mov", "mkv", "webm")
FRAMES = np.random.default_rng(0).integers(0, 255, (30, 32, 48, 3), dtype=np.uint8)


def audio(rate: int = RATE, **options: object) -> AudioModality:
    return AudioConfig(rate=rate, seconds=1.0, **options).build("audio")  # type: ignore[arg-type]


def video(**options: object) -> VideoModality:
    return VideoConfig(size=16, **options).build("video")  # type: ignore[arg-type]


def clicks(at: float = 1.0, seconds: float = 2.0, channels: int = 2) -> np.ndarray:
    sound = np.zeros((round(seconds * RATE), channels), dtype=np.float32)
    sound[round(at * RATE)] = 0.9
    return sound


def noise(seconds: float, channels: int = 2) -> np.ndarray:
    rng = np.random.default_rng(1)
    slow = np.cumsum(rng.normal(0, 1, (round(seconds * RATE), channels)), axis=0)
    mixed = 0.5 * slow / np.abs(slow).max() + 0.02 * rng.normal(0, 1, slow.shape)
    return np.asarray(np.clip(mixed, -1, 1), dtype=np.float32)


def reason(modality: Modality, data: bytes, window: tuple[float, float] | None = None) -> str:
    with pytest.raises(DecodeError) as caught:
        modality.decode(data, "mp4", window)
    assert caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("start", [0.0, 0.5, 0.333])
def test_a_click_is_where_it_was_put(container: str, start: float) -> None:
    data = encode_clip(container, FRAMES, clicks(), fps=15, rate=RATE, sound_start=start)
    sound = audio().decode(data, container)
    # ffmpeg too is late by a millisecond if Matroska rounds both the time stamp and the samples to skip.
    assert abs(float(np.abs(sound[0]).argmax()) / RATE - (1 + start)) < 0.00101
    assert not np.abs(sound[:, : round((start - 0.03) * RATE)]).any() if start else sound.any()
    extent = audio().extent(data, container)
    assert extent.seconds == pytest.approx(2 + start, abs=0.006)
    assert (
        start - 0.0222 < extent.start < start + 0.0015
    )  # AAC that starts late is stored with its 1,024 samples of priming
    assert sound.shape[1] / RATE == pytest.approx(extent.seconds, abs=0.006)
    shown = video().decode(data, container)
    assert shown.times[0] == 0
    assert shown.seconds == pytest.approx(2, abs=0.002)


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("rate", [8_000, 12_000, 16_000, 24_000, RATE])
def test_opus_of_every_rate_begins_with_its_first_sample(rate: int, alone: bool) -> None:
    wave = noise(2.0)[:: RATE // rate]
    data = encode_clip("webm", None if alone else FRAMES, wave, fps=None if alone else 15, rate=rate)
    assert audio().extent(data, "webm").start == 0
    got = audio().decode(data, "webm")
    assert got.shape == (2, 2 * RATE)  # as ffmpeg 9.0
    np.testing.assert_array_equal(got, decoded(data)[1])


def test_the_rate_of_opus_may_be_a_short_float() -> None:
    data = encode_clip("webm", None, noise(1.0)[::3], rate=16_000)
    place = data.index(b"\xb5\x88" + struct.pack(">d", 16_000))
    short = b"\xb5\x84" + struct.pack(">f", 16_000) + b"\xec\x82\0\0"  # and an empty element in the room left
    np.testing.assert_array_equal(
        audio().decode(data[:place] + short + data[place + 10 :], "webm"), audio().decode(data, "webm")
    )


def decoded(data: bytes) -> tuple[float, np.ndarray]:
    """FFmpeg's time of the first sample in seconds, and all samples, [channels, samples]."""
    import av

    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(audio=0))
        return float(frames[0].pts * frames[0].time_base), np.concatenate([f.to_ndarray() for f in frames], axis=1)


STARTS = {  # container, start in seconds -> sample at which ffmpeg 9.0 starts the sound
    ("mp4", 0.1): 4800 - 1024,  # with AAC's priming
    ("mp4", 0.333): 15_984 - 1024,
    ("mkv", 0.1): 4800,
    ("mkv", 0.333): 15_984,
    ("webm", 0.1): 4848,  # Matroska counts in milliseconds, and Opus has 6.5 of them to skip
    ("webm", 0.333): 16_032,
}


@pytest.mark.parametrize(("container", "start"), STARTS)
def test_a_late_sound_starts_at_the_time_stamp_of_its_first_frame(container: str, start: float) -> None:
    data = encode_clip(container, FRAMES, noise(1.5), fps=15, rate=RATE, sound_start=start)
    first, wave = decoded(data)
    assert round(first * RATE) == STARTS[container, start]
    got = audio().decode(data, container)
    assert not got[:, : STARTS[container, start]].any()
    heard = got[:, STARTS[container, start] :]
    np.testing.assert_array_equal(heard, wave[:, : heard.shape[1]])
    assert wave.shape[1] - heard.shape[1] in range(1024)  # mp4 says where the last frame ends


def test_pictures_that_start_late_are_late() -> None:
    data = encode_clip("mkv", FRAMES, clicks(), times=0.4 + np.arange(30) / 15, rate=RATE)
    clip = video().decode(data, "mkv")
    np.testing.assert_allclose(clip.times, 0.4 + np.arange(30) / 15, atol=0.001)
    assert clip.seconds == pytest.approx(2.4, abs=0.002)
    assert video().extent(data, "mkv") == pytest.approx((2.4, 0.4), abs=0.002)
    assert np.abs(audio().decode(data, "mkv")[0]).argmax() / RATE == pytest.approx(1, abs=0.001)
    assert reason(video(), data, (0.0, 0.3)) == "empty"
    late = video().decode(data, "mkv", (0.2, 0.39))
    np.testing.assert_allclose(late.times, [0.2, 0.2 + 1 / 15, 0.2 + 2 / 15], atol=0.001)


@functools.cache
def half_a_minute(container: str) -> bytes:
    """A sound that starts late, long enough to be sought in."""
    return encode_clip(container, None, noise(30), rate=RATE, sound_start=0.25)


@pytest.mark.parametrize("container", ["mp4", "mkv", "webm"])
@pytest.mark.parametrize("rate", [16_000, RATE])
def test_a_window_is_that_part_of_the_whole(container: str, rate: int) -> None:
    data = half_a_minute(container)
    modality = audio(rate)
    whole = modality.decode(data, container)
    for start, length in ((0.0, 0.2), (0.0, 1.0), (0.2, 0.5), (3.3, 0.77), (23.013, 1.0), (27.7, 0.4), (29.9, 1.0)):
        first = round(start * rate)
        wanted = whole[:, first : first + round(length * rate)]
        got = modality.decode(data, container, (start, length))
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, atol=1e-6)
    assert reason(modality, data, (31.0, 0.1)) == "empty"


@pytest.mark.parametrize("container", ["mp4", "mkv", "webm"])
@pytest.mark.parametrize("rate", [16_000, RATE])
def test_a_window_before_a_late_sound_is_silent_up_to_it(container: str, rate: int) -> None:
    data = encode_clip(container, FRAMES, noise(1.5), fps=15, rate=RATE, sound_start=0.5)
    modality = audio(rate)
    whole = modality.decode(data, container)
    assert not whole[:, : round(0.47 * rate)].any()
    assert np.abs(whole[:, round(0.51 * rate) :]).mean() > 0.01
    for start, length in ((0.0, 0.2), (0.1, 0.3), (0.0, 0.6), (0.3, 0.5), (0.45, 1.0), (0.5, 0.3), (1.2, 0.4)):
        first = round(start * rate)
        got = modality.decode(data, container, (start, length))
        assert got.shape == (2, round(length * rate))
        np.testing.assert_allclose(got, whole[:, first : first + round(length * rate)], atol=1e-6)


def live(data: bytes) -> bytes:
    """The same packets in a file whose header was written before anybody knew how long it would be, and without an index."""
    import av

    file = io.BytesIO()
    with av.open(io.BytesIO(data)) as old, av.open(file, "w", format="webm", options={"live": "1"}) as new:
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                new.mux(packet)
    return file.getvalue()


def test_files_that_do_not_say_how_long_they_are() -> None:
    import av

    known = encode_clip("webm", FRAMES, noise(2.0), fps=15, rate=RATE)
    data = live(known)
    with av.open(io.BytesIO(data)) as container:
        assert container.duration is None
        assert [stream.duration for stream in container.streams] == [None, None]
    for modality in (audio(), video()):
        extent = modality.extent(data, "webm")
        assert extent == pytest.approx(modality.extent(known, "webm"), abs=0.03)
        for window in (None, (0.7, 0.9), (1.5, 3.0)):
            ours, theirs = (modality.decode(one, "webm", window) for one in (data, known))
            if isinstance(ours, np.ndarray):
                assert np.array_equal(ours, theirs)
            else:
                assert np.array_equal(ours.frames, theirs.frames)
                assert np.array_equal(ours.times, theirs.times)
                assert ours.seconds == pytest.approx(theirs.seconds, abs=0.03)


def test_a_sound_that_was_announced_and_never_written_is_missing() -> None:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        film, _ = out.add_stream("libx264", rate=15), out.add_stream("libopus", rate=RATE, layout="stereo")
        film.width, film.height, film.pix_fmt, film.codec_context.thread_count = 48, 32, "yuv420p", 1
        for frame in FRAMES:
            out.mux(film.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(film.encode(None))
    assert reason(audio(), file.getvalue()) == "missing"
    assert len(video().decode(file.getvalue(), "mkv").frames) == len(FRAMES)


def test_decoders_use_one_thread() -> None:
    with open_container(encode_clip("mp4", FRAMES, clicks(), fps=15, rate=RATE)) as container:
        assert [stream.codec_context.thread_count for stream in container.streams] == [1, 1]


def test_a_sound_that_ends_early_is_short() -> None:
    for container in CONTAINERS:
        data = encode_clip(container, np.repeat(FRAMES, 2, axis=0), clicks(0.5, 1.0), fps=15, rate=RATE)
        assert audio().decode(data, container).shape[1] == pytest.approx(RATE, abs=1024)
        assert audio().decode(data, container, (0.5, 2.0)).shape[1] == pytest.approx(RATE / 2, abs=1024)
        assert reason(audio(), data, (3.0, 0.5)) == "empty"


def test_channels_follow_the_rules_of_sounds() -> None:
    tone = np.sin(np.arange(RATE) * 0.05, dtype=np.float32)[:, None]
    mono = encode_clip("mp4", FRAMES[:2], 0.5 * tone, fps=15, rate=RATE)
    stereo = encode_clip("m4a", None, tone * np.array([0.5, 0.1], dtype=np.float32), rate=RATE)
    eight = encode_clip("mp4", FRAMES[:2], np.repeat(0.5 * tone, 8, axis=1), fps=15, rate=RATE)
    assert [len(audio().decode(data, "mp4")) for data in (mono, stereo)] == [1, 2]
    assert [len(audio(channels="stereo").decode(data, "mp4")) for data in (mono, stereo)] == [2, 2]
    left, right = np.abs(audio().decode(stereo, "m4a")).max(1)
    assert left / right == pytest.approx(5, rel=0.05)
    assert reason(audio(), eight) == "channels"
    assert audio(channels="mono").decode(eight, "mp4").shape == (1, RATE)
    assert reason(audio(channels="mono", max_samples=200_000), eight) == "too_large"


def test_rates_of_broadcasters() -> None:
    assert [str(exact_rate(fps)) for fps in (29.97, 23.976, 59.94, 25, 12.5, 30)] == [
        *("30000/1001", "24000/1001", "60000/1001", "25", "25/2", "30"),
    ]


MP4 = encode_clip("mp4", FRAMES, noise(2), fps=15, rate=RATE)
MUTE = encode_clip("mp4", FRAMES, None, fps=15)
SOUND = encode_clip("mp4", None, noise(1), rate=RATE)


def cut(container: str, share: float) -> bytes:
    data = encode_clip(container, FRAMES, noise(2), fps=15, rate=RATE)
    return data[: int(len(data) * share)]


@functools.cache
def huge() -> bytes:
    """A few kilobytes, of frames with 9.6 million pixels."""
    data = encode_clip("mp4", np.zeros((1, 2400, 4000, 3), dtype=np.uint8), None, fps=15)
    assert len(data) < 20_000
    return data


BAD: dict[str, tuple[Callable[[], bytes], str, str]] = {  # what the video and the audio modality make of it
    "nothing": (lambda: b"", "empty", "empty"),
    "text": (lambda: b"this is no video at all\n" * 20, "undecodable", "undecodable"),
    "a playlist": (lambda: b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n", "undecodable", "undecodable"),
    "a list of files": (lambda: b"ffconcat version 1.0\nfile '/etc/hostname'\n", "undecodable", "undecodable"),
    "half an mp4": (lambda: cut("mp4", 0.5), "undecodable", "undecodable"),
    "half an mkv": (lambda: cut("mkv", 0.5), "undecodable", "undecodable"),
    "half a webm": (lambda: cut("webm", 0.9), "undecodable", "undecodable"),
    "a header alone": (lambda: MP4[:32], "undecodable", "undecodable"),
    "no pictures": (lambda: SOUND, "missing", ""),
    "no sound": (lambda: MUTE, "", "missing"),
    "huge frames": (huge, "too_large", "missing"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_by_what_is_wrong(name: str) -> None:
    make, seen, heard = BAD[name]
    for modality, wanted in ((video(), seen), (audio(), heard)):
        if wanted:
            assert reason(modality, make()) == wanted
            with pytest.raises(DecodeError):
                modality.extent(make(), "mp4")
        else:
            modality.decode(make(), "mp4")


def test_long_videos_are_refused_by_their_header_and_windows_of_them_are_not() -> None:
    small = video(max_bytes=10 * FRAMES[0].size)
    assert reason(small, MP4) == "too_large"
    assert len(small.decode(MP4, "mp4", (0.5, 0.5)).frames) <= 9
    with pytest.raises(DecodeError, match="30 frames"):
        small.decode(MP4, "mp4")


@pytest.mark.parametrize("container", ["m4a", "mkv", "webm"])
def test_long_sounds_are_refused_by_their_header_and_windows_of_them_are_not(container: str) -> None:
    data = encode_clip(container, None, noise(60, 1)[::6], rate=8_000)
    small = audio(8_000, max_samples=300_000)
    assert reason(small, data) == "too_large"
    window = small.decode(data, container, (50.0, 1.0))
    whole = audio(8_000, max_samples=10_000_000).decode(data, container)
    assert whole.shape[1] == pytest.approx(480_000, abs=2_048)
    np.testing.assert_allclose(window, whole[:, 400_000:408_000], atol=1e-6)


@pytest.mark.parametrize("container", ["mp4", "webm"])
def test_damage_never_ends_in_another_error(container: str) -> None:
    original = encode_clip(container, FRAMES[:12], noise(1), fps=15, rate=RATE)
    rng = np.random.default_rng(0)
    ends: set[str] = set()
    for trial in range(60):
        data = bytearray(original)
        for place in rng.integers(0, 800 if trial % 2 else len(data), 8):
            data[place] ^= 1 << int(rng.integers(8))
        for modality in (audio(max_samples=2_000_000), video(max_pixels=100_000, max_bytes=10_000_000)):
            try:
                modality.decode(bytes(data), container)
                modality.extent(bytes(data), container)
            except DecodeError as error:
                ends.add(error.reason)
    assert "undecodable" in ends


def test_a_wav_in_a_sample_begins_at_0() -> None:
    file = io.BytesIO()
    with wavefile.open(file, "wb") as writer:
        writer.setparams((1, 2, RATE, 0, "NONE", ""))
        writer.writeframes(bytes(2 * RATE))
    assert audio().extent(file.getvalue(), "wav") == (1.0, 0.0)
