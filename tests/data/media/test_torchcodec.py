"""torchcodec as the decoder of videos: the same frames at the same times as PyAV, and a sentence where it does not work."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from mmssl.core.errors import RecipeError
from mmssl.data.media import torchcodec as media_torchcodec
from mmssl.data.media.encode import encode_clip
from mmssl.data.media.torchcodec import decode_with_torchcodec, torchcodec_failure
from mmssl.data.modalities.video import VideoConfig
from mmssl.data.modality import DecodeError
from tests.data.media.test_container import BAD, FRAMES, noise
from tests.data.modalities.test_video import (
    CONTAINERS,
    MIRRORS,
    SHOWN,
    TIMES,
    build,
    encode,
    numbers,
    quarters,
    with_matrix,
)

FAILURE = torchcodec_failure()
works = pytest.mark.skipif(FAILURE is not None, reason=f"torchcodec does not decode here: {FAILURE}")
WINDOWS = (None, (0.0, 0.5), (1.2345, 0.7), (2.0, 0.001), (1.4, 0.6), (3.0, 99.0))


@works
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", TIMES)
def test_frames_and_times_are_those_of_pyav(container: str, name: str) -> None:
    data = encode(container, name)
    for fps in (None, 5.0):
        one, other = build(fps=fps), build(fps=fps, backend="torchcodec")
        assert one.extent(data, container) == other.extent(data, container)
        for window in WINDOWS:
            wanted, got = one.decode(data, container, window), other.decode(data, container, window)
            assert numbers(got.frames) == numbers(wanted.frames)
            assert got.times.tolist() == wanted.times.tolist()
            assert got.seconds == wanted.seconds
            assert (got.frames.dtype, got.frames.shape) == (np.uint8, wanted.frames.shape)
            assert np.abs(got.frames.astype(int) - wanted.frames).mean() < 3


@works
@pytest.mark.parametrize("matrix", [matrix for matrix in SHOWN if matrix not in MIRRORS])
def test_frames_are_turned_as_the_file_says(matrix: tuple[int, int, int, int]) -> None:
    size, wanted = SHOWN[matrix]
    clip = build(backend="torchcodec").decode(with_matrix(*matrix), "mp4")
    assert (clip.frames.shape[1:3], quarters(clip.frames[0])) == (size, wanted)


@pytest.mark.parametrize("matrix", MIRRORS)
def test_files_that_mirror_their_frames_are_refused(matrix: tuple[int, int, int, int]) -> None:
    with pytest.raises(DecodeError, match=r"undecodable: the file mirrors its frames, .*: set `backend: pyav`"):
        decode_with_torchcodec(with_matrix(*matrix), max_pixels=9999, max_bytes=99999)


@works
@pytest.mark.parametrize("form", ["yuv420p", "yuv422p", "yuv444p", "gray", "yuv420p10le", "yuv444p10le"])
def test_pixel_formats(form: str) -> None:
    frames = np.zeros((3, 32, 64, 3), dtype=np.uint8)
    frames[:, :, :32], frames[:, :, 32:] = (200, 60, 40), (30, 90, 220)
    data = encode_clip("mp4", frames, None, fps=15, pixel_format=form)
    wanted, got = build().decode(data, "mp4"), build(backend="torchcodec").decode(data, "mp4")
    difference = np.abs(got.frames[0].astype(float) - wanted.frames[0])
    assert difference[:, [*range(28), *range(36, 64)]].max() < 6


@works
@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_by_what_is_wrong(name: str) -> None:
    make, wanted, _ = BAD[name]
    modality = VideoConfig(size=32, max_pixels=1_000_000, backend="torchcodec").build("video")
    if not wanted:
        modality.decode(make(), "mp4")
        return
    with pytest.raises(DecodeError) as caught:
        modality.decode(make(), "mp4")
    assert caught.value.reason == wanted


@works
def test_late_pictures_windows_beyond_the_end_and_limits() -> None:
    late = encode_clip("mp4", FRAMES, noise(2), times=0.5 + np.arange(len(FRAMES)) / 15)
    small = build(backend="torchcodec", max_bytes=20 * FRAMES[0].size)
    for window in ((0.0, 1.0), (0.4, 0.3)):
        wanted, got = build().decode(late, "mp4", window), small.decode(late, "mp4", window)
        assert (got.times.tolist(), got.seconds) == (wanted.times.tolist(), wanted.seconds)
    for window, reason in ((None, "too_large"), ((90.0, 1.0), "empty")):
        with pytest.raises(DecodeError) as caught:
            small.decode(late, "mp4", window)
        assert caught.value.reason == reason


@works
def test_damage_never_ends_in_another_error() -> None:
    rng, ends = np.random.default_rng(0), set[str]()
    modality = pickle.loads(pickle.dumps(build(backend="torchcodec", max_pixels=100_000, max_bytes=10_000_000)))
    for container in ("mp4", "webm"):
        original = encode_clip(container, FRAMES[:12], noise(1), fps=15)
        for trial in range(40):
            data = bytearray(original)
            for place in rng.integers(0, 800 if trial % 2 else len(data), 8):
                data[place] ^= 1 << int(rng.integers(8))
            try:
                modality.decode(bytes(data), container)
            except DecodeError as error:
                ends.add(error.reason)
    assert "undecodable" in ends


@pytest.fixture
def asked_anew() -> Iterator[None]:
    torchcodec_failure.cache_clear()
    yield
    torchcodec_failure.cache_clear()


@pytest.mark.usefixtures("asked_anew")
def test_a_backend_that_is_not_there_is_refused_at_build(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchcodec"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Nowhere(), *sys.meta_path])
    sentence = r"modalities\.film\.backend: got 'torchcodec', which cannot decode here \(torchcodec is not installed\)"
    with pytest.raises(RecipeError, match=f"{sentence}: install a torchcodec .*, or set backend 'pyav'"):
        VideoConfig(size=32, backend="torchcodec").build("film")
    VideoConfig(size=32).build("film")


@pytest.mark.usefixtures("asked_anew")
def test_a_backend_that_can_be_imported_and_not_decode_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> np.ndarray:
        raise RuntimeError("Could not load libtorchcodec. Likely causes:\nand forty lines more")

    monkeypatch.setattr(media_torchcodec, "_frames", broken)
    with pytest.raises(RecipeError, match=r"here \(RuntimeError: Could not load libtorchcodec\): install") as caught:
        VideoConfig(size=32, backend="torchcodec").build("film")
    assert "forty" not in str(caught.value)


@pytest.mark.usefixtures("asked_anew")
def test_a_backend_that_decodes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_torchcodec, "_frames", lambda *_: np.zeros((3, 32, 32, 3), dtype=np.uint8))
    with pytest.raises(RecipeError, match="a black and a white frame to other colours"):
        VideoConfig(size=32, backend="torchcodec").build("film")


class _Nowhere:
    """Finds no torchcodec, whether it is installed or not."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] == "torchcodec":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
