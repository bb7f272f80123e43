"""The formats that `mmssl shards pack` reads: known data sets first, since their files are also tables or folders."""

from __future__ import annotations

import heapq
from pathlib import Path

from mmssl.core.errors import DataError, did_you_mean
from mmssl.curation.importers.audiocaps import AUDIOCAPS
from mmssl.curation.importers.audioset import AUDIOSET
from mmssl.curation.importers.clotho import CLOTHO
from mmssl.curation.importers.coco import COCO
from mmssl.curation.importers.csv_table import CSV
from mmssl.curation.importers.esc50 import ESC50
from mmssl.curation.importers.flickr import FLICKR
from mmssl.curation.importers.folder import FOLDER, files_below
from mmssl.curation.importers.formats import Format, Found
from mmssl.curation.importers.fsd50k import FSD50K
from mmssl.curation.importers.hugging_face import HUGGING_FACE
from mmssl.curation.importers.img2dataset import IMG2DATASET
from mmssl.curation.importers.karpathy import KARPATHY
from mmssl.curation.importers.kinetics import KINETICS, KINETICS_SOUNDS
from mmssl.curation.importers.msrvtt import MSRVTT
from mmssl.curation.importers.npz import NPZ
from mmssl.curation.importers.parquet import PARQUET
from mmssl.curation.importers.vggsound import VGGSOUND
from mmssl.curation.pack_config import PackConfig
from mmssl.curation.pack_items import RowSource

KNOWN: tuple[Format, ...] = (
    COCO, KARPATHY, FLICKR, AUDIOCAPS, CLOTHO, ESC50, FSD50K, AUDIOSET, VGGSOUND, KINETICS, KINETICS_SOUNDS, MSRVTT, IMG2DATASET
)  # fmt: skip
"""Data sets that are recognised by their layout."""
PLAIN: tuple[Format, ...] = (HUGGING_FACE, NPZ, PARQUET, CSV, FOLDER)
_TABLES = 300
FORMATS = {form.name: form for form in (*KNOWN, *PLAIN)}


def open_source(source: str | Path, config: PackConfig | None = None, root: str | Path | None = None) -> RowSource:
    """Open a path as a source of rows: in the format of the config, or else the first that recognises it by its contents.

    Raises:
        DataError: the path does not exist, or is no format that can be packed.
    """
    config = config or PackConfig()
    found, base = Found(Path(source)), Path(root) if root is not None else None
    if not found.path.exists():
        raise DataError(f"there is no {found.path}: wanted a folder, or a file of one of: {', '.join(FORMATS)}")
    if config.format is not None:
        form = _named(config.format)
        if form in KNOWN and not form.recognise(found):
            raise DataError(f"{found.path} is not of the format {form.name}: wanted {form.layout}")
        return form.source(found, config, base)
    for form in FORMATS.values():
        if form.recognise(found):
            if form is FOLDER:
                _refuse_known(found.path)
            return form.source(found, config, base)
    raise DataError(f"cannot pack {found.path}: wanted a folder, or a file of one of: {', '.join(FORMATS)}")


def _refuse_known(folder: Path) -> None:
    """Refuse a folder with the table of a known data set in it, whose folders are no classes.

    At most _TABLES files are looked at, down to a depth of three, those that lie highest first.
    """
    tables = [path for path in files_below(folder, 3) if path.suffix.lower() in (".json", ".csv", ".txt", ".token")]
    for path in heapq.nsmallest(_TABLES, tables, key=lambda path: (len(path.parts), path)):
        name = _known_name(Found(path))
        if name is not None:
            raise DataError(
                f"{folder} holds {path.relative_to(folder)}, which has the format {name}: pack {path}, or insist on the folder "
                "as it is with --format folder"
            )


def _known_name(found: Found) -> str | None:
    try:
        return next((form.name for form in KNOWN if form.recognise(found)), None)
    except (DataError, OSError):  # it cannot be read, so it is no table
        return None


def _named(name: str) -> Format:
    if name not in FORMATS:
        raise DataError(f"got the format {name!r}{did_you_mean(name, FORMATS)}, wanted one of: {', '.join(FORMATS)}")
    return FORMATS[name]
