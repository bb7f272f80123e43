"""Parquet files of paths or bytes, as Hugging Face publishes them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mmssl.core.errors import DataError, os_words
from mmssl.curation.importers.formats import Found, table_format
from mmssl.curation.pack_columns import SourceTable
from mmssl.curation.pack_config import PackConfig


def read_parquet(found: Found, config: PackConfig, root: Path | None) -> SourceTable:
    """Read a parquet file of paths or bytes (as Hugging Face publishes them). Needs `pyarrow`.

    Raises:
        DataError: unreadable, or `pyarrow` is not installed.
    """
    path = found.path
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(f"reading {path} needs pyarrow: install mmssl with its extra `parquet`") from error
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {path} as parquet: {os_words(error)}") from error
    with path.open("rb") as file:
        fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
    return SourceTable(
        kind="parquet",
        path=path,
        root=root or path.parent,
        columns=tuple(table.column_names),
        length=table.num_rows,
        row=lambda i: table.slice(i, 1).to_pylist()[0],
        column=lambda name: table.column(name).to_pylist(),
        where=lambda i: f"row {i} of {path}",
        fingerprint=fingerprint,
    )


def _recognise(found: Found) -> bool:
    if not found.path.is_file():
        return False
    with found.path.open("rb") as file:
        return file.read(4) == b"PAR1"


PARQUET = table_format("parquet", "a .parquet file", _recognise, read_parquet)
