"""Records of batches: from what was drawn for a sample, its values and every kind of view are made again, bit for bit."""

from __future__ import annotations

import json
from typing import Any, get_args

import numpy as np
import pytest
import torch

from mmssl.core.batch import Batch
from mmssl.data.draws import make_views
from mmssl.data.media.encode import encode_clip
from mmssl.data.modalities.audio import AudioConfig, SoundViewConfig
from mmssl.data.modalities.image import ImageConfig, ImageViewConfig
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.modalities.text import TextConfig, TextViewConfig
from mmssl.data.modalities.video import VideoConfig, VideoViewConfig
from mmssl.data.modalities.views.text_augment import WordOperation
from mmssl.data.modality import Modality, ModalityConfig
from mmssl.data.samples import load
from mmssl.data.shards.index import ShardIndex
from mmssl.data.stream.batches import TrainStream
from mmssl.data.stream.workers import Workers
from mmssl.data.synchronized.chain import Synchronized
from mmssl.data.synchronized.mix import Gain
from mmssl.data.synchronized.partners import replay_partners
from mmssl.data.synchronized.space import Flip
from mmssl.data.synchronized.time import TimeCrop
from mmssl.datasets.digit_render import to_wav
from tests.data.make import encode, noise, write

RATE = 8000
IMAGE_VIEWS: dict[str, dict[str, Any]] = {
    "resized_crop": {},
    "simclr": {"blur": 0.5},
    "rand_augment": {},
    "order": {"patch_size": 8},
    "blocks": {"patch_size": 4, "smallest": 4},
    "inverse_blocks": {"patch_size": 2},
    "jepa": {"patch_size": 4},
    "choice": {"choices": 4},
}
SOUND_VIEWS: dict[str, dict[str, Any]] = {
    "random_window": {"shift": 0.3, "gain_db": (-6.0, 6.0), "noise_snr_db": (5.0, 20.0), "noise": 0.5},
    "order": {"tokens": 6},
    "spans": {"tokens": 50},
    "blocks": {"grid": [4, 12]},
    "inverse_blocks": {"grid": [8, 12]},
    "jepa": {"grid": [4, 12]},
    "choice": {"choices": 2},
}
MONO_VIEWS: dict[str, dict[str, Any]] = {"byol_a": {}}
VIDEO_VIEWS: dict[str, dict[str, Any]] = {
    "clip": {"scale": (0.3, 1.0)},
    "frame": {},
    "order": {"patch_size": 8, "tubelet": 2},
    "blocks": {"patch_size": 4, "smallest": 4, "tubelet": 2},
    "inverse_blocks": {"patch_size": 2, "tubelet": 2},
    "jepa": {"patch_size": 4, "tubelet": 2},
    "choice": {"choices": 2},
}
TEXT_VIEWS: dict[str, dict[str, Any]] = {
    "tokens": {"augment": [{"kind": "swap"}]},
    "parts": {"parts": 2, "words": 2},
    "words": {},
    "choice": {"choices": 3},
    "hard_negative": {},
}
WORDS: tuple[str, ...] = ("swap", "delete", "repeat", "span", "sentences")


def views(kinds: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {f"own_{kind}": {"kind": kind, **settings} for kind, settings in kinds.items()}


def modalities() -> dict[str, Modality]:
    words = [{"kind": kind, "probability": 0.5} for kind in WORDS]
    configs: dict[str, tuple[type[ModalityConfig], dict[str, Any]]] = {
        "image": (ImageConfig, {"size": 16, "views": views(IMAGE_VIEWS)}),
        "audio": (AudioConfig, {"rate": RATE, "seconds": 0.5, "views": views(SOUND_VIEWS)}),
        "mono": (AudioConfig, {"rate": RATE, "seconds": 0.5, "channels": "mono", "views": views(MONO_VIEWS)}),
        "video": (VideoConfig, {"size": 16, "frames": 4, "seconds": 0.5, "views": views(VIDEO_VIEWS)}),
        "text": (TextConfig, {"captions": "lines", "augment": words, "views": views(TEXT_VIEWS)}),
        "label": (LabelConfig, {}),
    }
    return {
        name: config.model_validate_json(json.dumps(values)).build(name) for name, (config, values) in configs.items()
    }


MODALITIES = modalities()
OPTIONAL = ["audio", "mono"]
NEEDS = {name: dict.fromkeys(modality.views, 2) for name, modality in MODALITIES.items()}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    """Eight samples of pictures, sounds, clips, captions and classes; the last has no sound."""
    time = np.arange(RATE) / RATE
    records = []
    for i in range(8):
        sound = np.stack([np.sin((300 + 50 * i) * time), np.sin(400 * time) / 2], 1)
        frames = np.stack([np.roll(noise(i, 32, 32), 2 * step, axis=1) for step in range(10)])
        records.append(
            {
                "__key__": f"{i}",
                "png": encode(noise(i, 40, 48), "PNG"),
                "wav": to_wav(sound, RATE),
                "mkv": encode_clip("mkv", frames, None, fps=10),
                "txt": f"scene {i} of many words that follow on the left\nanother caption of scene {i}".encode(),
                "cls": str(i).encode(),
            }
        )
    del records[-1]["wav"]
    return ShardIndex.open([write(tmp_path_factory.mktemp("records") / "0.tar", records)])


def stream(index: ShardIndex, **options: Any) -> TrainStream:
    return TrainStream(index, MODALITIES, NEEDS, batch_size=8, seed=4, optional=OPTIONAL, **options)


def assert_made_again(batch: Batch, row: int, made: dict[str, dict[str, torch.Tensor]]) -> None:
    for name, kinds in batch.views.items():
        if name not in made:
            assert not batch.present[name][row]
            continue
        for view, x in kinds.items():
            real = x[row, : len(made[name][view])] if MODALITIES[name].view(view[:-1]).ragged else x[row]
            assert torch.equal(made[name][view], real), (name, view)


def test_every_kind_of_view_has_a_case() -> None:
    for union, cases in (
        (ImageViewConfig, IMAGE_VIEWS),
        (SoundViewConfig, SOUND_VIEWS | MONO_VIEWS),
        (VideoViewConfig, VIDEO_VIEWS),
        (TextViewConfig, TEXT_VIEWS),
        (WordOperation, WORDS),
    ):
        assert {config.model_fields["kind"].default for config in get_args(get_args(union)[0])} == set(cases)


@pytest.mark.parametrize("workers", [0, 1])
def test_views_are_made_again_from_their_parameters(index: ShardIndex, workers: int) -> None:
    train = stream(index, workers=Workers(workers, start_method="fork"))
    batch = next(train)
    train.close()
    assert sorted(batch.index.tolist()) == list(range(8))
    for row, number in enumerate(batch.index.tolist()):
        sample = load(index, number, MODALITIES, OPTIONAL)
        record = batch.records[row]
        assert record["synchronized"] == []
        partners = replay_partners(Synchronized((), MODALITIES, OPTIONAL), index, sample, NEEDS, record["views"])
        assert_made_again(batch, row, make_views(sample, MODALITIES, NEEDS, record["views"], partners))
    boxes = batch.parameters("image", "own_resized_crop0")
    assert torch.tensor([drawn["box"] for drawn in boxes if drawn]).shape == (8, 4)
    assert len({str(box) for box in boxes}) > 4
    assert [drawn is None for drawn in batch.parameters("audio", "own_order1")] == [
        i == 7 for i in batch.index.tolist()
    ]
    assert batch.parameters("text", "eval0") == [{}] * 8


def test_augmented_samples_are_made_again_from_their_records(index: ShardIndex) -> None:
    operations = (TimeCrop(seconds=0.6), Flip(probability=0.5), Gain())
    batch = next(stream(index, synchronized=operations))
    synchronized = Synchronized(operations, MODALITIES, OPTIONAL)
    for row, number in enumerate(batch.index.tolist()):
        record = batch.records[row]
        sample = synchronized.replay(index, number, record["synchronized"])
        partners = replay_partners(synchronized, index, sample, NEEDS, record["views"])
        assert_made_again(batch, row, make_views(sample, MODALITIES, NEEDS, record["views"], partners))


def test_a_view_whose_parameters_are_no_plain_data_names_the_sample(
    index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = stream(index)
    view = train.rows.modalities["image"].views["own_resized_crop"]
    drawn = type(view).draw
    monkeypatch.setattr(type(view), "draw", lambda *args: {**drawn(*args), "extra": np.float32(1)})
    with pytest.raises(TypeError, match="float32 is not JSON") as caught:
        next(train)
    assert "in key" in caught.value.__notes__[0]
