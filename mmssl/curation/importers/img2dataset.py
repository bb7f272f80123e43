"""img2dataset's output. As `files`: folders `00000/` with `000000000.jpg`, `.txt` and `.json`, beside `00000_stats.json`.

A `.txt` is one caption, of one line or several. As `webdataset`: `00000.tar` beside `00000_stats.json`, which are shards already
and need no packing.
Source: https://github.com/rom1504/img2dataset
"""

from __future__ import annotations

from pathlib import Path

from mmssl.core.errors import DataError
from mmssl.curation.importers.folder import FolderSource
from mmssl.curation.importers.formats import OF_TABLES, Format, Found
from mmssl.curation.pack_config import PackConfig
from mmssl.curation.pack_items import RowSource


def _open(found: Found, config: PackConfig, root: Path | None) -> RowSource:
    if found.path.is_file() or any(found.path.glob("*.tar")):
        raise DataError(
            f"{found.path} holds tar files of samples, which are shards already: name it in `data.shards`, and audit it with "
            f"`mmssl shards check {found.path}`"
        )
    return FolderSource(found, config, lines=False)


def _recognise(found: Found) -> bool:
    numbered = [
        path for path in found.path.glob("[0-9]*") if path.suffix == ".tar" or path.name.endswith("_stats.json")
    ]
    return bool(numbered) or (found.path.is_file() and found.path.suffix == ".tar")


IMG2DATASET = Format(
    "img2dataset",
    "a folder with 00000_stats.json, and 00000/ of pictures, .txt and .json",
    _recognise,
    _open,
    OF_TABLES,
)
