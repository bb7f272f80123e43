"""ESC-50: `meta/esc50.csv` with the columns filename, fold, target, category, ...; sounds in `audio/` beside `meta/`.

Folds are chosen by conditions: `--where 'fold != 5'` to train, `--where 'fold == 5'` to test.
Source: https://github.com/karolpiczak/ESC-50
"""

from __future__ import annotations

from pathlib import Path

from mmssl.curation.importers.csv_table import read_csv
from mmssl.curation.importers.formats import Found, table_format
from mmssl.curation.importers.records import usual_root
from mmssl.curation.pack_columns import Columns, SourceTable
from mmssl.curation.pack_config import PackConfig

NAME = "esc50"


def read_esc50(found: Found, config: PackConfig, root: Path | None) -> SourceTable:
    """A row for each sound, with number and name of its class."""
    usual = Columns(audio="filename", label="target", class_name="category")
    return read_csv(found.path, usual_root(found, root, "../audio", "audio"), ",", kind=NAME, usual=usual)


ESC50 = table_format(
    NAME,
    "CSV with the columns filename, fold, target, category",
    lambda found: {"filename", "fold", "target", "category"} <= found.columns,
    read_esc50,
)
