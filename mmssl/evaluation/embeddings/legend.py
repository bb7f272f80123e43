"""What lies beside embeddings: keys, a table of samples (parquet), and the manifest."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.data.samples import SampleIndex

SAMPLES_FILE = "samples.parquet"
CHUNK = 65_536
"""Samples of one row group of the table."""


def write_legend(folder: Path, index: SampleIndex, facts: Mapping[str, Any], names: Sequence[str]) -> None:
    """Write `keys.txt` with a key a line, `samples.parquet` if pyarrow is installed, and `manifest.json`.

    Args:
        folder: with the joined `<modality>.samples.npy`.
        index: of the samples.
        facts: content of the manifest.
        names: modalities with rows.
    """
    with open(folder / "keys.txt", "w", encoding="utf-8") as file:
        file.writelines(f"{_line(index.key(i))}\n" for i in range(len(index)))
    if importlib.util.find_spec("pyarrow") is not None:
        _write_samples(folder / SAMPLES_FILE, index, names)
    (folder / "manifest.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def finished_rows(folder: Path, facts: Mapping[str, Any]) -> dict[str, int] | None:
    """The number of rows of each modality, if a folder holds whole arrays with these facts in its manifest; None: it does not."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        rows: dict[str, int] = manifest["rows"]
        lengths = {
            name: {len(np.load(folder / file, mmap_mode="r", allow_pickle=False)) for file in array_files(name)}
            for name, count in rows.items()
            if count
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    whole = all(found == {rows[name]} for name, found in lengths.items())
    same = manifest | json.loads(json.dumps(facts)) == manifest
    return rows if whole and same else None


def publish(folder: Path, out: Path, absent: Sequence[str]) -> None:
    """Move finished files into `out`, the manifest last: all files that a manifest names are from one call."""
    stale = [out / file for name in absent for file in array_files(name)]
    for path in (out / "manifest.json", out / SAMPLES_FILE, *stale):
        path.unlink(missing_ok=True)
    (folder / "settings.json").unlink()
    for path in sorted(folder.glob("[!.]*"), key=lambda path: path.name == "manifest.json"):
        os.replace(path, out / path.name)


def array_files(name: str) -> tuple[str, str]:
    """Names of the files of a modality: its rows, and the samples that they belong to."""
    return f"{name}.npy", f"{name}.samples.npy"


def _line(key: str) -> str:
    """A key without line ends, which files of folders may have."""
    return " ".join(key.splitlines()) if len(key.splitlines()) > 1 else key


def _write_samples(path: Path, index: SampleIndex, names: Sequence[str]) -> None:
    """The table of all samples: number, key, shard or file, its number there, and first row and number of rows in each modality."""
    import pyarrow
    from pyarrow import parquet

    owners = {name: np.load(path.with_name(f"{name}.samples.npy"), mmap_mode="r", allow_pickle=False) for name in names}
    of_modality = [(f"{name}_{what}", pyarrow.int64()) for name in names for what in ("row", "rows")]
    fields = [("sample", pyarrow.int64()), ("key", pyarrow.string()), ("place", pyarrow.string())]
    schema = pyarrow.schema([*fields, ("place_number", pyarrow.int64()), *of_modality])
    with parquet.ParquetWriter(path, schema) as writer:
        for columns in _chunks(index, owners):
            writer.write_table(pyarrow.table(columns, schema=schema))


def _chunks(index: SampleIndex, owners: Mapping[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    for start in range(0, len(index), CHUNK):
        numbers = range(start, min(start + CHUNK, len(index)))
        origins = [index.origin(number) for number in numbers]
        columns: dict[str, Any] = {
            "sample": list(numbers),
            "key": [_line(index.key(number)) for number in numbers],
            "place": [origin.shard for origin in origins],
            "place_number": [origin.ordinal for origin in origins],
        }
        for name, rows in owners.items():
            first = np.searchsorted(rows, numbers)
            count = np.searchsorted(rows, numbers, side="right") - first
            columns |= {f"{name}_row": np.where(count > 0, first, -1), f"{name}_rows": count}
        yield columns
