"""Kinetics-400, -600 and -700: `train.csv`, `validate.csv` (`val.csv`) and `test.csv` with classes; and Kinetics-Sounds, a part.

    label,youtube_id,time_start,time_end,split
    testifying,---QUuC4vJs,84,94,validate

A further column, `is_cc`, may follow. Videos or sounds are found below the root, named by id, start and end in six digits
(`---QUuC4vJs_000084_000094.mp4`) or as they are, id and start, or id. Source: https://github.com/cvdfoundation/kinetics-dataset

Kinetics-Sounds are the rows whose action is seen and heard, and take `--format kinetics_sounds`. Of the 34 classes of an early
version that Arandjelovic and Zisserman 2017 (Look, Listen and Learn) list, Kinetics-400 has 31, some by another name: blowing out
(candles), dribbling ball (basketball), mowing the lawn by pushing lawnmower (mowing lawn), stomping (grapes). It has no typing,
fingerpicking and patting.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmssl.core.errors import DataError
from mmssl.curation.importers.csv_table import read_csv
from mmssl.curation.importers.formats import Found, table_format
from mmssl.curation.importers.records import NamedMedia
from mmssl.curation.pack_columns import Columns, SourceTable
from mmssl.curation.pack_config import PackConfig

NAME, SOUNDS = "kinetics", "kinetics_sounds"
CLASSES = (
    "blowing nose", "blowing out candles", "bowling", "chopping wood", "dribbling basketball", "laughing", "mowing lawn",
    "playing accordion", "playing bagpipes", "playing bass guitar", "playing clarinet", "playing drums", "playing guitar",
    "playing harmonica", "playing keyboard", "playing organ", "playing piano", "playing saxophone", "playing trombone",
    "playing trumpet", "playing violin", "playing xylophone", "ripping paper", "shoveling snow", "shuffling cards", "singing",
    "stomping grapes", "tap dancing", "tapping guitar", "tapping pen", "tickling",
)  # fmt: skip
"""Classes of Kinetics-Sounds."""
_LAYOUT = "CSV of label, youtube_id, time_start, time_end, split"


def read_kinetics(found: Found, config: PackConfig, root: Path | None, kind: str = NAME) -> SourceTable:
    """A row for each clip, with its label."""
    usual = Columns(files=("file",), label="label")
    table = read_csv(found.path, root, ",", kind=kind, usual=usual, split="split")
    media = NamedMedia(table.root, "mp4")
    rows = zip(*map(table.column, ("youtube_id", "time_start", "time_end")), strict=True)
    return table.with_values("file", [_path(media, *row) for row in rows])


def read_kinetics_sounds(found: Found, config: PackConfig, root: Path | None) -> SourceTable:
    """The rows of the classes of Kinetics-Sounds, which have the same numbers in all files.

    Raises:
        DataError: there are none.
    """
    table = read_kinetics(found, config, root, SOUNDS)
    rows = [row for row, label in enumerate(table.column("label")) if label is not None and label.strip() in CLASSES]
    if not rows:
        raise DataError(f"{found.path} has no row of a class of Kinetics-Sounds, such as {CLASSES[0]!r}")
    return table.of_rows(rows).with_classes("label", CLASSES)


def _path(media: NamedMedia, name: Any, start: Any, end: Any) -> str | None:
    first, last = str(start).strip(), str(end).strip()
    if not name or not (first.isdecimal() and last.isdecimal()):
        return None
    six = f"{name}_{int(first):06d}"
    return media.path(f"{six}_{int(last):06d}", f"{name}_{first}_{last}", six, f"{name}_{first}", name)


def _recognise(found: Found) -> bool:
    return {"label", "youtube_id", "time_start", "time_end"} <= found.columns


KINETICS = table_format(NAME, _LAYOUT, _recognise, read_kinetics)
KINETICS_SOUNDS = table_format(SOUNDS, f"{_LAYOUT}, of Kinetics", _recognise, read_kinetics_sounds)
