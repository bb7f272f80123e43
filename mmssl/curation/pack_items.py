"""Sources of rows to pack, whose rows give the fields, captions and label of one sample each; and the encoding of pictures.

A source knows its rows without reading their files; `item` reads one, from any thread. A row that cannot be used raises `BadRow`,
which names it: the packer decides whether that ends the packing.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from mmssl.curation.pack_formats import BadRow, convertible_extensions
from mmssl.curation.pack_keys import Keys
from mmssl.data.media.png import has_deep_colours
from mmssl.data.modalities.pictures import FORMATS, SIGNATURES, PictureDecoder
from mmssl.data.modality import DecodeError

TEXT = "txt"
"""Extension of captions."""
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
        labelled: whether the rows have labels, one each.
        several: whether the rows have several labels each: a vector of zeros and ones, one entry a class, in a `.npy`.
        keys: keys of the rows; None: samples are numbered.
        notes: sentences for the report, on what is not packed and what is changed.
    """

    kind: str
    name: str
    fingerprint: str
    class_names: tuple[str, ...] = ()
    captioned: bool = False
    labelled: bool = False
    several: bool = False
    keys: Keys | None = None
    notes: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int:
        """Rows."""

    @abstractmethod
    def where(self, row: int) -> str:
        """File or line of a row, for messages; reads no file."""

    @abstractmethod
    def item(self, row: int) -> Item:
        """Read a row.

        Raises:
            BadRow: it cannot be used.
        """


def encoded_fields(item: Item, max_side: int | None, quality: int) -> dict[str, bytes]:
    """The files of an item, each as `encode_field` writes it.

    Raises:
        BadRow: see `encode_field`.
    """
    return dict(
        encode_field(item.where, extension, value, max_side, quality) for extension, value in item.fields.items()
    )


def text_members(captions: Sequence[str], label: int | None) -> dict[str, bytes]:
    """The members of captions (each a line) and class number; none of what is not there."""
    lines = [" ".join(caption.split()) for caption in captions]
    text = {TEXT: "\n".join(lines).encode()} if lines else {}
    return text if label is None else {**text, "cls": str(label).encode()}


def encode_field(
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
