"""Log of the samples that a run used: a file for each process, a line for each batch."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmssl.core.batch import Batch
from mmssl.core.errors import DataError, os_words
from mmssl.data.stream.order import Ticket


class Audit:
    """Writes `rank00000.jsonl` and so on: {"step", "rank", "batch", "epochs", "samples", "keys"}.

    `samples` are dense numbers of the used samples (or their substitutes), `epochs` the epoch of each in its source, and `batch`
    the fingerprint of the planned global batch, equal on all processes. A stream that starts at a step deletes the lines from
    that step on, of any number of processes: together the files describe one uninterrupted run.

    Args:
        folder: created if needed.
        rank, world: of this process.
        step: first step of the stream.

    Raises:
        DataError: the folder is not writable.
    """

    def __init__(self, folder: Path, rank: int, world: int, step: int) -> None:
        self.path = folder / f"rank{rank:05d}.jsonl"
        self.rank = rank
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob("rank*.jsonl"):
                # Files of ranks that no longer exist are shared out, so that no two processes change one file.
                if int(path.stem.removeprefix("rank")) % world == rank:
                    _rewind(path, step)
            self._file = self.path.open("a", encoding="utf-8")
        except (OSError, ValueError) as error:
            raise DataError(f"data.audit: cannot write into {folder}: {os_words(error)}; set another folder") from error

    def write(self, step: int, batch: Batch, tickets: Sequence[Ticket], whole: Iterable[Ticket]) -> None:
        """Write the line of this process' rows of a global batch.

        Args:
            step: 0-based number of the global batch.
            batch: the returned batch.
            tickets: planned samples of its rows.
            whole: planned samples of the rows of all processes.
        """
        record = {
            "step": step,
            "rank": self.rank,
            "batch": fingerprint(whole),
            "epochs": [epoch for epoch, _ in tickets],
            "samples": batch.index.tolist(),
            "keys": batch.keys,
        }
        self._file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def fingerprint(tickets: Iterable[Ticket]) -> str:
    """64 bits, hexadecimal, of the ordered samples of a global batch: equal for equal batches of equal sources."""
    text = " ".join(f"{epoch}:{number}" for epoch, number in tickets)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def read_audit(folder: Path) -> Iterator[dict[str, Any]]:
    """Read all lines of all processes, in the order of steps and ranks.

    Raises:
        DataError: an incomplete line, or no audit files.
    """
    records = []
    for path in sorted(folder.glob("rank*.jsonl")):
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            try:
                records.append(json.loads(line))
            except ValueError as error:
                raise DataError(f"{path}, line {number}: not a complete record: {error}") from error
    if not records:
        raise DataError(f"{folder} holds no audit: set `data.audit` in the recipe to write one")
    yield from sorted(records, key=lambda record: (record["step"], record["rank"]))


def count_uses(records: Iterable[Mapping[str, Any]]) -> Counter[Ticket]:
    """Number of uses of each (epoch, sample number). Every value is 1 if each sample was used exactly once."""
    return Counter(
        (epoch, number) for record in records for epoch, number in zip(record["epochs"], record["samples"], strict=True)
    )


def _rewind(path: Path, step: int) -> None:
    kept = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n") and _step(line) < step]
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(b"".join(kept))
    os.replace(temporary, path)


def _step(line: bytes) -> int:
    return int(json.loads(line)["step"])
