"""Paired comparison: known differences, rows that are matched, and the interval that pairing narrows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torch import Tensor

from mmssl.core.errors import DataError
from mmssl.core.evaluator import Table
from mmssl.evaluation.class_retrieval import class_retrieval_scores
from mmssl.evaluation.classification import class_means, counted_class_means
from mmssl.evaluation.comparison import compare_tables, mcnemar, paired_rows
from mmssl.evaluation.labelled.multi_label import MultiLabelZeroShotConfig, multi_label_scores
from mmssl.evaluation.statistics import wilson
from tests.evaluation.world import collected, configured, items


def table(right: list[int], keys: list[str] | None = None) -> dict[str, Table]:
    names = keys or [f"k{i}" for i in range(len(right))]
    return {"samples": Table({"key": names, "class": ["a", "b"] * (len(right) // 2), "acc1": right}, ("acc1",))}


def test_models_that_agree_on_most_samples_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    first = (rng.random(400) < 0.6).astype(int)
    second = first.copy()
    second[np.flatnonzero(first == 0)[:12]] = 1
    whole, a, b = compare_tables("t", table(first.tolist()), table(second.tolist()))
    assert whole.difference == pytest.approx(12 / 400)
    assert 0 < whole.ci95_low < whole.difference < whole.ci95_high
    assert whole.mcnemar_p == pytest.approx(2 * 0.5**12)
    low, high = wilson(int(first.sum()), 400)
    assert low < whole.second < high, "the intervals of each score overlap"
    assert (a.group, b.group, a.n, b.n) == ("a", "b", 200, 200)
    assert (a.difference + b.difference) / 2 == pytest.approx(whole.difference)


def test_equal_models_have_no_difference() -> None:
    whole, *_ = compare_tables("t", table([1, 0, 1, 1]), table([1, 0, 1, 1]))
    assert (whole.difference, whole.ci95_low, whole.ci95_high, whole.mcnemar_p) == (0, 0, 0, 1)


def test_rows_are_matched_by_key_item_and_occurrence() -> None:
    first = {"a_to_b": Table({"key": ["x", "x", "y", "y"], "item": [0, 1, 0, 0], "R@1": [1, 0, 0, 1]}, ("R@1",))}
    second = {"a_to_b": Table({"key": ["y", "x", "y", "z"], "item": [0, 1, 0, 0], "R@1": [0, 1, 1, 1]}, ("R@1",))}
    (row,) = compare_tables("t", first, second)
    assert (row.metric, row.n, row.first, row.second) == ("a_to_b_R@1", 3, pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert row.mcnemar_p is None, "two rows of one sample are not independent"
    with pytest.raises(DataError, match="measured on different samples"):
        list(compare_tables("t", table([1, 0], ["p", "q"]), table([1, 0], ["r", "s"])))


def several(rows: Tensor, labels: Tensor) -> tuple[dict[str, Any], dict[str, Table]]:
    """Scores and tables of multi-label classification of three classes, whose cosines are `rows`."""
    owner = torch.arange(len(labels)).repeat_interleave(3)
    data = collected(len(labels), m=items(rows), y=items(labels.flatten().long(), owner))
    common = {"shards": ["x"], "modality": "m", "labels": "y", "classnames": ["a", "b", "c"]}
    return multi_label_scores(data, torch.eye(3), "abc", configured(MultiLabelZeroShotConfig, **common))


def test_average_precision_is_compared_on_the_same_draws() -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.rand(200, 3, generator=random) < 0.3
    first = F.normalize(labels + torch.randn(200, 3, generator=random), dim=1)
    second = F.normalize(first + 0.15 * labels, dim=1)
    (a, one), (b, other) = several(first, labels), several(second, labels)
    (row,) = [row for row in compare_tables("t", one, other, resamples=400) if row.metric == "mAP"]
    assert (row.first, row.second) == pytest.approx((a["mAP"], b["mAP"]))
    assert row.difference == pytest.approx(b["mAP"] - a["mAP"])
    drawn = []
    for _ in range(300):
        some = torch.randint(0, 200, (200,), generator=random)
        held = labels[some]
        drawn.append(average_precision_score(held, second[some]) - average_precision_score(held, first[some]))
    assert (row.ci95_low, row.ci95_high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.01)
    assert row.ci95_low > 0
    assert row.ci95_high - row.ci95_low < 0.5 * (a["mAP_ci95_high"] - a["mAP_ci95_low"]), "pairing narrows it"
    same = [row for row in compare_tables("t", one, one, resamples=100) if row.metric == "mAP"]
    assert (same[0].difference, same[0].ci95_low, same[0].ci95_high) == (0, 0, 0)
    half = {"samples": replace(other["samples"], columns={"key": [*one["samples"].columns["key"][:199], "other"]})}
    (row,) = compare_tables("t", {"samples": replace(one["samples"], outcomes=())}, half, resamples=100)
    assert row.n == 199
    assert row.first == pytest.approx(average_precision_score(labels[:199], first[:199]))


def test_means_over_classes_are_those_of_draws() -> None:
    random = torch.Generator().manual_seed(1)
    labels, predicted = (torch.randint(0, 4, (60,), generator=random) for _ in range(2))
    some = torch.randint(0, 60, (60,), generator=random)
    counts = torch.stack([torch.ones(60), torch.bincount(some, minlength=60).float()], 1)
    found = counted_class_means(predicted, labels, 4, counts)
    for column, which in enumerate((torch.arange(60), some)):
        expected = class_means(predicted[which], labels[which], 4)
        assert {name: float(values[column]) for name, values in found.items()} == pytest.approx(expected)


def test_queries_of_class_retrieval_are_compared() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    tables = []
    for shown in (labels, torch.tensor([0, 0, 1, 0])):
        pictures, texts = (items(torch.eye(2)[which]) for which in (shown, labels))
        data = collected(4, image=pictures, text=texts, label=items(labels))
        scores, found = class_retrieval_scores(data, ("image", "text"), "label", ks=(1,), resamples=100)
        tables.append(found)
        outcomes = [float(x or 0) for x in found["image_to_text"].columns["mAP"]]
        assert sum(outcomes) / 4 == pytest.approx(scores["image_to_text_mAP"])
    rows = list(compare_tables("t", *tables, resamples=100))
    whole = next(row for row in rows if (row.metric, row.group) == ("image_to_text_mAP", ""))
    assert (whole.first, whole.n) == (1, 4)
    assert [row.group for row in rows if row.metric == "image_to_text_mAP"] == ["", "0", "1"]
    lost = [row for row in paired_rows("t", *tables) if row.metric == "image_to_text_R@1" and row.difference]
    assert [(row.key, row.item, row.group, row.first, row.second) for row in lost] == [("key3", 0, "1", 1, 0)]
    ranks = [row.second for row in paired_rows("t", *tables) if row.metric == "image_to_text_rank"]
    assert ranks == [1, 1, 1, 3]


def test_mcnemar_is_the_binomial_test_of_the_samples_that_differ() -> None:
    first = torch.tensor([True] * 3 + [False] * 9)
    second = torch.tensor([False] * 2 + [True] * 7 + [False] * 3)
    assert mcnemar(first, second) == pytest.approx(2 * sum((1, 8, 28)) / 2**8)  # 6 gained, 2 lost
