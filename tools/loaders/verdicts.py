"""Verdicts: which samples a run lost, doubled or altered, and whether anybody was told. Pure functions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from loaders.adapter import Item

Steps = Sequence[Sequence[Item]]
"""The global batch of each step."""


@dataclass(frozen=True)
class Count:
    """Lost and doubled samples of a run, in sum."""

    lost: int
    doubled: int

    def __bool__(self) -> bool:
        return bool(self.lost or self.doubled)


def epoch_count(steps: Steps, keys: Iterable[str]) -> Count:
    """Of one epoch of one source: samples that never came, and deliveries beyond the first."""
    seen = Counter(key for batch in steps for key, _ in batch)
    return Count(sum(not seen[key] for key in keys), sum(seen[key] - 1 for key in keys if seen[key] > 1))


def mixture_count(steps: Steps, sources: Sequence[Sequence[str]]) -> Count:
    """Of any number of draws from several sources.

    n draws of a source of N samples are n / N passes. Each of its samples should have come floor(n / N) times at least, and
    ceil(n / N) times at most; below is lost, above is doubled.
    """
    seen = Counter(key for batch in steps for key, _ in batch)
    lost = doubled = 0
    for keys in sources:
        draws = sum(seen[key] for key in keys)
        least, most = draws // len(keys), -(-draws // len(keys))
        lost += sum(max(0, least - seen[key]) for key in keys)
        doubled += sum(max(0, seen[key] - most) for key in keys)
    return Count(lost, doubled)


def difference(whole: Steps, other: Steps) -> Count:
    """What another run has less and more than the whole one, whose own losses count elsewhere."""
    wanted, got = (Counter(key for batch in steps for key, _ in batch) for steps in (whole, other))
    return Count((wanted - got).total(), (got - wanted).total())


def share(steps: Steps, keys: Iterable[str]) -> float:
    """Share of the draws that are from the source with these keys."""
    seen = Counter(key for batch in steps for key, _ in batch)
    return sum(seen[key] for key in keys) / max(1, seen.total())


def same_order(one: Steps, other: Steps) -> bool:
    """Whether both have the same samples in the global batch of every step; their places within a batch do not count."""
    return [sorted(key for key, _ in batch) for batch in one] == [sorted(key for key, _ in batch) for batch in other]


@dataclass(frozen=True)
class Resumed:
    """Verdict on a resumed run.

    Attributes:
        verdict: "exact" (the epoch went on as if nothing had happened), "reordered" (the same samples, in another order), "refused"
            (it says so), "silent" (samples lost or doubled without an error), "hangs" or "no state".
    """

    verdict: str
    lost: int = 0
    doubled: int = 0
    error: str = ""


def resumed(end: str, error: str, counted: Count, ordered: bool) -> Resumed:
    """The verdict.

    Args:
        end, error: of the run that resumed.
        counted: difference of the batches before the position and after it to the uninterrupted run.
        ordered: whether those after it are those of the uninterrupted run.
    """
    if end in ("hangs", "no state"):
        return Resumed(end)
    if end == "error":
        return Resumed("refused", error=error)
    if counted:
        return Resumed("silent", **asdict(counted))
    return Resumed("exact" if ordered else "reordered")


@dataclass(frozen=True)
class Harm:
    """What damage to one shard did to a run.

    Attributes:
        lost, altered, doubled: samples.
        reported: the evidence: an error, a counter of the library, or a line that the undamaged run did not print; "" if none.
        end: of the run, see `Rank`.
    """

    lost: int
    altered: int
    doubled: int
    reported: str
    end: str

    @property
    def silent(self) -> bool:
        """Whether samples were lost, altered or doubled, and nothing was reported."""
        return bool(self.lost or self.altered or self.doubled) and not self.reported


def harm(steps: Steps, sound: Mapping[str, str], end: str, error: str, evidence: Sequence[str]) -> Harm:
    """Compare a run on a damaged shard with the digests of the undamaged samples.

    Args:
        sound: key -> digest.
        end, error: of the run.
        evidence: reports and new lines of the log.
    """
    counted = epoch_count(steps, sound)
    altered = {key for batch in steps for key, print_ in batch if sound.get(key) != print_}
    told = [error] if error else list(evidence)
    return Harm(counted.lost, len(altered), counted.doubled, told[0] if told else "", end)


def new_lines(log: Iterable[str], usual: Iterable[str]) -> list[str]:
    """Lines of a log that another log does not have, paths and numbers apart."""
    known = {_plain(line) for line in usual}
    return [line for line in log if line.strip() and _plain(line) not in known]


def _plain(line: str) -> str:
    return re.sub(r"/[^\s'\":]+|0x[0-9a-f]+|\d+", "#", line.strip())
