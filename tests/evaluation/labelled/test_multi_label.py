"""Multi-label zero-shot: known models, CLIP_benchmark's layout of vectors, and samples that do not fit."""

from __future__ import annotations

import io
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from mmssl.core.errors import DataError
from mmssl.data.modalities.multi_label import MultiLabelConfig
from mmssl.evaluation.curves import PrecisionRecall, auroc
from mmssl.evaluation.labelled.multi_label import MultiLabelZeroShotConfig, multi_label_scores
from tests.evaluation.world import (
    COLOURS,
    NAMES,
    collected,
    configured,
    items,
    knowing_model,
    modalities,
    png,
    write_shard,
)


def config(**values: Any) -> MultiLabelZeroShotConfig:
    common = {"shards": ["x"], "modality": "m", "labels": "y", "classnames": ["a", "b", "c"]}
    return configured(MultiLabelZeroShotConfig, **{**common, **values})


def run(rows: Tensor, labels: Tensor, **values: Any) -> dict[str, Any]:
    owner = torch.arange(len(labels)).repeat_interleave(labels.shape[1])
    data = collected(len(labels), m=items(rows), y=items(labels.flatten(), owner))
    return multi_label_scores(data, torch.eye(3), "abc", config(**values))[0]


def test_known_models_have_known_scores() -> None:
    labels = (torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) < 0.3).long()
    labels[0] = 1
    perfect = run(labels + 0.01, labels)
    assert (perfect["mAP"], perfect["AUROC"], perfect["LRAP"]) == (1, 1, 1)
    collapsed = run(torch.ones(200, 3), labels)
    assert collapsed["mAP"] == pytest.approx(collapsed["mAP_chance"])
    assert collapsed["AUROC"] == 0.5
    random = run(torch.randn(200, 3, generator=torch.Generator().manual_seed(1)), labels)
    for name in ("mAP", "AUROC", "LRAP"):
        assert random[f"{name}_ci95_low"] < random[name] < random[f"{name}_ci95_high"]
        assert random[f"{name}_ci95_low"] < random[f"{name}_chance"] < random[f"{name}_ci95_high"]
        assert perfect[f"{name}_ci95_high"] == 1
    assert random["AUROC"] == pytest.approx(0.5, abs=0.1)
    assert perfect["AUROC_ci95_low"] < 1 > perfect["LRAP_ci95_low"]
    absent = run(labels + 0.01, labels * torch.tensor([1, 1, 0]))
    assert absent["absent_classes"] == "c"


def test_intervals_are_those_of_a_bootstrap_over_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(150, 3, generator=generator) < 0.3
    rows = F.normalize(labels + 0.8 * torch.randn(150, 3, generator=generator), dim=1)
    found = run(rows, labels.long(), resamples=2000)
    drawn: dict[str, list[float]] = {"AUROC": [], "LRAP": [], "mAP": []}
    for _ in range(400):
        some = torch.randint(0, 150, (150,), generator=generator)
        scores, right = rows[some].T, labels[some].T
        drawn["AUROC"].append(float(auroc(scores, right).mean()))
        drawn["mAP"].append(float(PrecisionRecall(scores, right).average_precision().mean()))
        drawn["LRAP"].append(float(PrecisionRecall(scores.T, right.T).average_precision().nanmean()))
    for name, values in drawn.items():
        expected = torch.tensor(values).quantile(torch.tensor([0.025, 0.975])).tolist()
        assert (found[f"{name}_ci95_low"], found[f"{name}_ci95_high"]) == pytest.approx(expected, abs=0.02), name


def test_every_score_can_be_computed_from_the_rows_of_samples() -> None:
    generator = torch.Generator().manual_seed(3)
    labels = (torch.rand(40, 3, generator=generator) < 0.4).long()
    owner = torch.arange(40).repeat_interleave(3)
    data = collected(40, m=items(torch.randn(40, 3, generator=generator)), y=items(labels.flatten(), owner))
    scores, tables = multi_label_scores(data, torch.eye(3), "abc", config())
    rows = tables["samples"]
    cosines, held = (rows.vectors[name].numpy() for name in ("scores", "labels"))
    assert (cosines.dtype, cosines.shape, held.dtype) == (np.float32, (40, 3), bool)
    assert scores["mAP"] == pytest.approx(average_precision_score(held, cosines))
    assert scores["AUROC"] == pytest.approx(roc_auc_score(held, cosines))
    assert [", ".join(np.array(list("abc"))[row]) for row in held] == rows.columns["classes"]


def test_chance_of_label_ranking_is_the_mean_over_all_orders_of_the_classes() -> None:
    """Samples with one, two, three and no classes; the last is left out."""
    labels = torch.tensor([[1, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 0]])
    found = [run(torch.tensor([order] * 4).float() + 1, labels)["LRAP"] for order in permutations(range(3))]
    assert run(torch.eye(3)[[0, 1, 2, 0]] + 1, labels)["LRAP_chance"] == pytest.approx(sum(found) / len(found))


def test_vectors_of_another_length_are_refused_by_key() -> None:
    with pytest.raises(DataError, match="'key0' has 4 entries in 'y', wanted 3"):
        run(torch.eye(3), torch.ones(3, 4, dtype=torch.long))


def test_from_shards_with_names_above_them(tmp_path: Path) -> None:
    def sample(number: int) -> tuple[str, dict[str, bytes]]:
        file = io.BytesIO()
        np.save(file, np.eye(len(NAMES), dtype=np.int64)[number % len(NAMES)])
        return f"s{number:02d}", {"png": png(COLOURS[NAMES[number % 8]], number), "npy": file.getvalue()}

    shards = [str(write_shard(tmp_path / "test/0.tar", map(sample, range(16))))]
    (tmp_path / "classnames.txt").write_text("\n".join(NAMES))
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a {c} thing\n")
    values = {"shards": shards, "modality": "picture", "prompts": "words", "classnames": None, "labels": "multi_label"}
    evaluator = config(**values).build({**modalities(), "multi_label": MultiLabelConfig().build("multi_label")})
    with evaluator:
        scores = dict(evaluator.evaluate(knowing_model()))
        assert evaluator.facts()["templates"] == ("a {c} thing",)
    assert (scores["n"], scores["n_labels"], scores["mAP"], scores["classes"]) == (16, 16, 1, 8)
    assert evaluator.tables["samples"].columns["classes"][:2] == list(NAMES[:2])
