"""COCO captions: `annotations/captions_val2017.json`, with the pictures in `val2017/` beside `annotations/`.

    {"images": [{"id": 1, "file_name": "000000000001.jpg", ...}], "annotations": [{"image_id": 1, "id": 7, "caption": "..."}], ...}

Each picture is one sample, with its captions in the order of the file. Captions of a picture that is not in `images` are a row
without a picture, which cannot be used. Source: https://cocodataset.org/#format-data
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmssl.curation.importers.formats import Found, table_format
from mmssl.curation.importers.records import record_table, usual_root
from mmssl.curation.pack_columns import Columns, SourceTable
from mmssl.curation.pack_config import PackConfig

NAME = "coco"


def read_coco(found: Found, config: PackConfig, root: Path | None) -> SourceTable:
    """A row for each picture, with its captions."""
    captions: dict[Any, list[Any]] = {}
    for annotation in found.records("annotations"):
        captions.setdefault(annotation.get("image_id"), []).append(annotation.get("caption"))
    records = [{**image, "captions": captions.pop(image.get("id"), [])} for image in found.records("images")]
    records += [{"id": number, "file_name": None, "captions": texts} for number, texts in captions.items()]
    part = found.path.stem.removeprefix("captions_")
    return record_table(
        found,
        NAME,
        records,
        usual_root(found, root, f"../{part}", part, f"../images/{part}"),
        where=lambda row: f"picture {records[row].get('id')} of {found.path}",
        usual=Columns(image="file_name", captions=("captions",)),
    )


def _recognise(found: Found) -> bool:
    annotations = found.records("annotations")
    return bool(found.records("images")) and bool(annotations) and "caption" in annotations[0]


COCO = table_format(
    NAME, "JSON with `images` (id, file_name) and `annotations` (image_id, caption)", _recognise, read_coco
)
