"""What every evaluator promises, over all kinds that a recipe can name: a new kind needs a case here.

A sample without a modality takes no part and is counted; two processes with uneven shares give the scores of one.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError
from mmssl.core.evaluator import Evaluator, Score
from mmssl.data.media.encode import encode_clip
from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.modalities.multi_label import MultiLabelConfig
from mmssl.data.modalities.text import TextConfig
from mmssl.data.modalities.video import VideoConfig
from mmssl.data.modality import Modality
from mmssl.evaluation.common import EvaluatorConfig
from mmssl.recipe.unions import EvaluatorUnion
from tests.data.make import Record, write
from tests.distributed.processes import Processes
from tests.evaluation.complete import require_complete
from tests.evaluation.world import Formula, configured

RATE, FRAMES, WIDTH = 8000, 10, 8
PAIR = ["video", "audio"]
CASES: dict[str, dict[str, Any]] = {
    "zero_shot": {
        "modality": "video",
        "prompts": "text",
        "classnames": ["one", "two", "three"],
        "templates": "plain",
        "calibration": True,
    },
    "multi_label": {"modality": "video", "classnames": ["one", "two", "three"], "templates": "plain", "resamples": 100},
    "retrieval": {"pair": PAIR, "resamples": 100},
    "class_retrieval": {"pair": PAIR, "resamples": 100},
    "linear_probe": {"modality": "video", "penalties": [1.0, 0.1]},
    "attentive_probe": {"modality": "video", "heads": 2, "epochs": 2, "lrs": [0.1, 0.01], "training_batch": 4},
    "fine_tuning": {"modality": "video", "epochs": 2, "lr": 0.05, "training_batch": 4},
    "knn": {"modality": "video", "ks": [3, 2]},
    "few_shot": {
        "modality": "video",
        "shots": [1, 2],
        "draws": 2,
        "tip_adapter": True,
        "classnames": ["one", "two", "three"],
        "templates": "plain",
    },
    "representation": {"modality": "audio"},
    "modality_gap": {"pair": PAIR},
    "calibration": {"pair": PAIR, "negatives": 2, "resamples": 100},
    "offset": {"pair": PAIR, "seconds": 0.5, "offsets": [0, 0.2, 0.4]},
    "sides": {"pair": PAIR},
    "compositionality": {"pair": ["audio", "text"], "resamples": 100},
    "word_order": {"pair": ["audio", "text"], "resamples": 100},
    "modality_confusion": {"modalities": PAIR, "classnames": ["one", "two", "three"], "templates": "plain"},
    "target_modality": {"modalities": PAIR, "resamples": 100},
    "relations": {
        "modalities": PAIR,
        "classnames": ["one", "two", "three"],
        "templates": "plain",
        "seconds": 0.5,
        "resamples": 100,
    },
}
TRAINED = ("linear_probe", "attentive_probe", "fine_tuning", "knn", "few_shot")
"""Kinds that compare with training samples."""
OF_FILES = {"caption_choice", "mteb"}
"""Kinds that read no shards: their own tests hold two processes, and what is damaged. mteb's need its package."""
EVERY = pytest.mark.parametrize("kind", CASES)
WITHOUT = {"n_excluded", "n_train_excluded"}


def test_every_kind_of_a_recipe_is_here() -> None:
    (union, _) = get_args(EvaluatorUnion)
    assert {member.model_fields["kind"].default for member in get_args(union)} == set(CASES) | OF_FILES


def modalities() -> dict[str, Modality]:
    made = {
        "video": configured(VideoConfig, size=16, frames=FRAMES, seconds=1.0),
        "audio": configured(AudioConfig, extensions=["mp4"], rate=RATE, seconds=0.5, pad="zero", channels="stereo"),
        "text": configured(TextConfig, tokenizer={"kind": "clip", "context_length": 12}),
        "label": configured(LabelConfig),
        "multi_label": configured(MultiLabelConfig),
    }
    return {name: config.build(name) for name, config in made.items()}


def seen(x: Tensor) -> Tensor:
    """[B, T, 3, H, W] -> [B, WIDTH]: how bright each eighth of the width is."""
    return F.normalize(x.float().mean((1, 2, 3)).unflatten(1, (WIDTH, -1)).mean(2))


def heard(x: Tensor) -> Tensor:
    """[B, 2, samples] -> [B, WIDTH]: the power of four parts of each channel."""
    return F.normalize(x.float().square().unflatten(2, (WIDTH // 2, -1)).mean(3).flatten(1)) + 1e-3


def read(x: Tensor) -> Tensor:
    """[B, T] -> [B, WIDTH]: a random row for each token, summed."""
    table = torch.randn(49408, WIDTH, generator=torch.Generator().manual_seed(0))
    return table.to(x.device)[x].sum(1)


def model() -> EmbeddingModel:
    encoders = {name: Formula(how, WIDTH) for name, how in (("video", seen), ("audio", heard), ("text", read))}
    return EmbeddingModel(encoders, {name: nn.Identity() for name in encoders})


def record(number: int, *, sound: bool = True, clip: bool = True, label: bool = True) -> Record:
    """A second of a few bright columns, and of noise that is louder on one side."""
    rng = np.random.default_rng(number)
    frames = np.repeat(rng.integers(0, 255, (1, 1, 16, 3), dtype=np.uint8).repeat(16, 1), FRAMES, 0)
    loudness = rng.uniform(0.01, 0.3, (8, 1)).repeat(RATE // 8, 0) * rng.permutation([1.0, 0.2])
    wave = (rng.standard_normal((RATE, 2)) * loudness).astype(np.float32)
    fields: Record = {"__key__": f"{number:03d}", "txt": b"two red noises before a blue tone"}
    if clip:
        fields["mp4"] = encode_clip("mp4", frames, wave if sound else None, fps=FRAMES, rate=RATE)
    if label:
        fields["cls"] = str(number % 3).encode()
        several = io.BytesIO()
        np.save(several, np.array([number % 3 == 0, number % 2 == 0, number % 5 == 0]))
        fields["npy"] = several.getvalue()
    return fields


def config_of(kind: str) -> type[EvaluatorConfig]:
    (union, _) = get_args(EvaluatorUnion)
    return next(member for member in get_args(union) if member.model_fields["kind"].default == kind)


@EVERY
def test_settings_written_in_full_read_back_equal(kind: str) -> None:
    """As in the recipe of a run folder, and in results: with the defaults of what was not named."""
    config = config_of(kind)
    needed = {name for name, field in config.model_fields.items() if field.is_required()}
    shards = {name: ["a"] for name in ("shards", "train_shards", "validation_shards") if name in needed}
    for named in (CASES[kind], {name: value for name, value in CASES[kind].items() if name in needed}):
        written = configured(config, **shards, **named)
        assert config.model_validate_json(written.model_dump_json()) == written


def built(kind: str, shards: list[str], train: list[str]) -> Evaluator:
    config = config_of(kind)
    values: Mapping[str, Any] = CASES[kind] | {"shards": shards, "batch_size": 2}
    if kind in TRAINED:
        values = {**values, "train_shards": train}
    if kind == "fine_tuning":
        values = {**values, "validation_shards": [_copy(path) for path in train]}
    evaluator = configured(config, **values).build(modalities())
    assert isinstance(evaluator, Evaluator)
    return evaluator


def measure(kind: str, shards: list[str], train: list[str]) -> dict[str, Score]:
    return dict(built(kind, shards, train).evaluate(model()))


def _copy(shard: str) -> str:
    return shard.removesuffix(".tar") + "_again.tar"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """Shards by what their samples lack, each made once."""
    folder = tmp_path_factory.mktemp("shards")

    def made(name: str, records: Callable[[], list[Record]]) -> list[str]:
        path: Path = folder / f"{name}.tar"
        if not path.exists():
            write(path, records())
            Path(_copy(str(path))).write_bytes(path.read_bytes())
        return [str(path)]

    return made


def whole(n: int) -> list[Record]:
    return [record(number) for number in range(n)]


def lacking() -> list[Record]:
    """Nine samples as in `whole`, and among them one that is mute, two without a clip, and one without a label or a clip."""
    others = [record(9, sound=False, label=False), record(10, clip=False), record(11, clip=False)]
    return [*whole(4), *others, *whole(9)[4:], record(12, clip=False, label=False)]


@EVERY
def test_samples_without_a_modality_take_no_part_and_are_counted(kind: str, shards: Callable[..., list[str]]) -> None:
    train = shards("train", lambda: whole(9))
    scores = measure(kind, shards("lacking", lacking), shards("lacking", lacking))
    expected = measure(kind, train, train)
    assert scores["n_excluded"] == 4
    assert expected["n_excluded"] == 0
    ways = {"retrieval": "n_video", "class_retrieval": "n_video"}.get(kind, "n")
    if kind != "retrieval":  # there the mute clip is a candidate
        assert {k: v for k, v in scores.items() if k not in WITHOUT} == pytest.approx(
            {k: v for k, v in expected.items() if k not in WITHOUT}
        )
    assert scores[ways] == (10 if kind == "retrieval" else 9)
    if kind in TRAINED:
        assert scores["n_train_excluded"] == 4


@EVERY
def test_every_figure_has_n_interval_and_chance(kind: str, shards: Callable[..., list[str]]) -> None:
    train = shards("train", lambda: whole(9))
    evaluator = built(kind, train, train)
    scores = dict(evaluator.evaluate(model()))
    require_complete(kind, scores, evaluator.headlines)


@EVERY
def test_nothing_left_is_said(kind: str, shards: Callable[..., list[str]]) -> None:
    def bare() -> list[Record]:
        return [record(0, clip=False), record(1, label=False, sound=False), record(2, label=False, sound=False)]

    with pytest.raises(DataError, match=r"no (sample|class) has .*of 3.* check "):
        measure(kind, shards("bare", bare), shards("train", lambda: whole(9)))


@EVERY
@pytest.mark.parametrize("arrangement", ["uneven", "one_lacks_all"])
def test_two_processes_give_the_scores_of_one(
    kind: str, arrangement: str, two_processes: Processes, shards: Callable[..., list[str]]
) -> None:
    def one_lacks_all() -> list[Record]:
        """The second process' half has neither sound nor label, or no clip at all."""
        empty = [record(number, sound=False, label=False, clip=number % 2 == 0) for number in range(9, 14)]
        return [*whole(4), *empty]

    makers = {"uneven": lambda: [*lacking(), record(14), record(15)], "one_lacks_all": one_lacks_all}
    given = (kind, shards(arrangement, makers[arrangement]), shards("train", lambda: whole(9)))
    first, second = two_processes.run(measure, [given, given])
    assert first == second
    assert first == pytest.approx(measure(*given), abs=1e-6)
