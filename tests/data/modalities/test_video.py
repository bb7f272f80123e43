"""Videos: frames by their time stamps, in every container, and views that can be made again."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mmssl.core.sample import Origin, Sample
from mmssl.core.seeding import generator
from mmssl.data.draws import draw_views
from mmssl.data.media.encode import encode_clip, frame_times
from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modalities.text import TextConfig
from mmssl.data.modalities.video import VideoConfig, VideoModality
from mmssl.data.modalities.views import video as video_views
from mmssl.data.modalities.views.image import resize
from mmssl.data.modalities.views.video import on_screen
from mmssl.data.modality import DecodeError
from mmssl.data.samples import iterate
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.writer import write_shard
from mmssl.data.stream.batches import EvalStream, TrainStream
from mmssl.data.timeline import Clip
from mmssl.recipe.shipped import find_recipe

CONTAINERS = ("mp4", "mov", "mkv", "webm")
COUNT = 100
UNEVEN = np.cumsum(np.random.default_rng(0).uniform(0.012, 0.12, COUNT)) - 0.012


def numbered(count: int, size: int = 64) -> np.ndarray:
    """Frames that carry their number: column b is white where bit b of it is set."""
    bits = (np.arange(count)[:, None] >> np.arange(8)) & 1
    row = np.repeat(bits, size // 8, axis=1)[:, None, :, None] * 255
    return np.broadcast_to(row, (count, size, size, 3)).astype(np.uint8)


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers of frames [T, H, W, 3] or views [T, 3, H, W]."""
    rows = np.asarray(frames if frames.shape[-1] == 3 else frames.transpose(0, 2, 3, 1)).mean((1, 3))
    columns = rows.reshape(len(rows), 8, -1)[:, :, 1:-1].mean(2)
    return [int((row > 128) @ (1 << np.arange(8))) for row in columns]


def build(size: int = 32, **options: object) -> VideoModality:
    return VideoConfig(size=size, **options).build("video")  # type: ignore[arg-type]


TIMES = {
    "15": frame_times(COUNT / 15, 15),
    "29.97": np.arange(COUNT) * 1001 / 30000,
    "uneven": UNEVEN,
}


def encode(container: str, name: str, frames: np.ndarray | None = None) -> bytes:
    frames = numbered(COUNT) if frames is None else frames
    options = {"g": "40"}
    if name == "uneven":
        return encode_clip(container, frames, None, times=UNEVEN, seconds=UNEVEN[-1] + 0.05, options=options)
    return encode_clip(container, frames, None, fps=float(name), options=options)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", TIMES)
def test_every_frame_has_its_own_time(container: str, name: str) -> None:
    data = encode(container, name)
    clip = build().decode(data, container)
    assert (clip.frames.dtype, clip.times.dtype) == (np.uint8, np.float64)
    assert numbers(clip.frames) == list(range(COUNT))
    tick = 0.00051 if container in ("mkv", "webm") else 1e-5
    np.testing.assert_allclose(clip.times, TIMES[name] - TIMES[name][0], atol=2 * tick)
    assert clip.seconds >= clip.times[-1]
    if name != "uneven":
        assert clip.seconds == pytest.approx(COUNT * TIMES[name][1], abs=0.002)
        assert build().extent(data, container) == pytest.approx((clip.seconds, 0.0), abs=0.002)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", ["29.97", "uneven"])
def test_a_window_is_that_part_of_the_whole(container: str, name: str) -> None:
    data = encode(container, name)
    whole = build().decode(data, container)
    for start, length in ((0.0, 0.5), (1.2345, 0.7), (2.0, 0.001), (1.4, 0.6), (whole.seconds - 0.3, 9.0)):
        clip = build().decode(data, container, (start, length))
        ends = np.append(whole.times[1:], whole.seconds)
        shown = np.flatnonzero((whole.times < start + length) & (ends > start))
        assert numbers(clip.frames) == shown.tolist()
        assert (clip.frames == whole.frames[shown]).all()
        np.testing.assert_allclose(clip.times, np.maximum(whole.times[shown] - start, 0), atol=1e-9)
        assert clip.times[0] == 0
        assert clip.seconds == pytest.approx(min(length, whole.seconds - start), abs=1e-9)
    with pytest.raises(DecodeError, match="empty: no frame"):
        build().decode(data, container, (whole.seconds + 0.1, 1.0))


def test_decoding_begins_at_the_key_frame_before_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmssl.data.media import frames as media_video

    data, seen = encode("mp4", "15"), []
    original = media_video._timed

    def counted(*arguments: Any) -> Iterator[Any]:
        for picture, time in original(*arguments):
            seen.append(picture.time)
            yield picture, time

    monkeypatch.setattr(media_video, "_timed", counted)
    assert numbers(build().decode(data, "mp4", (90 / 15, 1 / 15)).frames) == [90]
    assert min(seen) == pytest.approx(80 / 15)  # a key frame is every 40
    assert len(seen) == 13  # up to the one after the next, which ends the window


def test_frames_that_no_instant_shows_are_dropped() -> None:
    data = encode("mp4", "29.97")
    whole, thin = build().decode(data, "mp4"), build(fps=5.0).decode(data, "mp4")
    instants = np.arange(0, whole.seconds, 0.2)
    wanted = np.searchsorted(whole.times, instants, side="right") - 1
    assert numbers(thin.frames) == wanted.tolist()
    np.testing.assert_allclose(thin.times, whole.times[wanted])
    assert thin.seconds == whole.seconds
    for clip in (whole, thin):
        assert numbers(np.stack(on_screen(clip, instants.tolist()))) == wanted.tolist()
    part = build(fps=5.0).decode(data, "mp4", (1.01, 1.0))
    assert len(part.frames) == 5
    assert part.times[0] == 0


SHOWN = {  # matrix (a, b, c, d) -> size [H, W] and quarters (two above, two below) of the frame that ffmpeg 9.0 shows
    (1, 0, 0, 1): ((32, 64), "RGBW"),
    (-1, 0, 0, 1): ((32, 64), "GRWB"),
    (1, 0, 0, -1): ((32, 64), "BWRG"),
    (-1, 0, 0, -1): ((32, 64), "WBGR"),
    (0, 1, 1, 0): ((64, 32), "RBGW"),
    (0, -1, 1, 0): ((64, 32), "GWRB"),
    (0, 1, -1, 0): ((64, 32), "BRWG"),
    (0, -1, -1, 0): ((64, 32), "WGBR"),
}
MIRRORS = [matrix for matrix in SHOWN if matrix[0] * matrix[3] - matrix[1] * matrix[2] < 0]


def with_matrix(a: float, b: float, c: float, d: float) -> bytes:
    """An mp4 of three equal frames, with a display matrix in its track header (ISO/IEC 14496-12, 8.3.2)."""
    frames = np.zeros((3, 32, 64, 3), dtype=np.uint8)
    frames[:, :16, :32, 0], frames[:, :16, 32:, 1], frames[:, 16:, :32, 2], frames[:, 16:, 32:] = 255, 255, 255, 255
    data = bytearray(encode_clip("mp4", frames, None, fps=15))
    place = data.index(b"tkhd") + 4 + 40
    entries = [round(entry * 0x10000) for entry in (a, b, 0, c, d, 0)]
    data[place : place + 36] = struct.pack(">9i", *entries, 0, 0, 1 << 30)
    return bytes(data)


def quarters(frame: np.ndarray) -> str:
    """Colours in the middle of the quarters of a frame."""
    height, width = frame.shape[:2]
    places = [(y * height // 4, x * width // 4) for y in (1, 3) for x in (1, 3)]
    bright = [tuple(frame[place] > 127) for place in places]
    return "".join("RGBW"[[(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)].index(colour)] for colour in bright)


@pytest.mark.parametrize("matrix", SHOWN)
def test_frames_are_turned_and_mirrored_as_the_file_says(matrix: tuple[int, int, int, int]) -> None:
    size, wanted = SHOWN[matrix]
    data = with_matrix(*matrix)
    clip = build().decode(data, "mp4")
    assert clip.frames.shape == (3, *size, 3)
    assert [quarters(frame) for frame in clip.frames] == [wanted] * 3
    figures = build().inspect(data, "mp4").figures
    assert (figures["height"], figures["width"]) == ([size[0]], [size[1]])


def test_of_a_display_matrix_only_the_direction_counts() -> None:
    for matrix, wanted in {
        (-2.0, 0.0, 0.0, 0.5): "GRWB",
        (0.001, 1.0, -1.0, 0.001): "BRWG",
        (0.0, 0.0, 0.0, 0.0): "RGBW",
    }.items():
        assert quarters(build().decode(with_matrix(*matrix), "mp4").frames[0]) == wanted
    for turned in ((0.8, 0.6, -0.6, 0.8), (1.0, 0.2, 0.0, 1.0), (0.99, 0.02, -0.02, 0.99)):
        with pytest.raises(DecodeError, match=r"undecodable: got frames turned by .* wanted a multiple of 90"):
            build().decode(with_matrix(*turned), "mp4")


@pytest.mark.parametrize("form", ["yuv420p", "yuv422p", "yuv444p", "gray", "yuv420p10le", "yuv444p10le"])
def test_pixel_formats(form: str) -> None:
    frames = np.zeros((3, 32, 64, 3), dtype=np.uint8)
    frames[:, :, :32] = (200, 60, 40)
    frames[:, :, 32:] = (30, 90, 220)
    clip = build().decode(encode_clip("mp4", frames, None, fps=15, pixel_format=form), "mp4")
    wanted = frames[0].astype(float)
    if form == "gray":
        wanted = np.repeat((wanted @ (0.299, 0.587, 0.114))[:, :, None], 3, axis=2)
    difference = np.abs(clip.frames[0].astype(float) - wanted)
    assert difference[:, [*range(28), *range(36, 64)]].max() < 6


def test_views_have_the_shape_of_the_recipe_and_replay() -> None:
    views = {
        "crop": {"kind": "clip", "jitter": 1.0, "flip": 0.5, "scale": (0.3, 1.0)},
        "still": {"kind": "frame"},
        "local": {"kind": "clip", "size": 16},
        "stamp": {"kind": "frame", "size": 8},
    }
    modality = VideoConfig.model_validate({"size": 24, "frames": 6, "seconds": 1.0, "views": views}).build("video")
    clip = modality.decode(encode("mp4", "29.97"), "mp4")
    shapes = {"crop": (6, 3, 24, 24), "still": (3, 24, 24), "eval": (6, 3, 24, 24)}
    shapes |= {"local": (6, 3, 16, 16), "stamp": (3, 8, 8)}
    for kind, shape in shapes.items():
        view = modality.view(kind)
        one, same, other = (view.draw(clip, generator(seed, "video", kind)) for seed in (1, 1, 2))
        assert one == same
        assert (one == other) == (kind == "eval")
        made = view(clip, one)
        assert (made.dtype, tuple(made.shape)) == (torch.uint8, shape)
        assert made.is_contiguous()
        assert torch.equal(made, view(clip, pickle.loads(pickle.dumps(one))))
        assert view.blank().shape == made.shape
        assert not view.blank().any()
        assert view.pixels == shape[-1]
    still = VideoConfig(size=24, eval="frame").build("video").view("eval")
    assert still.blank().shape == still(clip, {}).shape == (3, 24, 24)


def test_a_clip_is_cut_and_coloured_alike_in_all_frames() -> None:
    views = {"crop": {"kind": "clip", "jitter": 1.0, "flip": 0.5, "scale": (0.3, 0.6), "grayscale": 0.5, "blur": 0.5}}
    modality = VideoConfig.model_validate({"size": 24, "frames": 5, "views": views}).build("video")
    picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    clip = Clip(np.repeat(picture[None], 5, axis=0).copy(), np.arange(5) / 5, 1.0)
    view = modality.view("crop")
    for seed in range(10):
        made = view(clip, view.draw(clip, np.random.default_rng(seed)))
        assert all(torch.equal(frame, made[0]) for frame in made)


@pytest.mark.parametrize("kind", ["clip", "frame"])
def test_grey_and_blurred_frames_are_those_of_pictures(kind: str) -> None:
    """Each frame as a picture of the view `simclr` with the same draws; a view without them draws what it did before."""
    config = {"kind": kind, "flip": 0.5, "grayscale": 0.3, "blur": 0.6, "sigma": (0.5, 1.5)}
    view = (
        VideoConfig.model_validate({"size": 24, "frames": 2, "seconds": 0.2, "views": {"crop": config}})
        .build("v")
        .view("crop")
    )
    frames = np.random.default_rng(0).integers(0, 255, (2, 30, 40, 3), dtype=np.uint8)
    clip, rng = Clip(frames, np.array([0.0, 0.1]), 0.2), np.random.default_rng(1)
    drawn = [view.draw(clip, rng) for _ in range(1000)]
    assert np.mean([one["grayscale"] for one in drawn]) == pytest.approx(0.3, abs=0.05)
    sigmas = [one["sigma"] for one in drawn if one["sigma"]]
    assert len(sigmas) / 1000 == pytest.approx(0.6, abs=0.05)
    assert 0.5 <= min(sigmas) < 0.55 < 1.45 < max(sigmas) <= 1.5
    picture = ImageConfig.model_validate({"size": 24, "views": {"crop": {"kind": "simclr"}}}).build("i").view("crop")
    for one in drawn[:20]:
        made = view(clip, one)
        made = made if kind == "clip" else made[None]
        shown = frames if kind == "clip" else frames[[int(one["time"] >= 0.1)]]
        wanted = [picture(frame, one | {"solarize": False}) for frame in shown]
        assert torch.equal(made, torch.stack(wanted))
    plain = (
        VideoConfig.model_validate({"size": 24, "views": {"crop": {"kind": kind, "flip": 0.5}}}).build("v").view("crop")
    )
    assert not {"grayscale", "sigma"} & plain.draw(clip, rng).keys()


@pytest.mark.parametrize("kind", ["clip", "frame"])
def test_flips_and_colours_are_drawn_as_the_recipe_says(kind: str) -> None:
    ranges = {"brightness": (0.9, 1.1), "contrast": (0.6, 1.4), "saturation": (0.0, 2.5), "hue": (-0.05, 0.05)}
    view = {
        "kind": kind,
        "flip": 0.2,
        "jitter": 0.7,
        "brightness": 0.1,
        "contrast": 0.4,
        "saturation": 1.5,
        "hue": 0.05,
    }
    made = VideoConfig.model_validate({"size": 16, "views": {"crop": view}}).build("video").view("crop")
    clip, rng = Clip(numbered(2, 8), np.array([0.0, 0.1]), 0.2), np.random.default_rng(0)
    drawn = [made.draw(clip, rng) for _ in range(1000)]
    assert np.mean([one["flip"] for one in drawn]) == pytest.approx(0.2, abs=0.05)
    assert np.mean([bool(one["jitter"]) for one in drawn]) == pytest.approx(0.7, abs=0.05)
    for name, (low, high) in ranges.items():
        amounts = [dict(one["jitter"])[name] for one in drawn if one["jitter"]]
        assert low <= min(amounts) < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < max(amounts) <= high


def test_views_show_what_is_on_screen_in_the_middle_of_each_part() -> None:
    clip = Clip(numbered(8), np.array([0.0, 0.1, 0.15, 0.7, 0.8, 0.9, 1.2, 1.9]), 2.0)
    modality = VideoConfig(size=64, frames=4, seconds=1.0).build("video")
    view, last = modality.view("crop"), modality.view("eval")
    parameters = {"start": 0.5, "box": [0, 0, 64, 64], "flip": False, "jitter": []}
    assert numbers(view(clip, parameters).numpy()) == [2, 4, 5, 6]  # at 0.625, 0.875, 1.125 and 1.375
    assert numbers(last(clip, {}).numpy()) == [2, 4, 5, 6]
    starts = [view.draw(clip, np.random.default_rng(seed))["start"] for seed in range(300)]
    assert 0 <= min(starts) < 0.05
    assert 0.95 < max(starts) <= 1
    short = Clip(numbered(3), np.array([0.0, 0.1, 0.2]), 0.3)
    assert view.draw(short, np.random.default_rng(0))["start"] == 0
    assert numbers(view(short, {**parameters, "start": 0.0}).numpy()) == [1, 2, 2, 2]  # the last frame stays
    whole = VideoConfig(size=64, frames=3).build("video").view("eval")
    assert numbers(whole(short, {}).numpy()) == [0, 1, 2]
    late = Clip(numbered(2), np.array([0.5, 0.6]), 1.0)
    assert numbers(whole(late, {}).numpy()) == [0, 0, 1]  # before the first frame, that one


def test_a_frame_that_begins_at_the_instant_is_the_one_that_is_seen() -> None:
    clip = Clip(numbered(6), np.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.5]), 2.0)
    assert numbers(np.stack(on_screen(clip, [0.0, 0.25, 0.5, 1.0, 1.5]))) == [0, 1, 2, 4, 5]
    view = VideoConfig(size=64, frames=4, seconds=1.0).build("video").view("crop")
    parameters = {"start": 0.125, "box": [0, 0, 64, 64], "flip": False, "jitter": []}
    assert numbers(view(clip, parameters).numpy()) == [1, 2, 3, 4]  # at 0.25, 0.5, 0.75 and 1.0
    data = encode_clip("mp4", numbered(16), None, fps=16)
    thin = build(fps=4.0).decode(data, "mp4")
    assert numbers(thin.frames) == [0, 4, 8, 12]  # what ends at the next instant is not seen at it
    assert thin.times.tolist() == [0.0, 0.25, 0.5, 0.75]
    part = build().decode(data, "mp4", (0.25, 0.25))
    assert numbers(part.frames) == [4, 5, 6, 7]


def test_limits_of_frames_and_sizes() -> None:
    data = encode("webm", "29.97")
    for options in ({"max_pixels": 64 * 64 - 1}, {"max_bytes": 50 * 64 * 64 * 3}):
        with pytest.raises(DecodeError, match="too_large"):
            build(**options).decode(data, "webm")
    assert len(build(max_bytes=50 * 64 * 64 * 3).decode(data, "webm", (1.0, 1.0)).frames) == 31
    assert len(build(max_bytes=50 * 64 * 64 * 3, fps=10.0).decode(data, "webm").frames) == 34


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 32, "views": {"eval": {"kind": "clip"}}}, "is reserved"),
        ({"size": 32, "frames": 16, "seconds": 2.0, "fps": 7.0}, "raise fps to 8 or more"),
        (
            {"size": 32, "views": {"order": {"kind": "order", "patch_size": 12}}},
            "wanted divisors of views of 32 pixels",
        ),
        ({"size": 32, "views": {"order": {"kind": "order", "patch_size": 8, "tubelet": 3}}}, "tubelets of 3 frames"),
        (
            {"size": 32, "views": {"order": {"kind": "order", "patch_size": 8, "tubes": True}}},
            "tubes: true for a view of one frame",
        ),
        ({"size": 32, "frames": 0}, "greater than or equal to 1"),
        ({"size": 32, "views": {"crop": {"kind": "clip", "saturation": -0.1}}}, "greater than or equal to 0"),
        ({"size": 32, "views": {"still": {"kind": "frame", "hue": 0.6}}}, "less than or equal to 0.5"),
    ],
)
def test_configs_that_mean_nothing(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VideoConfig.model_validate(values)


def test_a_mute_video_lacks_a_sound_and_is_not_damaged(tmp_path: Path) -> None:
    frames = numbered(8)
    tone = 0.5 * np.sin(np.arange(24_000, dtype=np.float32) * 0.1)[:, None]
    whole = encode_clip("mp4", frames, tone, fps=15)
    samples = [
        {"__key__": "whole", "mp4": whole, "txt": b"a"},
        {"__key__": "mute", "mp4": encode_clip("mp4", frames, None, fps=15), "txt": b"b"},
        {"__key__": "untitled", "mp4": whole, "txt": b"  "},
        {"__key__": "cut", "mp4": whole[: len(whole) // 2], "txt": b"d"},
    ]
    write_shard(tmp_path, "000000.tar", 0, 4, samples)
    modalities = {
        "video": build(frames=4),
        "audio": AudioConfig(rate=16_000, seconds=0.25, extensions=("mp4",)).build("audio"),
        "text": TextConfig().build("text"),
    }
    index = ShardIndex.open([str(tmp_path)], source="train")
    needs = {"video": {"eval": 1}, "audio": {"eval": 1}, "text": {"tokens": 1}}
    stream = EvalStream(index, modalities, needs, 4, on_error="skip", optional=("audio", "text"))
    (batch,) = list(stream)
    assert batch.keys == ("whole", "mute", "untitled")
    assert {name: flags.tolist() for name, flags in batch.present.items()} == {
        "audio": [True, False, True],
        "text": [True, True, False],
    }
    assert [fault.reason for fault in batch.faults] == ["undecodable"]
    assert dict(stream.faults) == {"undecodable": 1}
    needed = [fault for fault in iterate(index, modalities) if not hasattr(fault, "values")]
    assert [(fault.key, fault.reason) for fault in needed] == [  # type: ignore[union-attr]
        ("mute", "missing"),
        ("untitled", "missing"),
        ("cut", "undecodable"),
    ]


def test_batches_of_crops_through_the_stream(tmp_path: Path) -> None:
    samples = [{"__key__": f"{i}", "mkv": encode_clip("mkv", numbered(20), None, fps=10)} for i in range(4)]
    write_shard(tmp_path, "000000.tar", 0, 4, samples)
    index = ShardIndex.open([str(tmp_path)], source="train")
    modalities = {"video": build(frames=5, seconds=1.0)}
    first, again = (
        next(TrainStream(index, modalities, {"video": {"crop": 2}}, batch_size=4, seed=3)) for _ in range(2)
    )
    assert first["video"]["crop0"].shape == (4, 5, 3, 32, 32)
    assert torch.equal(first["video"]["crop0"], again["video"]["crop0"])
    assert not torch.equal(first["video"]["crop0"], first["video"]["crop1"])


def test_a_frame_that_is_seen_several_times_is_resized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = Clip(np.zeros((3, 20, 20, 3), np.uint8), np.array([0.0, 0.2, 0.7]), 1.0)
    view = VideoConfig(size=16, frames=10, seconds=1.0).build("video").view("crop")
    made: list[object] = []

    def noted(*arguments: Any) -> torch.Tensor:
        made.append(arguments)
        return resize(*arguments)

    monkeypatch.setattr(video_views, "resize", noted)
    shape = view(clip, view.draw(clip, np.random.default_rng(0))).shape
    assert (shape, len(made)) == ((10, 3, 16, 16), 3)


def test_two_clips_have_cvrl_law_of_gaps_between_them() -> None:
    """Of gaps as a share of all room the distribution function is 2 g - g²; either clip is the first one."""
    video = find_recipe("video/cvrl_space_time_b_16").modalities["video"]
    assert isinstance(video, VideoConfig)
    assert video.seconds is not None
    modality = video.model_copy(update={"size": 8}).build("video")
    clip = Clip(numbered(2, 8), np.array([0.0, 4.0]), video.seconds + 8.0)
    sample = Sample("key", Origin("train", "shard", 0, 0), 0, {"video": clip})
    drawn = [draw_views(sample, {"video": modality}, {"video": {"clip": 2}}, (0, 0, n))["video"] for n in range(3000)]
    starts = np.array([[one[view]["start"] for view in ("clip0", "clip1")] for one in drawn]) / 8.0
    assert 0 <= starts.min() < 0.01 < 0.99 < starts.max() <= 1
    gaps = np.sort(np.abs(starts[:, 0] - starts[:, 1]))
    found = np.arange(1, 3001) / 3000
    assert np.abs(found - (2 * gaps - gaps**2)).max() < 0.03, "independent clips"
    assert np.mean(starts[:, 0] < starts[:, 1]) == pytest.approx(0.5, abs=0.03)
