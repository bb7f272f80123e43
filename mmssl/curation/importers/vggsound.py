"""VGGSound: `vggsound.csv` without a header line: YouTube id, start in seconds, label, split (train or test).

    ---g-f_I2yQ,1,people marching,test

Videos or sounds are found below the root, named by id and start in six digits (`---g-f_I2yQ_000001.mp4`).
Source: https://www.robots.ox.ac.uk/~vgg/data/vggsound
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mmssl.curation.importers.csv_table import read_csv
from mmssl.curation.importers.formats import Found, table_format
from mmssl.curation.importers.records import NamedMedia
from mmssl.curation.pack_columns import Columns, SourceTable
from mmssl.curation.pack_config import PackConfig

NAME = "vggsound"
_HEADER = ("id", "start", "label", "split")
_LINE = re.compile(r"[\w-]{11},\s*\d+,.+,\s*(train|test)")


def read_vggsound(found: Found, config: PackConfig, root: Path | None) -> SourceTable:
    """A row for each clip, with its label."""
    usual = Columns(files=("file",), label="label")
    table = read_csv(found.path, root, ",", _HEADER, kind=NAME, usual=usual, split="split")
    media = NamedMedia(table.root, "mp4")
    pairs = zip(table.column("id"), table.column("start"), strict=True)
    return table.with_values("file", [_path(media, name, start) for name, start in pairs])


def _path(media: NamedMedia, name: Any, start: Any) -> str | None:
    digits = str(start).strip()
    return media.path(f"{name}_{int(digits):06d}", f"{name}_{digits}", name) if name and digits.isdecimal() else None


VGGSOUND = table_format(
    NAME,
    "CSV without a header: YouTube id, start, label, train or test",
    lambda found: _LINE.fullmatch(found.line) is not None,
    read_vggsound,
)
