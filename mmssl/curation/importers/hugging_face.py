"""Data sets that Hugging Face `datasets` saved to disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mmssl.core.errors import DataError, os_words
from mmssl.curation.importers.formats import Format, Found
from mmssl.curation.pack_columns import SourceTable
from mmssl.curation.pack_config import PackConfig
from mmssl.curation.pack_items import RowSource
from mmssl.curation.pack_tables import TableSource


def read_hugging_face(found: Found, config: PackConfig, root: Path | None) -> SourceTable:
    """Read a folder written by `save_to_disk` of Hugging Face `datasets`, which must be installed. Media are not decoded.

    Raises:
        DataError: unreadable, `datasets` is not installed, or the folder has several splits and none was named.
    """
    folder, split = found.path, config.split
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"reading {folder} needs the package `datasets`: install it, or export the set as parquet"
        ) from error
    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {folder} as a saved data set: {os_words(error)}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if split is None or split not in loaded:
            raise DataError(f"{folder} has the splits {sorted(loaded)}, got split={split!r}: name one of them")
        loaded, folder = loaded[split], folder / split
    elif split is not None:
        raise DataError(f"{folder} is one data set without splits, got split={split!r}: leave it out")
    classes: dict[str, tuple[str, ...]] = {}
    for name, feature in loaded.features.items():
        if isinstance(feature, datasets.ClassLabel):
            classes[name] = tuple(feature.names)
        elif isinstance(feature, datasets.Image | datasets.Audio):
            loaded = loaded.cast_column(name, type(feature)(decode=False))
    described = b"".join(path.read_bytes() for path in sorted(folder.glob("*.json")))
    return SourceTable(
        kind="hugging_face",
        path=folder,
        root=root or folder,
        columns=tuple(loaded.column_names),
        length=len(loaded),
        row=lambda i: loaded[i],
        column=lambda name: loaded[name][:],
        where=lambda i: f"row {i} of {folder}",
        fingerprint=hashlib.sha256(described).hexdigest(),
        classes=classes,
    )


def _open(found: Found, config: PackConfig, root: Path | None) -> RowSource:
    return TableSource(read_hugging_face(found, config, root), config.model_copy(update={"split": None}))


def _recognise(found: Found) -> bool:
    return any((found.path / name).exists() for name in ("state.json", "dataset_dict.json"))


HUGGING_FACE = Format(
    "hugging_face", "a folder written by `save_to_disk` of `datasets`", _recognise, _open, ("delimiter",)
)
