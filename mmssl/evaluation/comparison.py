"""Paired comparison of two models on the same rows: bootstrap intervals of differences, and McNemar's test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from mmssl.core.errors import DataError
from mmssl.core.evaluator import Score, Table
from mmssl.evaluation.statistics import mean_by_cluster

Row = tuple[object, ...]


@dataclass(frozen=True)
class Difference:
    """A score of two models on the same rows, and second minus first.

    Attributes:
        task, metric: what was measured. group: the class; "": all rows.
        first, second: mean outcome of each model.
        difference: second - first; ci95_low, ci95_high: paired bootstrap over samples, so that the rows of one sample are one draw.
        mcnemar_p: exact McNemar test of outcomes of 0 and 1, one row a sample; None: does not apply.
        n: rows in both.
    """

    task: str
    metric: str
    group: str
    first: float
    second: float
    difference: float
    ci95_low: float
    ci95_high: float
    mcnemar_p: float | None
    n: int


def compare_tables(
    task: str, first: Mapping[str, Table], second: Mapping[str, Table], *, resamples: int = 2000, seed: int = 0
) -> Iterator[Difference]:
    """Compare every outcome of the tables of two models, and the first outcome class by class where rows have a class.

    Args:
        task: name of the evaluator.
        first, second: tables of each model, by name. Rows are matched by key, item, and occurrence of these.
        resamples, seed: of the bootstrap.

    Raises:
        DataError: the two have no row in common.
    """
    for name, table in first.items():
        if not table.outcomes or name not in second:
            continue
        rows = _rows(table)
        others = {row: place for place, row in enumerate(_rows(second[name]))}
        places = [(place, others[row]) for place, row in enumerate(rows) if row in others]
        if not places:
            raise DataError(
                f"{task}: the two models were measured on different samples; compare them on the same shards"
            )
        keys = [rows[place][0] for place, _ in places]
        classes = [str(table.columns["class"][place]) for place, _ in places] if "class" in table.columns else []
        for number, outcome in enumerate(table.outcomes):
            a = _values(table.columns[outcome], [place for place, _ in places])
            b = _values(second[name].columns[outcome], [place for _, place in places])
            metric = outcome if name == "samples" else f"{name}_{outcome}"
            yield _difference(task, metric, "", a, b, keys, resamples, seed)
            for group in dict.fromkeys(classes) if number == 0 else ():
                inside = [i for i, one in enumerate(classes) if one == group]
                chosen = [keys[i] for i in inside]
                yield _difference(task, metric, group, a[inside], b[inside], chosen, resamples, seed)


def mcnemar(first: torch.Tensor, second: torch.Tensor) -> float:
    """Two-sided p-value of McNemar's exact test that two models are right equally often (McNemar 1947).

    Args:
        first, second: [n] bool, whether each was right on the same samples.
    """
    from scipy.stats import binomtest

    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def _difference(
    task: str,
    metric: str,
    group: str,
    a: torch.Tensor,
    b: torch.Tensor,
    keys: Sequence[object],
    resamples: int,
    seed: int,
) -> Difference:
    numbers: dict[object, int] = {}
    cluster = torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])
    _, low, high = mean_by_cluster(b - a, cluster, resamples=resamples, seed=seed)
    binary = len(numbers) == len(keys) and bool((((a == 0) | (a == 1)) & ((b == 0) | (b == 1))).all())
    p = mcnemar(a.bool(), b.bool()) if binary else None
    means = float(a.mean()), float(b.mean())
    return Difference(task, metric, group, *means, means[1] - means[0], low, high, p, len(keys))


def _rows(table: Table) -> list[Row]:
    """Key, item and occurrence of each row."""
    names = [name for name in ("key", "item") if name in table.columns]
    seen: Counter[Row] = Counter()
    found: list[Row] = []
    for row in zip(*(table.columns[name] for name in names), strict=True):
        found.append((*row, seen[row]))
        seen[row] += 1
    return found


def _values(column: Sequence[Score], places: Sequence[int]) -> torch.Tensor:
    return torch.tensor([float(column[place] or 0) for place in places], dtype=torch.float64)
