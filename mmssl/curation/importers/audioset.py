"""AudioSet: `eval_segments.csv`, `balanced_train_segments.csv` or `unbalanced_train_segments.csv`; several classes a segment.

    # YTID, start_seconds, end_seconds, positive_labels
    --4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_,/m/0bt9lr,/m/0jbk"

`class_labels_indices.csv` (index, mid, display_name) beside it says numbers and names of the classes. Sounds or videos are found
below the root, named by YouTube id, `Y` + id, or id and start in seconds, with or without the end, also in six digits or in
milliseconds (`--4gqARaEJE_0`, `_0_10`, `_000000`, `_0_10000`). Source: https://research.google.com/audioset/download.html
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mmssl.core.errors import DataError
from mmssl.curation.importers.csv_table import read_csv
from mmssl.curation.importers.formats import Found, table_format
from mmssl.curation.importers.records import NamedMedia, numbered_names
from mmssl.curation.pack_columns import Columns, SourceTable
from mmssl.curation.pack_config import PackConfig

NAME = "audioset"
CLASSES_FILE = "class_labels_indices.csv"
_HEADER = ("YTID", "start_seconds", "end_seconds", "positive_labels")
_HEADER_LINE = re.compile(r"#?\s*" + r"\s*,\s*".join(_HEADER))
_LINE = re.compile(r'[\w-]{11},\s*\d+(\.\d+)?,\s*\d+(\.\d+)?,\s*"?/[a-z]/.+')


def read_audioset(found: Found, config: PackConfig, root: Path | None) -> SourceTable:
    """A row for each segment, with the names of its classes.

    Raises:
        DataError: there is no table of the classes beside it.
    """
    file = found.path.parent / CLASSES_FILE
    if not file.is_file():
        raise DataError(
            f"{found.path.parent} has no {CLASSES_FILE}, which names the classes of {found.path.name}: fetch it"
        )
    known = read_csv(file, None, ",")
    classes = numbered_names(known, "index", "display_name")
    pairs = zip(known.column(known.require("mid")), known.column("display_name"), strict=True)
    names = {str(mid).strip(): str(name).strip() for mid, name in pairs}
    usual = Columns(files=("file",), labels="classes")
    skip = _lines_above(found.path)
    table = read_csv(found.path, root, ",", _HEADER, kind=NAME, usual=usual, skip=skip, blanks=True)
    media = NamedMedia(table.root, "wav")
    rows = zip(*(table.column(name) for name in _HEADER[:3]), strict=True)
    table = table.with_values("file", [_path(media, *row) for row in rows])
    labels = [_names(cell, names) for cell in table.column("positive_labels")]
    return table.with_values("classes", labels, replaces="positive_labels").with_classes("classes", classes)


def _lines_above(path: Path) -> int:
    """Number of comments, and of a header line, above the segments."""
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines):
            if not line.startswith("#") and not _HEADER_LINE.match(line):
                return number
    return 0


def _path(media: NamedMedia, name: Any, start: Any, end: Any) -> str | None:
    try:
        begins, ends = float(start), float(end)
    except (TypeError, ValueError):
        return None
    second, last = f"{begins:g}", f"{ends:g}"
    times = (second, f"{second}_{last}", f"{int(begins):06d}", f"{begins * 1000:.0f}_{ends * 1000:.0f}")
    return media.path(name, f"Y{name}", *(f"{name}_{time}" for time in times))


def _names(cell: Any, names: dict[str, str]) -> tuple[str, ...]:
    """Names of the classes in a cell; an identifier without a name stays, to be refused in its row."""
    return tuple(names.get(mid.strip(), mid.strip()) for mid in (cell or "").split(","))


AUDIOSET = table_format(
    NAME,
    f"CSV of YTID, start_seconds, end_seconds, positive_labels, with {CLASSES_FILE} beside it",
    lambda found: bool(
        found.line.startswith("# Segments csv") or _HEADER_LINE.match(found.line) or _LINE.fullmatch(found.line)
    ),
    read_audioset,
    ("delimiter", "separator"),
)
