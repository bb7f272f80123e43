"""Captions of Flickr8k and Flickr30k as they are distributed, one a line:

    Flickr8k.token.txt, results_20130124.token      1000092795.jpg#0<tab>Two young guys ...
    results.csv                                     image_name| comment_number| comment
                                                    1000092795.jpg| 0| Two young guys ...

Each picture is one sample, with its captions in the order of the file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from mmssl.core.errors import DataError
from mmssl.curation.importers.csv_table import read_csv
from mmssl.curation.importers.formats import Found, table_format
from mmssl.curation.importers.records import usual_root
from mmssl.curation.pack_columns import Columns, SourceTable
from mmssl.curation.pack_config import PackConfig
from mmssl.curation.pack_formats import BadRow

NAME = "flickr"
_FOLDERS = ("Flicker8k_Dataset", "Flickr8k_Dataset", "flickr30k_images", "flickr30k-images", "images", "Images")
_TOKEN = re.compile(r"(.+)#(\d+)\t(.*)")
_CSV = {"image_name", "comment_number", "comment"}


def read_flickr(found: Found, config: PackConfig, root: Path | None) -> SourceTable:
    """A row for each caption; the rows of a picture are grouped."""
    base = usual_root(found, root, *_FOLDERS)
    if found.columns == _CSV:
        usual = Columns(image="image_name", captions=("comment",))
        return read_csv(found.path, base, "|", kind=NAME, usual=usual, grouped=True)
    return _read_tokens(found, base)


def _read_tokens(found: Found, root: Path) -> SourceTable:
    data = found.path.read_bytes()
    try:
        lines = [(number, line) for number, line in enumerate(data.decode("utf-8-sig").split("\n"), 1) if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {found.path} as UTF-8 text: {error}") from error
    columns = ("image", "number", "caption")
    rows = [match.groups() if (match := _TOKEN.match(line)) else None for _, line in lines]

    def where(row: int) -> str:
        return f"line {lines[row][0]} of {found.path}"

    def row(number: int) -> Mapping[str, str]:
        values = rows[number]
        if values is None:
            detail = f"got {lines[number][1][:60]!r}, wanted <file>#<number><tab><caption>"
            raise BadRow(where(number), "malformed_row", detail)
        return dict(zip(columns, values, strict=True))

    return SourceTable(
        kind=NAME,
        path=found.path,
        root=root,
        columns=columns,
        length=len(rows),
        row=row,
        column=lambda name: [None if values is None else values[columns.index(name)] for values in rows],
        where=where,
        fingerprint=hashlib.sha256(data).hexdigest(),
        usual=Columns(image="image", captions=("caption",)),
        grouped=True,
    )


def _recognise(found: Found) -> bool:
    return found.columns == _CSV or _TOKEN.match(found.line) is not None


FLICKR = table_format(
    NAME, "captions one a line, as in Flickr8k.token.txt or Flickr30k's results.csv", _recognise, read_flickr
)
