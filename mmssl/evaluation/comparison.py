"""Paired comparison of two models on the same rows: bootstrap intervals of differences, and McNemar's test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mmssl.core.errors import DataError
from mmssl.core.evaluator import Score, Table
from mmssl.core.seeding import generator
from mmssl.evaluation.curves import area_difference_interval
from mmssl.evaluation.statistics import draw_counts, mean_by_cluster, paired_difference, shifted_percentiles

Row = tuple[object, ...]
_DRAWS_AT_ONCE = 64


@dataclass(frozen=True)
class Difference:
    """A score of two models on the same rows, and second minus first.

    Attributes:
        task, metric: what was measured. group: the class; "": all rows.
        first, second: mean outcome of each model.
        difference: second - first; ci95_low, ci95_high: of outcomes of 0 and 1, one row a sample, Tango's score interval, see
            `paired_difference`; of AUROC DeLong's; of others paired bootstrap over samples, so that the rows of one sample are one
            draw, or Tango's of as many trials as there are samples, where all rows differ by the same 0, 1 or -1.
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


@dataclass(frozen=True)
class PairedRow:
    """What one sample, or one of its items, gave under two models.

    Attributes:
        task, metric: what was measured; a rank, or an outcome of the rows.
        key, item: of the sample, and the number of the item in it. group: the class; "": rows have none.
        first, second: of each model. difference: second - first.
    """

    task: str
    metric: str
    key: str
    item: int
    group: str
    first: float
    second: float
    difference: float


class Pairing:
    """Rows of two models that are of the same samples.

    Args:
        name: of the tables; see `Table.outcomes` for the names of metrics.
        first, second: tables of each model. Rows are matched by key, item, and occurrence of these.
    """

    def __init__(self, name: str, first: Table, second: Table) -> None:
        self.name, self.tables = name, (first, second)
        rows = _rows(first)
        others = {row: place for place, row in enumerate(_rows(second))}
        both = [(place, others[row]) for place, row in enumerate(rows) if row in others]
        self.places = [place for place, _ in both], [place for _, place in both]
        self.keys = [str(rows[place][0]) for place in self.places[0]]
        self.groups = (
            [str(first.columns["class"][place]) for place in self.places[0]] if "class" in first.columns else []
        )

    def metric(self, outcome: str) -> str:
        """Name of the score of an outcome."""
        return outcome if self.name == "samples" else f"{self.name}_{outcome}"

    @property
    def influences(self) -> list[str]:
        """Scores with influences of the rows in both models; none if some row is in one of them only."""
        first, second = self.tables
        same = len(_rows(first)) == len(self.keys) == len(_rows(second))
        return [name for name in first.influences if same and name in second.influences]

    def values(self, column: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A column of both models, in equal rows: [n] float64 each."""
        first, second = self.tables
        return _values(first.columns[column], self.places[0]), _values(second.columns[column], self.places[1])


def pairings(task: str, first: Mapping[str, Table], second: Mapping[str, Table]) -> list[Pairing]:
    """The tables of two models whose rows tell how well the models did; empty: the task has scores of its whole set only.

    Raises:
        DataError: the two have no row in common.
    """
    found = []
    for name, table in first.items():
        if (table.outcomes or table.measures) and name in second:
            pairing = Pairing(name, table, second[name])
            if not pairing.keys:
                raise DataError(
                    f"{task}: the two models were measured on different samples; compare them on the same shards"
                )
            found.append(pairing)
    return found


def compare_tables(
    task: str, first: Mapping[str, Table], second: Mapping[str, Table], *, resamples: int = 2000, seed: int = 0
) -> Iterator[Difference]:
    """Compare every outcome of the tables of two models, and the first outcome class by class where rows have a class; and scores
    that are no means of rows, by a bootstrap that draws the same samples for both, or by what they owe to each row.

    Args:
        task: name of the evaluator.
        first, second: tables of each model, by name.
        resamples, seed: of the bootstrap.

    Raises:
        DataError: the two have no row in common.
    """
    for pairing in pairings(task, first, second):
        keys, classes = pairing.keys, pairing.groups
        for number, outcome in enumerate(pairing.tables[0].outcomes):
            a, b = pairing.values(outcome)
            metric = pairing.metric(outcome)
            yield _difference(task, metric, "", a, b, keys, resamples, seed)
            for group in dict.fromkeys(classes) if number == 0 else ():
                inside = [i for i, one in enumerate(classes) if one == group]
                chosen = [keys[i] for i in inside]
                yield _difference(task, metric, group, a[inside], b[inside], chosen, resamples, seed)
        for name in pairing.tables[0].measures:
            yield _measured(task, name, pairing, resamples, seed)
        for name in pairing.influences:
            yield _areas(task, name, pairing)


def paired_rows(task: str, first: Mapping[str, Table], second: Mapping[str, Table]) -> Iterator[PairedRow]:
    """Ranks and outcomes of the rows of two models beside each other; arguments as of `compare_tables`."""
    for pairing in pairings(task, first, second):
        table, places = pairing.tables[0], pairing.places[0]
        items = [table.columns["item"][place] for place in places] if "item" in table.columns else [0] * len(places)
        for column in (*(["rank"] if "rank" in table.columns else []), *table.outcomes):
            metric = pairing.metric(column)
            groups = pairing.groups or [""] * len(places)
            a, b = (values.tolist() for values in pairing.values(column))
            for key, item, group, one, other in zip(pairing.keys, items, groups, a, b, strict=True):
                yield PairedRow(task, metric, key, int(item or 0), group, one, other, other - one)


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
    samples = len(set(keys))
    binary = samples == len(keys) and bool((((a == 0) | (a == 1)) & ((b == 0) | (b == 1))).all())
    p = mcnemar(a.bool(), b.bool()) if binary else None
    change = b - a
    if binary:
        low, high = paired_difference(int((change > 0).sum()), int((change < 0).sum()), samples)
    elif bool((change == change[0]).all()) and float(change[0]) in (-1.0, 0.0, 1.0):  # every draw is the same
        low, high = paired_difference(samples * int(change[0] > 0), samples * int(change[0] < 0), samples)
    else:
        _, low, high = mean_by_cluster(change, sample_numbers(keys), resamples=resamples, seed=seed)
    means = float(a.mean()), float(b.mean())
    return Difference(task, metric, group, *means, means[1] - means[0], low, high, p, len(keys))


def sample_numbers(keys: Sequence[object]) -> torch.Tensor:
    """Number of the sample of each row, by its key: [n] int64."""
    numbers: dict[object, int] = {}
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])


def _areas(task: str, name: str, pairing: Pairing) -> Difference:
    """The difference of a score of all rows, from what it owes to each row under both models."""
    (first, one), (second, other) = (table.influences[name] for table in pairing.tables)
    low, high = area_difference_interval(one[pairing.places[0]], other[pairing.places[1]], second - first)
    metric, n = pairing.metric(name), len(pairing.keys)
    return Difference(task, metric, "", first, second, second - first, low, high, None, n)


def _measured(task: str, name: str, pairing: Pairing, resamples: int, seed: int) -> Difference:
    """The difference of a score that is no mean of rows: percentiles of draws of the samples, the same ones for both models."""
    n, sample = len(pairing.keys), sample_numbers(pairing.keys).numpy()
    samples = int(sample.max()) + 1
    measures = [table.measures[name] for table in pairing.tables]
    sizes = [len(table.columns["key"]) for table in pairing.tables]

    def scores(often: np.ndarray) -> list[np.ndarray]:
        """Of both models, where samples count as often as in draws [R, samples]: [R] each."""
        found = []
        for measure, places, size in zip(measures, pairing.places, sizes, strict=True):
            counts = torch.zeros(size, len(often))
            counts[places] = torch.from_numpy(often.T[sample].astype(np.float32))
            found.append(measure(counts).double().cpu().numpy())
        return found

    (first,), (second,) = scores(np.ones((1, samples), dtype=np.int64))
    drawn, parts = generator(seed, "compare", name), []
    for start in range(0, resamples, _DRAWS_AT_ONCE):
        a, b = scores(draw_counts(drawn, samples, min(_DRAWS_AT_ONCE, resamples - start)))
        parts.append(b - a)
    every = np.concatenate(parts)
    low, high = shifted_percentiles(every[~np.isnan(every)], second - first)  # a draw of few samples may have no class
    metric = pairing.metric(name)
    return Difference(task, metric, "", float(first), float(second), float(second - first), low, high, None, n)


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
