"""What the embedded data sets share: their splits as shards, and numbers that `.json` holds exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.data.shards.writer import Manifest, Progress, ShardRecord, claim_folder, remove_stale, write_shard

FORMATS = {"txt": "whole"}
"""For the manifest: each `.txt` is one caption."""


def write_splits(
    folder: Path,
    settings: Mapping[str, Any],
    counts: Mapping[str, int],
    shards: int,
    encoded: Callable[[str, int, str], dict[str, Any]],
    progress: Progress | None = None,
) -> Manifest:
    """Write `folder/{split}/{000000...}.tar` and a manifest; intact shards of equal settings are kept.

    Args:
        folder: created if needed.
        settings: all settings that the bytes depend on.
        counts: number of samples of each split.
        shards: tar files of each split (fewer if a split has fewer samples).
        encoded: (split, number, key) -> a sample of a shard: {"__key__": key, extension: bytes}.
        progress: called with (samples done, samples in all).

    Raises:
        DataError: the folder holds foreign tar files, or cannot be written.
    """
    previous = claim_folder(folder)
    same = previous is not None and dict(previous.settings) == settings
    records = {record.path: record for record in previous.shards} if previous is not None and same else {}
    total, done = sum(counts.values()), 0
    finished: list[ShardRecord] = []
    Manifest(folder, settings, tuple(records.values()), complete=False, formats=FORMATS).write()
    for name, split, start, stop in _plan(counts, shards):
        record = records.get(name)
        if record is None or not Manifest(folder, settings, ()).intact(record):
            samples = (encoded(split, number, f"{split}-{number:06d}") for number in range(start, stop))
            record = write_shard(folder, name, start, stop, samples)
        finished.append(record)
        done += stop - start
        if progress is not None:
            progress(done, total)
    remove_stale(folder, [record.path for record in finished])
    return Manifest(folder, settings, tuple(finished), formats=FORMATS).write()


def _plan(counts: Mapping[str, int], shards: int) -> Iterator[tuple[str, str, int, int]]:
    """Each shard's (path, split, first sample, sample after the last)."""
    for split, count in counts.items():
        parts = min(shards, count)
        for part in range(parts):
            yield f"{split}/{part:06d}.tar", split, part * count // parts, (part + 1) * count // parts


def rounded_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a number from `low` to `high`, rounded to three decimals, so that `.json` has exactly the rendered values."""
    return round(float(rng.uniform(low, high)), 3)
