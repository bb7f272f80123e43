"""The relation card: what fits is measured as by each evaluator alone; what no sample has stands there without a value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modality import Modality
from mmssl.evaluation.relations.card import RelationsConfig
from mmssl.evaluation.relations.compositionality import CompositionalityConfig
from mmssl.evaluation.relations.modality_confusion import ModalityConfusionConfig
from mmssl.evaluation.relations.target_modality import TargetModalityConfig
from tests.evaluation.world import NAMES, colour_shards, configured, knowing_model, modalities, model

Evaluated = tuple[dict[str, Any], list[dict[str, Any]]]


def build(shards: list[str], **settings: Any) -> Any:
    config = {"shards": shards, "prompts": "words", "classnames": list(NAMES), "resamples": 100, "batch_size": 3}
    return configured(RelationsConfig, **{**config, **settings}).build(of_the_world())


def of_the_world() -> dict[str, Modality]:
    """The world's, and a second reader of the pictures."""
    return {**modalities(), "again": configured(ImageConfig, size=8).build("again")}


def seen(x: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] -> their mean colour, [B, 4]."""
    return F.pad(x.float().mean((2, 3)) / 127.5 - 1, (0, 1))


def read(x: Tensor) -> Tensor:
    """Token ids [B, T] -> the colours that they name, [B, 4]; words that the world lacks have a direction of their own."""
    known = knowing_model().encoders["words"](x).pooled
    return F.pad(known, (0, 1), value=0.1)


def knowing(**more: Callable[[Tensor], Tensor]) -> EmbeddingModel:
    return model(4, picture=seen, words=read, **more)


def measure(evaluator: Any, to: Any) -> Evaluated:
    with evaluator:
        scores = dict(evaluator.evaluate(to))
        columns = evaluator.tables["card"].columns if "card" in evaluator.tables else {}
        return scores, [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_its_scores_are_those_of_the_evaluators(tmp_path: Path) -> None:
    shards = colour_shards(tmp_path, 16)
    scores, rows = measure(build(shards), knowing(again=seen))
    common = {"shards": shards, "batch_size": 3}
    wholes = ["picture", "words", "again"]
    target = configured(TargetModalityConfig, **common, modalities=wholes, resamples=100)
    confusion = configured(
        ModalityConfusionConfig, **common, modalities=["picture", "again"], prompts="words", classnames=list(NAMES)
    )
    words = configured(CompositionalityConfig, **common, pair=["picture", "words"], resamples=100)
    for config, kind, prefix in (
        (target, "target_modality", ""),
        (confusion, "modality_confusion", ""),
        (words, "compositionality", "compositionality_picture_words_"),
    ):
        own = measure(config.build(of_the_world()), knowing(again=seen))[0]
        on_card = [row for row in rows if row["relation"] == kind and str(row["metric"]).startswith(prefix)]
        assert on_card
        for row in on_card:
            name = str(row["metric"]).removeprefix(prefix)
            assert row["value"] == own[name]
            if row["value"] is not None:
                assert (row["ci95_low"], row["ci95_high"]) == (own[f"{name}_ci95_low"], own[f"{name}_ci95_high"])
                assert row["chance"] == own[f"{name}_chance"]
    assert scores["picture_to_words_R@1_n"] == 16
    assert scores["acc1_picture+again"] == 1
    assert (scores["n"], scores["n_excluded"], scores["n_skipped"]) == (16, 0, 0)
    relations = {row["relation"] for row in rows}
    none = {row["metric"] for row in rows if row["value"] is None and "picture" in row["modalities"]}
    assert none == {"sides_picture_words_acc", "compositionality_picture_words_acc_swap"}, (
        "colours may be added to colours"
    )
    assert relations == {"target_modality", "modality_gap", "modality_confusion", "sides", "compositionality"}
    for row in rows:
        if row["value"] is None:
            assert (row["n"], row["metric"] in scores) == (0, False)
        else:
            assert scores[row["metric"]] == row["value"]
            assert row["n"] > 0
            if row["relation"] != "modality_gap":
                assert None not in (row["ci95_low"], row["ci95_high"], row["chance"])


def test_it_takes_what_the_model_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scores, rows = measure(build(colour_shards(tmp_path, 8)), knowing())
    assert {row["modalities"] for row in rows} == {"picture+words"}
    assert "left out again, which this model has not in its shared space" in caplog.text
    assert scores["picture_to_words_R@1"] == 1
    with pytest.raises(ValueError, match="no encoder for 'again'"):
        measure(build(colour_shards(tmp_path, 8), modalities=["picture", "again"]), knowing())


def test_a_collapsed_model_scores_chance(tmp_path: Path) -> None:
    def same(x: Tensor) -> Tensor:
        return torch.ones(len(x), 3)

    _, rows = measure(build(colour_shards(tmp_path, 16)), model(3, picture=same, words=same, again=same))
    for row in rows:
        if row["relation"] in ("target_modality", "compositionality") and row["value"] is not None:
            assert row["value"] == pytest.approx(row["chance"])


def test_shards_of_one_modality_are_refused(tmp_path: Path) -> None:
    one = {"modalities": ["picture"]}
    with pytest.raises(ValueError, match="wanted two or more to relate"):
        build(["x"], **one)
    shards = colour_shards(tmp_path, 4)
    only = {name: made for name, made in of_the_world().items() if name in ("words", "label")}
    with pytest.raises(DataError, match=r"no sample has two modalities to relate: of 4, the members are cls, png, txt"):
        configured(RelationsConfig, shards=shards).build(only).open()
