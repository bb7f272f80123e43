"""Paired comparison: known differences, rows that are matched, and the interval that pairing narrows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmssl.core.errors import DataError
from mmssl.core.evaluator import Table
from mmssl.evaluation.comparison import compare_tables, mcnemar
from mmssl.evaluation.statistics import wilson


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


def test_mcnemar_is_the_binomial_test_of_the_samples_that_differ() -> None:
    first = torch.tensor([True] * 3 + [False] * 9)
    second = torch.tensor([False] * 2 + [True] * 7 + [False] * 3)
    assert mcnemar(first, second) == pytest.approx(2 * sum((1, 8, 28)) / 2**8)  # 6 gained, 2 lost
