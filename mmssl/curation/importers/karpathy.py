"""Karpathy's splits of Flickr8k, Flickr30k and COCO: `dataset_flickr30k.json`, with the pictures below one folder.

    {"dataset": "flickr30k", "images": [{"filename": "1.jpg", "split": "test", "sentences": [{"raw": "...", ...}], ...}]}

COCO's pictures have a "filepath", too ("val2014"). Each picture is one sample, with its sentences in their order. `--split test`;
COCO's usual training set is `--where 'split in [train, restval]'`. Source: https://cs.stanford.edu/people/karpathy/deepimagesent
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmssl.curation.importers.formats import Found, table_format
from mmssl.curation.importers.records import record_table, usual_root
from mmssl.curation.pack_columns import Columns, SourceTable
from mmssl.curation.pack_config import PackConfig

NAME = "karpathy"
_FOLDERS = ("flickr30k-images", "flickr30k_images", "Flicker8k_Dataset", "images")


def read_karpathy(found: Found, config: PackConfig, root: Path | None) -> SourceTable:
    """A row for each picture, with its sentences."""
    records = [_record(image) for image in found.records("images")]
    return record_table(
        found,
        NAME,
        records,
        usual_root(found, root, *_FOLDERS),
        where=lambda row: f"picture {records[row]['path']} of {found.path}",
        usual=Columns(image="path", captions=("captions",)),
        split="split",
    )


def _record(image: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in image.items() if key not in ("filename", "filepath", "sentences", "sentids")}
    path = "/".join(str(image[key]) for key in ("filepath", "filename") if image.get(key))
    return {"path": path, "captions": [sentence.get("raw") for sentence in image.get("sentences", ())], **rest}


def _recognise(found: Found) -> bool:
    images = found.records("images")
    return bool(images) and {"filename", "split", "sentences"} <= images[0].keys()


KARPATHY = table_format(
    NAME,
    "JSON with `images` (filename, split, sentences with `raw`), as dataset_flickr30k.json",
    _recognise,
    read_karpathy,
)
