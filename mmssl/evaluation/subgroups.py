"""Scores by group of samples, such as a country or a camera, from a key of the samples' `.json`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from mmssl.core.errors import DataError
from mmssl.core.evaluator import Score, Table
from mmssl.data.modality import DecodeError
from mmssl.data.shards.index import ShardIndex
from mmssl.evaluation.statistics import share_by_cluster, wilson

METADATA = "json"
MOST = 100
"""Groups above which a key holds no categories."""
UNKNOWN = "(none)"
"""Group of samples without the key."""

SampleId = tuple[str, int]
"""Key of a sample, and its occurrence: keys may repeat between shards."""


def sample_groups(shards: Sequence[str], key: str) -> dict[SampleId, str]:
    """The group of every sample: the value of a key of its `.json`, as text.

    Args:
        shards: paths, braces or globs.
        key: as `json.country`, or `json.camera.name` in nested objects.

    Raises:
        DataError: no sample has the key, or its values are no categories.
    """
    first, *path = key.split(".")
    if first != METADATA or not path:
        raise DataError(f"--groups: got {key!r}, wanted a key of the samples' .json, as in json.country")
    index = ShardIndex.open(list(shards))
    seen: Counter[str] = Counter()
    found: dict[SampleId, str] = {}
    for number in range(len(index)):
        name = index.key(number)
        found[name, seen[name]] = _value(index, number, path)
        seen[name] += 1
    index.reader.close()
    values = set(found.values()) - {UNKNOWN}
    if not 1 <= len(values) <= MOST:
        example = f", such as {sorted(values)[:3]}" if values else ""
        raise DataError(
            f"--groups: {key} has {len(values)} values in {len(found)} samples{example}; wanted 1 to {MOST} categories"
        )
    return found


def group_table(tables: Mapping[str, Table], groups: Mapping[SampleId, str]) -> Table:
    """Mean of every outcome by group, with n and a 95 % interval (Wilson's, or by bootstrap over samples with several rows).

    Columns: outcome, group, n, value, ci95_low, ci95_high; of each outcome the worst group first.
    """
    rows: list[tuple[Score, ...]] = []
    for name, table in tables.items():
        if not table.outcomes or "key" not in table.columns:
            continue
        where = _by_group(table, groups)
        for outcome in table.outcomes:
            metric = outcome if name == "samples" else f"{name}_{outcome}"
            values = torch.tensor([float(value or 0) for value in table.columns[outcome]], dtype=torch.float64)
            of_groups: list[tuple[str, str, int, float, float, float]] = [
                (metric, group, *_mean(values[places], keys)) for group, (places, keys) in where.items()
            ]
            ordered = sorted(of_groups, key=lambda row: row[3])
            rows += ordered
    names = ("outcome", "group", "n", "value", "ci95_low", "ci95_high")
    return Table({name: [row[i] for row in rows] for i, name in enumerate(names)})


def _value(index: ShardIndex, number: int, path: Sequence[str]) -> str:
    try:
        data = index.read(number, [METADATA]).fields.get(METADATA)
        value = json.loads(data) if data is not None else None
    except (DecodeError, ValueError):
        return UNKNOWN
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return UNKNOWN if value is None else str(value)


def _by_group(table: Table, groups: Mapping[SampleId, str]) -> dict[str, tuple[list[int], list[SampleId]]]:
    """Group -> its rows, and their samples. A row that repeats key and item is of the next sample with that key."""
    items = table.columns.get("item", [0] * len(table.columns["key"]))
    seen: Counter[tuple[Score, Score]] = Counter()
    found: dict[str, tuple[list[int], list[SampleId]]] = {}
    for place, (key, item) in enumerate(zip(table.columns["key"], items, strict=True)):
        sample = (str(key), seen[key, item])
        seen[key, item] += 1
        places, samples = found.setdefault(groups.get(sample, UNKNOWN), ([], []))
        places.append(place)
        samples.append(sample)
    return found


def _mean(values: torch.Tensor, samples: Sequence[SampleId]) -> tuple[int, float, float, float]:
    """n, mean, and interval."""
    numbers: dict[SampleId, int] = {}
    cluster = torch.tensor([numbers.setdefault(sample, len(numbers)) for sample in samples])
    if len(numbers) == len(samples) and bool(((values == 0) | (values == 1)).all()):
        return len(values), float(values.mean()), *wilson(int(values.sum()), len(values))
    return len(values), *share_by_cluster(values, cluster)
