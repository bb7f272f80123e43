"""Moving scenes: picture, sound and caption have one latent, also after real codecs, shards and streams."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from mmssl.core.errors import DataError
from mmssl.data.media.encode import encode_clip, frame_times
from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.text import TextConfig
from mmssl.data.modalities.video import VideoConfig
from mmssl.data.shards.index import ShardIndex
from mmssl.data.stream.batches import TrainStream
from mmssl.datasets import moving_scenes
from mmssl.datasets.digit_render import CLASS_NAMES
from mmssl.datasets.digit_scenes import load_scans, split_scans
from mmssl.datasets.moving_render import MovingScene, captions, render_frames, render_sound, side_captions
from tests.data.estimators import beeps, caption_side, flashes, positions, seen_side


@cache
def scenes() -> list[MovingScene]:
    """The first of training."""
    return [moving_scenes.sample_scene("train", number) for number in range(60)]


def agree(scene: MovingScene, frames: np.ndarray, times: np.ndarray, sound: np.ndarray, rate: int) -> None:
    """What the estimators find is what the latents say."""
    ends = np.append(times[1:], scene.seconds)
    np.testing.assert_allclose(positions(frames), scene.x((times + ends) / 2), atol=0.012)
    np.testing.assert_allclose(flashes(frames, times, scene.seconds), scene.beats, atol=0.02)
    found = beeps(sound, rate)
    # Matroska rounds time stamps to milliseconds, and sound begins where ffmpeg begins it.
    np.testing.assert_allclose([beep.time for beep in found], scene.beats, atol=0.0015)
    np.testing.assert_allclose([beep.x for beep in found], [scene.x(beat) for beat in scene.beats], atol=0.005)
    assert seen_side(frames) == scene.motion


def test_estimators_recover_the_latents_of_what_was_rendered() -> None:
    times = frame_times(2.0, 15)
    for scene in scenes():
        agree(scene, render_frames(scene, load_scans()[0], times), times, render_sound(scene, 16_000).T, 16_000)


@pytest.mark.parametrize(
    ("container", "fps", "rate"),
    [("mp4", 15, 16_000), ("mp4", 29.97, 44_100), ("webm", 12.5, 48_000), ("mkv", 15, 16_000)],
)
def test_and_of_what_real_codecs_make_of_it(container: str, fps: float, rate: int) -> None:
    video = VideoConfig(size=32).build("video")
    audio = AudioConfig(rate=rate, seconds=1.0).build("audio")
    for scene in scenes()[:4]:
        data = moving_scenes.encode_scene(scene, "k", container=container, fps=fps, rate=rate)[container]
        clip = video.decode(data, container)
        agree(scene, clip.frames, clip.times, audio.decode(data, container), rate)


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv", "webm"])
def test_equal_times_are_equal_moments_whatever_the_streams_look_like(container: str) -> None:
    """Frames at uneven times, a sound that starts 0.1 s late, and windows: the relations of a clip hold all the same."""
    video, audio = VideoConfig(size=32).build("video"), AudioConfig(rate=16_000, seconds=1.0).build("audio")
    rng = np.random.default_rng(0)
    for scene in scenes()[:4]:
        times = frame_times(2.0, 20) + np.append(0, rng.uniform(-0.02, 0.02, 39))
        frames = render_frames(scene, load_scans()[0], times)
        sound = render_sound(scene, 48_000)[4_800:]
        data = encode_clip(container, frames, sound, times=times, seconds=2.0, rate=48_000, sound_start=0.1)
        clip = video.decode(data, container)
        agree(scene, clip.frames, clip.times, audio.decode(data, container), 16_000)
        start = float(rng.uniform(0.3, 0.9))
        clip, heard = video.decode(data, container, (start, 1.0)), audio.decode(data, container, (start, 1.0))
        inside = [beat - start for beat in scene.beats if 0.06 < beat - start < 0.94]
        seen = [time for time in flashes(clip.frames, clip.times, clip.seconds) if 0.06 < time < 0.94]
        if inside:
            np.testing.assert_allclose(seen, inside, atol=0.025)
            beats = [beep.time for beep in beeps(heard, 16_000) if 0.06 < beep.time < 0.94]
            np.testing.assert_allclose(beats, inside, atol=0.0015)


@pytest.mark.parametrize("broken", ["late", "swapped", "mirrored", "still"])
def test_what_breaks_a_relation_is_noticed(broken: str) -> None:
    times = frame_times(2.0, 15)
    for scene in scenes()[:10]:
        frames, sound = render_frames(scene, load_scans()[0], times), render_sound(scene, 16_000).T
        if broken == "late":
            sound = np.roll(sound, round(0.12 * 16_000), axis=1)
        elif broken == "swapped":
            sound = sound[::-1]
        elif broken == "mirrored":
            frames = frames[:, :, ::-1]
        else:
            frames = frames[:1].repeat(30, axis=0)
        with pytest.raises(AssertionError):
            agree(scene, frames, times, sound, 16_000)


def test_a_reversed_clip_has_mirrored_events() -> None:
    times = frame_times(2.0, 15)
    for scene in scenes()[:10]:
        frames = render_frames(scene, load_scans()[0], times)[::-1]
        mirrored = [2.0 - beat for beat in scene.beats[::-1]]
        np.testing.assert_allclose(flashes(frames, times, 2.0), mirrored, atol=0.02)
        found = beeps(render_sound(scene, 16_000).T[:, ::-1], 16_000)
        np.testing.assert_allclose([beep.time for beep in found], mirrored, atol=0.001)


def test_captions_say_digit_and_side_and_are_true() -> None:
    motions = Counter(scene.motion for scene in scenes())
    assert set(motions) == set(moving_scenes.MOTIONS)
    for scene in scenes():
        assert {caption_side(caption) for caption in side_captions(scene)} == {scene.motion}
        assert all(CLASS_NAMES[scene.label] in caption for caption in captions(scene))
        assert captions(scene)[scene.form] in side_captions(scene)
        sides = {scene.motion.removesuffix("ward")} if scene.motion in ("left", "right") else {"left", "right"}
        assert {"left" if x < 0.5 else "right" for x in scene.path} == sides
        assert all(abs(x - 0.5) > 0.0999 and scene.size / 2 <= x <= 1 - scene.size / 2 for x in scene.path)
        assert all(after - before >= 0.34 for before, after in zip(scene.beats, scene.beats[1:], strict=False))
        assert scene.beats[0] > 0.1
        assert scene.beats[-1] < scene.seconds - 0.1
        assert scene.scan in split_scans()["train"][scene.label]


def test_longer_clips_have_more_beats_within_them() -> None:
    scene = moving_scenes.sample_scene("test", 3, seconds=5.0)
    assert 2 <= len(scene.beats) <= moving_scenes.MAX_BEATS
    assert scene.beats[-1] < 5
    assert render_sound(scene, 8_000).shape == (40_000, 2)
    with pytest.raises(ValueError, match="at least 1 s"):
        moving_scenes.sample_scene("test", 3, seconds=0.5)


def test_shards_are_kept_made_again_and_equal(tmp_path: Path) -> None:
    counts = {"train": 6, "validation": 2, "test": 0, "shards": 2}
    first = moving_scenes.write(tmp_path / "a", **counts, wav=True)  # type: ignore[arg-type]
    again = moving_scenes.write(tmp_path / "b", **counts, wav=True)  # type: ignore[arg-type]
    assert [shard.sha256 for shard in first.shards] == [shard.sha256 for shard in again.shards]
    assert [shard.path for shard in first.shards] == [
        f"{s}/{i:06d}.tar" for s in ("train", "validation") for i in (0, 1)
    ]
    lost = tmp_path / "a" / first.shards[0].path
    kept = (tmp_path / "a" / first.shards[1].path).stat().st_mtime_ns
    lost.unlink()
    assert moving_scenes.write(tmp_path / "a", **counts, wav=True) == first  # type: ignore[arg-type]
    assert lost.exists()
    assert (tmp_path / "a" / first.shards[1].path).stat().st_mtime_ns == kept
    raw = ShardIndex.open([str(tmp_path / "a" / "train")], source="train").read(4)
    assert set(raw.fields) == {"mp4", "txt", "json", "cls", "wav"}
    document = json.loads(raw.fields["json"])
    scene = MovingScene.from_json(document)
    assert scene == moving_scenes.sample_scene("train", 4)
    assert raw.fields["txt"].decode() == document["captions"][scene.form] == captions(scene)[scene.form]
    assert raw.fields["cls"].decode() == str(scene.label)
    with pytest.raises(ValueError, match="even number"):
        moving_scenes.write(tmp_path / "c", size=33)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "other.tar").write_bytes(b"x")
    with pytest.raises(DataError, match="not in its manifest"):
        moving_scenes.write(tmp_path / "d", **counts)  # type: ignore[arg-type]


def test_relations_hold_after_shard_worker_and_batch(tmp_path: Path) -> None:
    moving_scenes.write(tmp_path, train=12, validation=0, test=0, shards=2, container="webm", rate=48_000)
    modalities = {
        "video": VideoConfig(size=64, frames=30, seconds=2.0).build("video"),
        "audio": AudioConfig(rate=16_000, seconds=2.0, extensions=("webm",)).build("audio"),
        "text": TextConfig().build("text"),
    }
    index = ShardIndex.open([str(tmp_path / "train")], source="train")
    needs = {"video": {"eval": 1, "crop": 1}, "audio": {"eval": 1}, "text": {"tokens": 1}}
    stream = TrainStream(index, modalities, needs, batch_size=12, seed=3, workers=1)
    batch = next(stream)
    stream.close()
    assert batch["video"]["crop0"].shape == (12, 30, 3, 64, 64)
    assert batch["video"]["crop0"].dtype == torch.uint8
    times = frame_times(2.0, 15)
    for row, number in enumerate(batch.index.tolist()):
        scene = moving_scenes.sample_scene("train", number)
        agree(scene, batch["video"]["eval0"][row].numpy(), times, batch["audio"]["eval0"][row].numpy(), 16_000)
