"""Clotho: `clotho_captions_development.csv` with the columns file_name, caption_1 ... caption_5.

The sounds lie in `development/` beside it. Source: https://zenodo.org/records/4783391
"""

from __future__ import annotations

from pathlib import Path

from mmssl.curation.importers.csv_table import read_csv
from mmssl.curation.importers.formats import Found, table_format
from mmssl.curation.importers.records import usual_root
from mmssl.curation.pack_columns import Columns, SourceTable
from mmssl.curation.pack_config import PackConfig

NAME = "clotho"
_CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))


def read_clotho(found: Found, config: PackConfig, root: Path | None) -> SourceTable:
    """A row for each sound, with five captions."""
    base = usual_root(found, root, found.path.stem.removeprefix("clotho_captions_"))
    return read_csv(found.path, base, ",", kind=NAME, usual=Columns(audio="file_name", captions=_CAPTIONS))


CLOTHO = table_format(
    NAME,
    "CSV with the columns file_name, caption_1 ... caption_5",
    lambda found: {"file_name", *_CAPTIONS} <= found.columns,
    read_clotho,
)
