"""Synchronized augmentation from the shard to the batch: real mp4 and webm through index, stream, workers and collate."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmssl.core.batch import Batch
from mmssl.data.media.encode import encode_clip
from mmssl.data.modalities.audio import AudioModality
from mmssl.data.modalities.video import VideoModality
from mmssl.data.modality import Modality
from mmssl.data.shards.index import ShardIndex
from mmssl.data.stream.batches import EvalStream, TrainStream
from mmssl.data.stream.config import DataConfig
from mmssl.data.stream.workers import Workers
from mmssl.data.synchronized.chain import Synchronized
from mmssl.data.synchronized.mix import Gain
from mmssl.data.synchronized.operation import Operation
from mmssl.data.synchronized.order import Reverse
from mmssl.data.synchronized.space import Flip
from mmssl.data.synchronized.time import Speed, TimeCrop
from mmssl.data.timeline import Clip
from mmssl.datasets.moving_render import render_frames, render_sound
from mmssl.datasets.moving_scenes import load_scans, sample_scene
from tests.data.estimators import beeps, flashes
from tests.data.make import write
from tests.data.metamorphic import RATE, VIEW_FRAMES, Verdicts, judge, modalities, scenes

NEEDS = {"video": {"crop": 2}, "audio": {"crop": 1}, "text": {"tokens": 1}, "label": {"value": 1}}
ALL = (TimeCrop(seconds=1.0), Speed(factors=(0.8, 1.25)), Flip(), Reverse(), Gain())


@pytest.fixture(scope="module")
def samples() -> list[dict[str, Any]]:
    return scenes(8)


@pytest.fixture(scope="module")
def index(samples: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    """Eight clips, half mp4, half webm, in one shard."""
    folder = tmp_path_factory.mktemp("clips")
    records = [{k: v for k, v in sample.items() if k != "captions"} for sample in samples]
    return ShardIndex.open([write(folder / "0.tar", records)])


def stream(index: ShardIndex, operations: tuple[Operation, ...], **options: Any) -> TrainStream:
    return TrainStream(index, modalities(), NEEDS, batch_size=8, synchronized=operations, **{"seed": 3, **options})


def caption_of(tokens: torch.Tensor, samples: list[dict[str, Any]], mods: dict[str, Modality]) -> str:
    """The caption with these tokens, among those of the scenes and their mirrored forms."""
    if not _KNOWN:
        texts = {caption for sample in samples for caption in sample["captions"]}
        other = {"left": "right", "right": "left"}
        texts |= {" ".join(other.get(word, word) for word in text.split()) for text in texts}
        ids = mods["text"].tokenize(sorted(texts))  # type: ignore[attr-defined]
        _KNOWN.update({tuple(row.tolist()): text for row, text in zip(ids, sorted(texts), strict=True)})
    return _KNOWN[tuple(tokens.tolist())]


_KNOWN: dict[tuple[int, ...], str] = {}


def verdicts(batch: Batch, samples: list[dict[str, Any]], late: float) -> list[Verdicts]:
    mods = modalities()
    times = np.arange(VIEW_FRAMES) / VIEW_FRAMES
    made = []
    for row in range(len(batch)):
        frames = batch["video"]["crop0"][row].permute(0, 2, 3, 1).numpy()
        clip = Clip(np.ascontiguousarray(frames), times, 1.0)
        caption = caption_of(batch["text"]["tokens0"][row], samples, mods)
        made.append(judge(clip, batch["audio"]["crop0"][row].numpy(), caption, late=late))
    return made


@pytest.mark.parametrize(("workers", "batches"), [(0, 10), (1, 4)])
def test_relations_hold_in_batches(
    index: ShardIndex, samples: list[dict[str, Any]], workers: int, batches: int
) -> None:
    train = stream(index, ALL, workers=Workers(workers, start_method="fork"))
    found = [v for _ in range(batches) for v in verdicts(next(train), samples, late=0.04)]
    train.close()
    for relation in Verdicts._fields:
        told = [v for v in (getattr(x, relation) for x in found) if v is not None]
        assert len(told) >= len(found) // 2
        assert np.mean(told) >= 0.99, relation


def test_records_and_batches_depend_on_neither_workers_nor_order(index: ShardIndex) -> None:
    alone, helped = stream(index, ALL), stream(index, ALL, workers=Workers(2, start_method="fork"))
    later = stream(index, ALL)
    later.load_state_dict({**later.state_dict(), "step": 1})
    first, second = next(alone), next(alone)
    for batch, others in ((first, [next(helped)]), (second, [next(helped), next(later)])):
        for other in others:
            assert batch.records == other.records
            assert torch.equal(batch["video"]["crop0"], other["video"]["crop0"])
            assert torch.equal(batch["audio"]["crop0"], other["audio"]["crop0"])
    helped.close()
    assert first.records != second.records
    halves = [next(stream(index, ALL, rank=rank, world=2)) for rank in (0, 1)]
    assert [*halves[0].records, *halves[1].records] == list(first.records)
    assert first.rows(2, 5).records == first.records[2:5]


def test_a_record_is_json_and_gives_equal_bits_again(index: ShardIndex) -> None:
    mods = modalities()
    synchronized = Synchronized(ALL, mods)
    for ordinal in range(8):
        sample = synchronized.load(index, ordinal, (1, ordinal))
        again = synchronized.replay(index, ordinal, json.loads(json.dumps(sample.record)))
        assert again.record == sample.record
        assert np.array_equal(again.values["audio"], sample.values["audio"])
        assert np.array_equal(again.values["video"].frames, sample.values["video"].frames)
        assert np.array_equal(again.values["video"].times, sample.values["video"].times)
        assert again.values["text"] == sample.values["text"]
    with pytest.raises(ValueError, match="got a record of"):
        synchronized.replay(index, 0, sample.record[:2])


def test_views_of_one_sample_share_its_record(index: ShardIndex) -> None:
    batch = next(stream(index, (TimeCrop(seconds=1.0), Flip(probability=0.5))))
    assert torch.equal(batch["video"]["crop0"], batch["video"]["crop1"])  # these views have no chance of their own
    flipped = [record["synchronized"][1]["applied"] for record in batch.records]
    assert len(set(flipped)) == 2
    plain = next(stream(index, (TimeCrop(seconds=1.0), Flip(probability=0.0))))
    for row, mirrored in enumerate(flipped):
        same = plain["video"]["crop1"][row]
        assert torch.equal(batch["video"]["crop1"][row], same.flip(-1) if mirrored else same)


def test_only_the_window_is_decoded(index: ShardIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds: dict[str, list[float]] = {"audio": [], "video": []}
    sound, film = AudioModality.decode, VideoModality.decode

    def decode_sound(self: Any, *args: Any) -> Any:
        wave = sound(self, *args)
        seconds["audio"].append(wave.shape[1] / RATE)
        return wave

    def decode_film(self: Any, *args: Any) -> Any:
        clip = film(self, *args)
        seconds["video"].append(clip.seconds)
        return clip

    monkeypatch.setattr(AudioModality, "decode", decode_sound)
    monkeypatch.setattr(VideoModality, "decode", decode_film)
    next(stream(index, (TimeCrop(seconds=0.5),)))
    for lengths in seconds.values():
        assert len(lengths) == 8
        assert max(lengths) <= 0.5 + 1e-6  # of two seconds that each clip has


def test_evaluation_has_no_synchronized_augmentation(index: ShardIndex) -> None:
    config = DataConfig(shards=("x.tar",), synchronized=ALL)
    assert DataConfig.model_validate_json(config.model_dump_json()) == config
    batch = next(iter(EvalStream(index, modalities(), {"video": {"eval": 1}}, 8)))
    assert list(batch.records) == [{"synchronized": [], "views": {"video": {"eval0": {}}}}] * 8


def test_what_is_skipped_is_counted(index: ShardIndex, samples: list[dict[str, Any]], tmp_path: Path) -> None:
    records = [
        {**{k: v for k, v in sample.items() if k != "captions"}, "txt": b"the box is right"} for sample in samples
    ]
    shard = ShardIndex.open([write(tmp_path / "0.tar", records)])
    train = stream(shard, (Flip(probability=1.0),))
    batch = next(train)
    assert batch.notes == (("flip not applied: ambiguous_caption",),) * 8
    assert train.notes == {"flip not applied: ambiguous_caption": 8}
    skipped = {"op": "flip", "applied": False, "skipped": "ambiguous_caption"}
    assert [record["synchronized"] for record in batch.records] == [[skipped]] * 8


UNUSUAL: dict[str, dict[str, Any]] = {
    "29.97": {"fps": 29.97},
    "variable rate": {"times": True},
    "late sound": {"fps": 15.0, "sound_start": 0.46},
    "late sound in webm": {"fps": 15.0, "sound_start": 0.46, "container": "webm"},
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_windows_of_unusual_files_are_in_time(name: str, tmp_path: Path) -> None:
    options = dict(UNUSUAL[name])
    container = options.pop("container", "mp4")
    scene = next(scene for scene in map(partial(sample_scene, "train"), range(100)) if len(scene.beats) == 4)
    step = 1 / float(options.get("fps", 15.0))
    times = np.arange(0, scene.seconds, step)
    if options.pop("times", False):  # gaps of one to four frames, in no order
        rng = np.random.default_rng(0)
        times = np.cumsum(np.concatenate([[0.0], rng.integers(1, 5, 60) / 60]))
        times = times[times < scene.seconds]
        options |= {"times": times, "seconds": scene.seconds}
    frames = render_frames(scene, load_scans()[0], times, 32)
    first = round(options.get("sound_start", 0.0) * RATE)
    data = encode_clip(container, frames, render_sound(scene, RATE)[first:], rate=RATE, **options)
    index = ShardIndex.open([write(tmp_path / "0.tar", [{"__key__": "a", container: data}])])
    mods = {name: modality for name, modality in modalities().items() if name in ("video", "audio")}
    synchronized = Synchronized((TimeCrop(seconds=0.8),), mods)
    matched = 0
    for seed in range(30):
        sample = synchronized.load(index, 0, (seed,))
        clip, sound = sample.values["video"], sample.values["audio"]
        assert clip.times[0] == 0.0
        assert clip.seconds == pytest.approx(0.8, abs=1e-6)
        assert sound.shape[1] == round(0.8 * RATE)
        start = sample.record[0]["start"]
        assert np.abs(times - start).min() < 2e-3 or start == pytest.approx(options.get("sound_start"))
        heard = [beep.time for beep in beeps(sound, RATE) if 0.12 < beep.time < 0.68]
        seen = flashes(clip.frames, clip.times, clip.seconds)
        for time in heard:
            matched += 1
            assert min(abs(time - flash) for flash in seen) <= 0.035
            assert min(abs(time + start - beat) for beat in scene.beats) <= 0.01
    assert matched >= 15
