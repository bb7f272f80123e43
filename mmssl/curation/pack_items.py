"""Sources of rows to pack: class folders and `.npz` arrays; each row gives the fields, captions and label of one sample.

A source knows its rows without reading their files; `item` reads one, from any thread. A row that cannot be used raises `BadRow`,
which names it: the packer decides whether that ends the packing.
"""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mmssl.core.errors import DataError
from mmssl.curation.pack_formats import BadRow, check_media, convertible_extensions
from mmssl.data.media.png import has_deep_colours
from mmssl.data.modalities.pictures import FORMATS, SIGNATURES, PictureDecoder
from mmssl.data.modality import DecodeError

MAX_PIXELS = 100_000_000  # largest picture that is re-encoded
_DECODER = PictureDecoder(MAX_PIXELS, formats=(*FORMATS, "BMP", "TIFF", "PPM"))


@dataclass(frozen=True)
class Item:
    """One row of a source: fields, captions and label of a sample.

    Attributes:
        where: the row, for messages.
        fields: extension -> bytes of the file, or pixels uint8 [H, W, 3] not yet encoded.
        captions: captions of the source; empty where it has none.
        label: number of the class.
        key: key of the sample, safe in tar names; None: its number.
    """

    where: str
    fields: Mapping[str, bytes | np.ndarray]
    captions: tuple[str, ...] = ()
    label: int | None = None
    key: str | None = None


class RowSource(ABC):
    """Random access to the rows of a data set to pack.

    Attributes:
        kind: the sort of source.
        name: name of its file or folder.
        fingerprint: changes when the list of rows changes (the contents of files do not count).
        class_names: name of each class number, or empty.
        captioned: whether the rows have captions.
        labelled: whether the rows have labels.
    """

    kind: str
    name: str
    fingerprint: str
    class_names: tuple[str, ...] = ()
    captioned: bool = False
    labelled: bool = False

    @abstractmethod
    def __len__(self) -> int:
        """Rows."""

    @abstractmethod
    def item(self, row: int) -> Item:
        """Read a row.

        Raises:
            BadRow: it cannot be used.
        """


class ArraySource(RowSource):
    """A `.npz` of arrays: `jpeg` (all JPEG bytes in a row) with `offsets` [N+1], or `images` uint8 [N, H, W, 3] or [N, H, W].

    Optional: `labels` [N], and class names `classes` [K].
    """

    kind = "npz"

    def __init__(self, path: Path, class_names: tuple[str, ...] | None) -> None:
        self.path = path
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
        self.class_names = class_names or named
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

    def item(self, row: int) -> Item:
        where = f"image {row} of {self.path}"
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


def encode(
    where: str, extension: str, value: bytes | np.ndarray, max_side: int | None, quality: int
) -> tuple[str, bytes]:
    """Encode a field: its extension and bytes. Bytes are kept, unless a picture is larger than `max_side`.

    PNG stays PNG, all other pictures become JPEG, without chroma subsampling.

    Raises:
        BadRow: a picture that needs re-encoding does not decode, has over MAX_PIXELS, or `max_side` is None.
    """
    if max_side is None and extension in convertible_extensions():
        wanted = f"wanted one of {', '.join(SIGNATURES)}; --max-side N re-encodes it"
        raise BadRow(where, "unsupported", f"a .{extension} picture, {wanted}")
    if isinstance(value, bytes) and (max_side is None or extension not in (*SIGNATURES, *convertible_extensions())):
        return extension, value
    try:
        image = Image.fromarray(value) if isinstance(value, np.ndarray) else _picture(value, extension, max_side)
    except DecodeError as error:
        detail = f"{error.detail} (--max-side takes the defaults of `modalities.image`)"
        raise BadRow(where, error.reason, detail) from error
    if image is None:
        assert isinstance(value, bytes)
        return extension, value
    image.thumbnail((max_side or max(image.size),) * 2, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    if extension == "png":
        image.save(file, "PNG")
        return "png", file.getvalue()
    image.save(file, "JPEG", quality=quality, subsampling=0)
    return "jpg", file.getvalue()


def _picture(data: bytes, extension: str, max_side: int | None) -> Image.Image | None:
    """The picture of a file as it is seen, in a mode that its new file can have; None: the file can stay as it is.

    Raises:
        DecodeError: as `PictureDecoder.decode`.
    """
    with _DECODER.opened(data) as image:
        if extension in SIGNATURES and max_side is not None and max(image.size) <= max_side:
            return None
        if extension == "png" and image.mode in ("L", "RGB", "RGBA") and not has_deep_colours(data):
            if image.mode == "RGBA":
                _DECODER.convert(image)  # refuses a fourth band, which the scaling of alpha would mix with the colours
            return ImageOps.exif_transpose(image)  # the new file has no EXIF orientation
    return Image.fromarray(_DECODER.decode(data).pixels)


def read_lines(path: str | Path) -> tuple[str, ...]:
    """Read the non-blank lines of a text file: class names or templates.

    Raises:
        DataError: unreadable or empty.
    """
    try:
        lines = tuple(line.strip() for line in Path(path).read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if not lines:
        raise DataError(f"{path} has no lines: wanted one name or template on each")
    return lines
