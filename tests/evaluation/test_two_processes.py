"""Two processes with uneven shares, one of them empty even, give the scores of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmssl.core import distributed
from mmssl.core.errors import MmsslError, NumericError
from mmssl.evaluation.labelled.knn import KnnConfig
from mmssl.evaluation.labelled.linear_probe import LinearProbeConfig
from mmssl.evaluation.labelled.zero_shot import ZeroShotConfig
from mmssl.evaluation.retrieval import RetrievalConfig
from tests.distributed.processes import Processes
from tests.evaluation.world import (
    NAMES,
    colour_sample,
    colour_shards,
    configured,
    knowing_model,
    modalities,
    write_shard,
)


def evaluate(kind: str, shards: list[str], train: list[str], classes: int) -> dict[str, Any]:
    common = {"shards": shards, "batch_size": 2}
    config = {
        "zero_shot": lambda: configured(
            ZeroShotConfig, modality="picture", prompts="words", classnames=list(NAMES[:classes]), **common
        ),
        "retrieval": lambda: configured(RetrievalConfig, pair=["picture", "words"], **common),
        "linear_probe": lambda: configured(LinearProbeConfig, modality="picture", train_shards=train, **common),
        "knn": lambda: configured(KnnConfig, modality="picture", train_shards=train, ks=[5, 3], **common),
    }[kind]()
    return dict(config.build(modalities()).evaluate(knowing_model()))


def refusal(shards: list[str]) -> str:
    """What each process says when the sample that one of them has is no number."""
    model = knowing_model()
    model.encoders["words"].table.data[:] = torch.nan
    config = configured(RetrievalConfig, shards=shards, pair=["picture", "words"], batch_size=2)
    with pytest.raises(NumericError) as caught:
        list(config.build(modalities()).evaluate(model))
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "n"),
    [("zero_shot", 8), ("retrieval", 7), ("retrieval", 1), ("linear_probe", 7), ("knn", 7), ("knn", 1)],
)
def test_scores_are_those_of_one_process(two_processes: Processes, tmp_path: Path, kind: str, n: int) -> None:
    given = (kind, colour_shards(tmp_path / "test", n), colour_shards(tmp_path / "train", 21), 8)
    alone = evaluate(*given)
    first, second = two_processes.run(evaluate, [given, given])
    assert first == second
    assert first == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize(("classes", "world"), [(8, 3), (2, 3), (2, 5)])
def test_classes_are_shared_among_processes(monkeypatch: pytest.MonkeyPatch, classes: int, world: int) -> None:
    """Also where some process has no class at all."""
    names = list(NAMES[:classes])
    config = configured(ZeroShotConfig, shards=["x"], modality="picture", prompts="words", classnames=names)
    evaluator, model = config.build(modalities()), knowing_model()
    alone = evaluator.prompts.classifier(model)
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    monkeypatch.setattr(distributed, "gather_uneven", lambda rows: rows)
    shares = []
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(evaluator.prompts.classifier(model))
    assert max(len(share) for share in shares) <= -(-classes // world)
    assert torch.equal(torch.cat(shares), alone)


def test_all_processes_refuse_together(two_processes: Processes, tmp_path: Path) -> None:
    given = (colour_shards(tmp_path, 5),)
    first, second = two_processes.run(refusal, [given, given])
    assert first == second
    assert "'words' of key 'sample000'" in first


KINDS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "retrieval": (RetrievalConfig, {"pair": ["picture", "words"]}),
    "zero_shot": (ZeroShotConfig, {"modality": "picture", "prompts": "words", "classnames": list(NAMES)}),
    "linear_probe": (LinearProbeConfig, {"modality": "picture"}),
}


def outcomes(kind: str, damaged: str, whole: list[str]) -> list[str]:
    """What each process gets from an evaluator whose second share is damaged, and from a whole one after it."""
    config, values = KINDS[kind]
    found = []
    for shards in ([damaged], whole):
        train = {"train_shards": shards} if kind == "linear_probe" else {}
        evaluator = configured(config, shards=shards, batch_size=2, **values, **train).build(modalities())
        scores = distributed.attempt(lambda evaluator=evaluator: dict(evaluator.evaluate(knowing_model())))
        found.append(str(scores) if isinstance(scores, MmsslError) else str(scores["n_skipped"]))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_that_fails_alone_does_not_hold_the_others_up(
    two_processes: Processes, tmp_path: Path, kind: str
) -> None:
    samples = [colour_sample(i) for i in range(6)]
    samples[5][1]["png"] = b"no picture"
    given = (kind, str(write_shard(tmp_path / "damaged.tar", samples)), colour_shards(tmp_path / "whole", 21))
    first, second = two_processes.run(outcomes, [given, given], timeout=60)
    assert first == second
    assert "sample005" in first[0]
    assert first[1] == "0"
