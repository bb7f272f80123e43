"""The Markdown tables of `tools/bench_loaders.py`, from its facts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loaders.damage import KINDS

Facts = Mapping[str, Any]
"""Of one loader: section -> facts, as `Scenarios` and `LoaderSpeed` give them."""


def properties(loaders: Mapping[str, Facts]) -> str:
    """One row a property, one column a loader; sections that were not run are empty."""
    rows: list[tuple[str, str, Callable[[Any], str]]] = [
        ("epoch: lost", "epoch", lambda facts: worst(facts, "lost")),
        ("epoch: doubled", "epoch", lambda facts: worst(facts, "doubled")),
        ("epoch: order kept", "epoch", lambda facts: kept(facts, "order")),
        ("epoch: as many batches on each rank", "epoch", lambda facts: kept(facts, "even")),
        ("mixture: lost", "mixture", lambda facts: worst(facts, "lost")),
        ("mixture: doubled", "mixture", lambda facts: worst(facts, "doubled")),
        ("mixture: order kept", "mixture", lambda facts: kept(facts, "order")),
        ("mixture: share of the first source (0.67)", "mixture", shares),
        *((f"resume, {change}", "resume", _resume(change, False)) for change in _CHANGES),
        *((f"resume of a mixture, {change}", "resume", _resume(change, True)) for change in _CHANGES),
        ("kill -9 and resume", "kill", lambda facts: verdicts([facts])),
        ("silent damage", "damage", silent),
        ("pictures per CPU second", "speed", lambda facts: f"{facts['rate']:,.0f}"),
        (
            "first batch after a resume at 90 %",
            "speed",
            lambda facts: "-" if facts["resume"] is None else f"{facts['resume']:.2f} s",
        ),
    ]
    cells = [[name, *(_cell(each.get(section), show) for each in loaders.values())] for name, section, show in rows]
    return _markdown(["", *_titles(loaders)], [row for row in cells if any(row[1:])])


def damages(loaders: Mapping[str, Facts]) -> str:
    """One row a kind of damage, one column a loader."""
    found = [each.get("damage") for each in loaders.values()]
    cells = [[kind, *("" if facts is None else harm(facts.get(kind)) for facts in found)] for kind in KINDS]
    return _markdown(["damage to one of 12 shards", *_titles(loaders)], cells)


def settings(loaders: Mapping[str, Facts]) -> str:
    """A line for each loader: how it was used."""
    return "\n".join(
        f"- {title}: {facts['settings']}." for title, facts in zip(_titles(loaders), loaders.values(), strict=True)
    )


_CHANGES = ("the same layout", "other workers", "other ranks")


def worst(facts: Sequence[Facts], what: str) -> str:
    """The largest number over the layouts, and how many have any; or how they failed."""
    broken = [row["end"] for row in facts if row["end"] not in ("end", "steps")]
    numbers = [row[what] for row in facts if row["end"] in ("end", "steps")]
    bad = sum(number > 0 for number in numbers)
    text = f"{max(numbers, default=0)}" + (f" (in {bad} of {len(facts)} layouts)" if bad else "")
    return text + "".join(f", {end} in {n}" for end, n in Counter(broken).items())


def kept(facts: Sequence[Facts], what: str) -> str:
    """In how many of the layouts it holds."""
    return f"{sum(bool(row[what]) for row in facts)} of {len(facts)}"


def shares(facts: Sequence[Facts]) -> str:
    """Smallest and largest share."""
    found = sorted(f"{row['share']:.2f}" for row in facts)
    return found[0] if found[0] == found[-1] else f"{found[0]} to {found[-1]}"


def verdicts(facts: Sequence[Facts]) -> str:
    """Verdicts of resumed runs, counted where they differ."""
    texts = Counter(
        row["verdict"] + (f" ({row['lost']} lost, {row['doubled']} doubled)" if row["verdict"] == "silent" else "")
        for row in facts
    )
    return next(iter(texts)) if len(texts) == 1 else ", ".join(f"{n} x {text}" for text, n in texts.items())


def silent(facts: Facts) -> str:
    """How many kinds of damage were silent, of those that the format can have."""
    possible = [row for row in facts.values() if row is not None]
    return f"{sum(row['silent'] for row in possible)} of {len(possible)}"


def harm(row: Facts | None) -> str:
    """What a kind of damage did."""
    if row is None:
        return "-"
    if row["end"] == "error":
        return "error"
    if row["end"] == "hangs":
        return "hangs" + (", **silent**" if row["silent"] else ", told")
    counts = [f"{row[name]} {name}" for name in ("lost", "altered", "doubled") if row[name]]
    if not counts:
        return "none" if not row["reported"] else "none, told"
    return ", ".join(counts) + (", **silent**" if row["silent"] else ", told")


def _resume(change: str, mixed: bool) -> Callable[[Any], str]:
    return lambda facts: verdicts([row for row in facts if row["change"] == change and row["mixed"] == mixed])


def _cell(facts: Any, show: Callable[[Any], str]) -> str:
    return "" if facts is None else show(facts)


def _titles(loaders: Mapping[str, Facts]) -> list[str]:
    return [f"{name} {facts['version']}" for name, facts in loaders.items()]


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
