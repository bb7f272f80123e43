"""Arrays of pictures in a `.npz` file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from mmssl.core.errors import DataError
from mmssl.curation.importers.formats import OF_TABLES, Format, Found
from mmssl.curation.pack_config import PackConfig
from mmssl.curation.pack_formats import BadRow, check_media
from mmssl.curation.pack_items import Item, RowSource


class ArraySource(RowSource):
    """A `.npz` of arrays: `jpeg` (all JPEG bytes in a row) with `offsets` [N+1], or `images` uint8 [N, H, W, 3] or [N, H, W].

    Optional: `labels` [N], and class names `classes` [K].
    """

    kind = "npz"

    def __init__(self, found: Found, config: PackConfig, root: Path | None = None) -> None:
        self.path = path = found.path
        self.name = path.name
        with path.open("rb") as file:
            self.fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
        try:
            with np.load(path, allow_pickle=False) as arrays:
                self.arrays = {name: arrays[name] for name in arrays.files}
        except Exception as error:  # zip and numpy raise many types of exceptions on foreign files
            raise DataError(f"{path} cannot be read as .npz without pickled objects: {error}") from error
        self.labelled = "labels" in self.arrays
        named = tuple(str(name) for name in self.arrays["classes"]) if "classes" in self.arrays else ()
        self.class_names = config.class_names or named
        self._check()

    def _check(self) -> None:
        shapes = {name: f"{array.dtype}{list(array.shape)}" for name, array in self.arrays.items()}
        if "jpeg" in self.arrays and "offsets" in self.arrays:
            jpeg, offsets = self.arrays["jpeg"], self.arrays["offsets"]
            fine = (
                jpeg.dtype == np.uint8 and jpeg.ndim == offsets.ndim == 1 and np.issubdtype(offsets.dtype, np.integer)
            )
            fine = fine and len(offsets) > 1 and bool((np.diff(offsets.astype(np.int64)) >= 0).all())
            fine = fine and int(offsets[0]) >= 0 and int(offsets[-1]) <= len(jpeg)
        else:
            images = self.arrays.get("images", np.empty(0))
            fine = images.dtype == np.uint8 and len(images) > 0 and (images.ndim == 3 or images.shape[3:] == (3,))
        if not fine:
            raise DataError(
                f"{self.path} holds {shapes}; wanted `jpeg` uint8 [bytes] with rising `offsets` [N+1], or `images` uint8 "
                "[N, H, W, 3] or [N, H, W]; and optionally `labels` [N], `classes` [K]"
            )
        labels = self.arrays.get("labels")
        if labels is not None and not (labels.shape == (len(self),) and np.issubdtype(labels.dtype, np.integer)):
            raise DataError(
                f"{self.path} holds {shapes}; wanted `labels` as integers [{len(self)}], one for each image"
            )

    def __len__(self) -> int:
        return len(self.arrays["offsets"]) - 1 if "jpeg" in self.arrays else len(self.arrays["images"])

    def where(self, row: int) -> str:
        return f"image {row} of {self.path}"

    def item(self, row: int) -> Item:
        where = self.where(row)
        label = int(self.arrays["labels"][row]) if self.labelled else None
        if label is not None and not 0 <= label < (len(self.class_names) or label + 1):
            wanted = f"0 to {len(self.class_names) - 1}" if self.class_names else "at least 0"
            raise BadRow(where, "bad_label", f"got label {label}, wanted {wanted}")
        if "jpeg" in self.arrays:
            start, stop = self.arrays["offsets"][row : row + 2].tolist()
            extension, data = check_media(where, "jpg", self.arrays["jpeg"][start:stop].tobytes())
            return Item(where, {extension: data}, label=label)
        pixels = self.arrays["images"][row]
        return Item(where, {"png": np.stack([pixels] * 3, -1) if pixels.ndim == 2 else pixels}, label=label)


def _recognise(found: Found) -> bool:
    return found.path.is_file() and found.path.suffix.lower() == ".npz"


NPZ = Format(
    "npz",
    "a .npz of arrays: images, or jpeg and offsets; labels, classes",
    _recognise,
    ArraySource,
    (*OF_TABLES, "keys", "metadata"),
)
