"""A JSON Lines file that a run appends to and truncates on resume."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmssl.core.errors import os_words
from mmssl.training.runtime.console import say


class JsonLines:
    """Records with a "step", one a line. Numbers that are not finite are written as null."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[bytes] = []

    def rewind(self, step: int) -> None:
        """Drop records after `step`, and a truncated last line: the file then equals an uninterrupted run's."""
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_bytes().splitlines() if _step(line) <= step]
        temporary = self.path.with_name(f"{self.path.name}.tmp-{os.getpid()}")
        temporary.write_bytes(b"".join(line + b"\n" for line in kept))
        os.replace(temporary, self.path)

    def append(self, record: Mapping[str, Any]) -> None:
        """Append one line, at once. If the disk is full, lines wait for the next call, and the run goes on."""
        self.extend([record])

    def extend(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append several lines; see `append`."""
        if not records:
            return
        for record in records:
            values = {name: finite(value) for name, value in record.items()}
            self._waiting.append(json.dumps(values, allow_nan=False).encode() + b"\n")
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with open(self.path, "ab") as file:
                file.write(b"".join(self._waiting))
                file.flush()
                os.fsync(file.fileno())  # a checkpoint that survives a power cut finds its lines
        except OSError as error:
            if self.path.exists():
                os.truncate(self.path, size)  # no half line in the middle
            say(f"{self.path}: {os_words(error)}; {len(self._waiting)} lines wait to be written")
        else:
            self._waiting.clear()

    def read(self) -> list[dict[str, Any]]:
        """All complete records."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_bytes().splitlines() if _step(line) < math.inf]


def finite(value: Any) -> Any:
    """The value, or None for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step(line: bytes) -> float:
    """The step of a line; infinite if the record is incomplete."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
