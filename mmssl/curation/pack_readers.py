"""Readers of tables to pack: CSV, TSV, parquet, and data sets that Hugging Face `datasets` saved to disk."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

from mmssl.core.errors import DataError
from mmssl.curation.pack_formats import BadRow
from mmssl.curation.pack_tables import Table


def read_csv(path: Path, root: Path | None) -> Table:
    """Read a CSV or TSV file with a header line, UTF-8.

    Raises:
        DataError: unreadable, no header, or a column name twice.
    """
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        data = path.read_bytes()
        reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), delimiter=delimiter, strict=True)
        rows = [(reader.line_num, values) for values in reader if values]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path} as UTF-8 text with columns: {error}") from error
    if not rows:
        raise DataError(f"{path} is empty: wanted a header line with column names, then one line for each sample")
    columns = tuple(name.strip() for name in rows.pop(0)[1])
    if len(set(columns)) != len(columns):
        raise DataError(f"{path} has duplicate column names: {list(columns)}")

    def row(number: int) -> Mapping[str, str]:
        line, values = rows[number]
        if len(values) != len(columns):
            detail = f"got {len(values)} values, wanted {len(columns)}: {list(columns)}"
            raise BadRow(f"line {line} of {path}", "malformed_row", detail)
        return dict(zip(columns, values, strict=True))

    return Table(
        kind="table",
        path=path,
        root=root or path.parent,
        columns=columns,
        length=len(rows),
        row=row,
        column=lambda name: [values[columns.index(name)] if len(values) == len(columns) else "" for _, values in rows],
        where=lambda i: f"line {rows[i][0]} of {path}",
        fingerprint=hashlib.sha256(data).hexdigest(),
        classes={},
    )


def read_parquet(path: Path, root: Path | None) -> Table:
    """Read a parquet file of paths or bytes (as Hugging Face publishes them). Needs `pyarrow`.

    Raises:
        DataError: unreadable, or `pyarrow` is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(f"reading {path} needs pyarrow: install mmssl with its extra `parquet`") from error
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {path} as parquet: {error}") from error
    with path.open("rb") as file:
        fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
    return Table(
        kind="table",
        path=path,
        root=root or path.parent,
        columns=tuple(table.column_names),
        length=table.num_rows,
        row=lambda i: table.slice(i, 1).to_pylist()[0],
        column=lambda name: table.column(name).to_pylist(),
        where=lambda i: f"row {i} of {path}",
        fingerprint=fingerprint,
        classes={},
    )


def read_hugging_face(folder: Path, root: Path | None, split: str | None) -> Table:
    """Read a folder written by `save_to_disk` of Hugging Face `datasets`, which must be installed. Media are not decoded.

    Raises:
        DataError: unreadable, `datasets` is not installed, or the folder has several splits and none was named.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"reading {folder} needs the package `datasets`: install it, or export the set as parquet"
        ) from error
    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {folder} as a saved data set: {error}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if split is None or split not in loaded:
            raise DataError(f"{folder} has the splits {sorted(loaded)}, got split={split!r}: name one of them")
        loaded, folder = loaded[split], folder / split
    elif split is not None:
        raise DataError(f"{folder} is one data set without splits, got split={split!r}: leave it out")
    classes: dict[str, tuple[str, ...]] = {}
    for name, feature in loaded.features.items():
        if isinstance(feature, datasets.ClassLabel):
            classes[name] = tuple(feature.names)
        elif isinstance(feature, datasets.Image | datasets.Audio):
            loaded = loaded.cast_column(name, type(feature)(decode=False))
    described = b"".join(path.read_bytes() for path in sorted(folder.glob("*.json")))
    return Table(
        kind="hugging_face",
        path=folder,
        root=root or folder,
        columns=tuple(loaded.column_names),
        length=len(loaded),
        row=lambda i: loaded[i],
        column=lambda name: loaded[name][:],
        where=lambda i: f"row {i} of {folder}",
        fingerprint=hashlib.sha256(described).hexdigest(),
        classes=classes,
    )
