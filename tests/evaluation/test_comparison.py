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
from mmssl.evaluation.curves import auroc
from mmssl.evaluation.labelled.multi_label import MultiLabelZeroShotConfig, multi_label_scores
from mmssl.evaluation.retrieval import retrieval_scores
from mmssl.evaluation.statistics import counted_median, paired_difference, wilson
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
    assert (whole.difference, whole.mcnemar_p) == (0, 1)
    most = wilson(0, 4)[1]
    assert (whole.ci95_low, whole.ci95_high) == pytest.approx((-most, most)), "four samples do not say more"


def test_rows_that_all_change_have_no_interval_of_one_point() -> None:
    whole, a, b = compare_tables("t", table([0, 1] * 4), table([1, 1] * 4))
    assert (a.group, a.difference, a.n) == ("a", 1, 4)
    assert (a.ci95_low, a.ci95_high) == pytest.approx(paired_difference(4, 0, 4))
    assert 0 < a.ci95_low < 0.1
    assert b.ci95_low < 0 < b.ci95_high
    assert whole.ci95_low < 0.5 < whole.ci95_high
    # Also where rows of one sample belong together, and where outcomes are no successes.
    several = [
        {"q": Table({"key": [*"xxyy"], "item": [0, 1, 0, 1], "MRR": right}, ("MRR",))} for right in ([0] * 4, [1] * 4)
    ]
    (row,) = compare_tables("t", *several)
    assert (row.ci95_low, row.ci95_high) == pytest.approx(paired_difference(2, 0, 2)), "of two samples"
    (row,) = compare_tables("t", several[0], several[0])
    assert (row.ci95_low, row.ci95_high) == pytest.approx(paired_difference(0, 0, 2))


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


def test_areas_are_compared_by_what_they_owe_to_each_sample() -> None:
    random = torch.Generator().manual_seed(3)
    labels = torch.rand(300, 3, generator=random) < 0.3
    first = F.normalize(labels + torch.randn(300, 3, generator=random), dim=1)
    second = F.normalize(first + 0.15 * labels, dim=1)
    (a, one), (b, other) = several(first, labels), several(second, labels)
    (row,) = [row for row in compare_tables("t", one, other, resamples=100) if row.metric == "AUROC"]
    assert (row.first, row.second, row.n) == (a["AUROC"], b["AUROC"], 300)
    assert row.difference == pytest.approx(row.second - row.first)
    drawn = []
    for _ in range(300):
        some = torch.randint(0, 300, (300,), generator=random)
        drawn.append(float((auroc(second[some].T, labels[some].T) - auroc(first[some].T, labels[some].T)).mean()))
    assert (row.ci95_low, row.ci95_high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.01)
    assert row.ci95_low > 0
    assert row.ci95_high - row.ci95_low < 0.5 * (a["AUROC_ci95_high"] - a["AUROC_ci95_low"]), "pairing narrows it"
    # Rows that the second model has in another order.
    turned, (area, owed) = other["samples"], other["samples"].influences["AUROC"]
    columns = {name: list(reversed(values)) for name, values in turned.columns.items()}
    turned = replace(turned, columns=columns, influences={"AUROC": (area, owed.flip(0))}, measures={})
    (again,) = [
        row
        for row in compare_tables("t", {"samples": replace(one["samples"], measures={})}, {"samples": turned})
        if row.metric == "AUROC"
    ]
    assert (again.ci95_low, again.ci95_high) == pytest.approx((row.ci95_low, row.ci95_high))
    fewer = replace(turned, columns={name: values[:299] for name, values in columns.items()})
    rows = compare_tables("t", {"samples": replace(one["samples"], measures={})}, {"samples": fewer}, resamples=100)
    assert "AUROC" not in [row.metric for row in rows], "it is the score of all rows"


def test_ranks_are_compared_in_draws_of_samples() -> None:
    """Three captions of each picture, which are found together."""
    random = torch.Generator().manual_seed(4)
    tables, ranks = [], []
    for noise in (0.4, 0.3):
        pictures = F.normalize(torch.randn(40, 8, generator=random), dim=1)
        texts = F.normalize(pictures.repeat_interleave(3, 0) + noise * torch.randn(120, 8, generator=random), dim=1)
        data = collected(40, image=items(pictures), text=items(texts, torch.arange(40).repeat_interleave(3)))
        scores, found = retrieval_scores(data, ("image", "text"), resamples=100)
        tables.append(found)
        ranks.append(np.array(found["text_to_image"].columns["rank"]).reshape(40, 3))
        for name in ("mean_rank", "median_rank"):
            (own,) = found["text_to_image"].measures[name](torch.ones(120, 1))
            assert float(own) == pytest.approx(scores[f"text_to_image_{name}"])
    rows = {row.metric: row for row in compare_tables("t", *tables)}
    drawn = [np.random.default_rng(seed).integers(40, size=40) for seed in range(500)]
    for name, measure in (("mean_rank", np.mean), ("median_rank", lambda values: np.floor(np.median(values)))):
        row = rows[f"text_to_image_{name}"]
        assert (row.first, row.second) == tuple(float(measure(one)) for one in ranks)
        expected = np.array([measure(ranks[1][some]) - measure(ranks[0][some]) for some in drawn])
        expected += row.difference - expected.mean()
        low, high = np.quantile(expected, [0.025, 0.975])
        assert (row.ci95_low, row.ci95_high) == pytest.approx(
            (min(low, row.difference), max(high, row.difference)), abs=0.25
        )
        assert row.ci95_low < row.difference < row.ci95_high


def test_counted_medians_are_those_of_repeated_values() -> None:
    random = torch.Generator().manual_seed(5)
    values = torch.randint(1, 9, (31,), generator=random)
    counts = torch.randint(0, 4, (31, 20), generator=random)
    found = counted_median(values, counts.float()).tolist()
    assert found == [float(np.floor(np.median(values.repeat_interleave(column)))) for column in counts.T]


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
