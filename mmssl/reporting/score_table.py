"""The scores of an evaluator as rows of text, with interval and chance beside each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmssl.data.corruption import SEVERITIES
from mmssl.evaluation.common import metric_context
from mmssl.reporting.measures import ScoreInterval

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
_DIRECTION = re.compile(r"(\w+_to_\w+?)_((?:mAP|R@|recall@|MRR|mean_rank|median_rank|tie_rate|n_queries).*)")


def score_table(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of a metric table; both directions of a pair become columns, and interval and chance stand behind their metric.

    Where each metric has its n, as on a relation card, interval, chance and n become columns.
    """
    card = [metric for metric in values if f"{metric}_n" in values]
    if card:
        return _card(name, values, card)
    directions = sorted({match[1] for metric in values if (match := _DIRECTION.fullmatch(metric))})
    if len(directions) > 2:  # more columns than there is room for
        directions = []
    rows: dict[str, list[str]] = {}
    plain: dict[str, str] = {}
    for metric, shown in _shown(values):
        match = _DIRECTION.fullmatch(metric)
        if match and directions:
            rows.setdefault(match[2], [""] * len(directions))[directions.index(match[1])] = shown
        else:
            plain[metric] = shown
    return {
        "name": printable(name.replace("_", " ")),
        "columns": [printable(direction.replace("_", " ")) for direction in directions],
        "rows": [
            (printable(metric.replace("_", " ")), [printable(cell) for cell in cells]) for metric, cells in rows.items()
        ],
        "plain": [(printable(metric.replace("_", " ")), printable(shown)) for metric, shown in plain.items()],
    }


def _shown(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Metrics and their text, with interval and chance beside them; severities 1 to 5 of a corruption in one row."""
    for metric, value in values.items():
        stem, _, ending = metric.rpartition("_")
        severities = [values.get(f"{stem}_{severity}") for severity in SEVERITIES]
        of_corruption = ending in map(str, SEVERITIES) and all(
            f"{stem}_{severity}" in values for severity in SEVERITIES
        )
        if of_corruption and ending == "1":
            yield f"{stem}, severity 1 to 5", ", ".join(map(number_text, severities))
        beside = metric.removesuffix("_chance") in values.keys() - {metric}
        of_accuracy = metric == "chance" and not values.keys().isdisjoint(("acc", "acc1"))
        if of_corruption or beside or of_accuracy or re.search(r"_ci95_(low|high)$", metric):
            continue
        around = metric_context(values, metric)
        chance = "" if None in (value, around["chance"]) else f", chance {number_text(around['chance'])}"
        yield metric, f"{number_text(ScoreInterval(value, around['low'], around['high']))}{chance}"


def _card(name: str, values: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, Any]:
    """Table of metrics that each have an interval, a chance and an n; other values stand below."""
    rows, shown = [], set(metrics)
    for metric in metrics:
        around = metric_context(values, metric)
        interval = "" if around["low"] is None else f"{number_text(around['low'])} to {number_text(around['high'])}"
        chance = "" if around["chance"] is None else number_text(around["chance"])
        rows.append((metric, [number_text(values[metric]), interval, chance, number_text(values[f"{metric}_n"])]))
        shown |= {f"{metric}{ending}" for ending in ("_ci95_low", "_ci95_high", "_chance", "_n")}
    plain = [(metric, text) for metric, text in _shown(values) if metric not in shown]
    return {
        "name": printable(name.replace("_", " ")),
        "columns": ["score", "95 %", "chance", "n"],
        "rows": [(printable(metric.replace("_", " ")), cells) for metric, cells in rows],
        "plain": [(printable(metric.replace("_", " ")), printable(value)) for metric, value in plain],
    }


def printable(value: Any) -> str:
    """Text for HTML: control characters and bidirectional marks become one visible sign."""
    return _UNPRINTABLE.sub("\ufffd", str(value))


def number_text(value: Any) -> str:
    """A value of a table: four digits, a dash for None, an interval in brackets."""
    if value is None:
        return "–"
    if isinstance(value, ScoreInterval):
        # No line ends within the brackets.
        around = f" ({number_text(value.low)}\xa0to\xa0{number_text(value.high)})" if value.low is not None else ""
        return f"{number_text(value.value)}{around}"
    if isinstance(value, float):
        return f"{value:.4g}" if value and not 1e-3 <= abs(value) < 1e5 else f"{value:.4f}".rstrip("0").rstrip(".")
    return str(value)
