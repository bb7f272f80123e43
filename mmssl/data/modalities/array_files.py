"""Files of numbers: `.npy` and `.npz` without pickled objects, text, PNG and TIFF of any depth; sizes are known before any number.

Numbers keep the type that they are stored in. A header that promises more than the limit is refused before memory is taken.
"""

from __future__ import annotations

import io
import math
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from mmssl.data.media.png import decode_deep_colours, has_deep_colours
from mmssl.data.modalities.picture_check import check_picture
from mmssl.data.modality import DecodeError

NPY, NPZ, PNG = b"\x93NUMPY", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\x00", b"MM\x00*")
_TIFF_MODES = ("L", "I;16", "I;16B", "I", "F", "RGB", "RGBA")
_PNG_COLOURS = {0: 1, 2: 3, 4: 2, 6: 4}
"""Colour type of a PNG -> channels; 3, a palette, is none."""
_LONGEST_HEADER = 10_000
"""Characters of the header of an array, numpy's own limit for foreign files."""
_UNZIPPED = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError, ValueError)


@dataclass(frozen=True)
class Stored:
    """An array in a file, of which the header alone was read.

    Attributes:
        shape: as stored.
        dtype: as stored, in either byte order.
        read: reads the numbers: an array of `shape`, of the machine's byte order. It may share memory with the file's bytes, and
            may not be writeable.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


def open_array(data: bytes, entry: str | None, max_values: int) -> Stored:
    """Read the header of a `.npy` or `.npz` file; which of the two it is, its first bytes say.

    Args:
        data: the file.
        entry: name of the array in a `.npz`; None: it holds a single one.
        max_values: limit on the number of numbers.

    Raises:
        DecodeError: "undecodable" (foreign, damaged, cut short, or pickled objects), "too_large", "empty", "entry" (no array of
            that name, or several without a name).
    """
    if data.startswith(NPZ):
        return _open_npz(data, entry, max_values)
    if not data.startswith(NPY):
        raise DecodeError("undecodable", f"got {len(data)} bytes beginning with {data[:12]!r}, wanted .npy or .npz")
    file = io.BytesIO(data)
    shape, dtype, fortran = _header(file, max_values)
    start, size = file.tell(), math.prod(shape) * dtype.itemsize
    if len(data) - start != size:
        raise DecodeError("undecodable", f"got {len(data) - start} bytes of numbers, wanted {size} for {list(shape)}")
    return Stored(shape, dtype, lambda: _shaped(memoryview(data)[start:], shape, dtype, fortran))


def open_csv(data: bytes, max_values: int) -> Stored:
    """Read a text of numbers (`.csv`): a line of each time, delimited by comma, semicolon or tab, [lines, columns] float64.

    A first line with words is a header; empty fields are NaN.

    Args:
        data: the file, UTF-8.
        max_values: limit on the number of numbers.

    Raises:
        DecodeError: "undecodable" (not UTF-8, a line of another number of fields, a field that is no number), "too_large", "empty".
    """
    try:
        lines = [line for line in data.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DecodeError("undecodable", f".csv is not UTF-8: {error}") from error
    delimiter = next((one for one in ",;\t" if lines and one in lines[-1]), ",")
    rows = [line.split(delimiter) for line in lines]
    if rows and any(_number(field) is None for field in rows[0]):
        rows = rows[1:]
    if not rows:
        raise DecodeError("empty", f".csv of {len(data)} bytes has no line of numbers")
    columns = len(rows[0])
    check_value_count((len(rows), columns), max_values)
    found = np.empty((len(rows), columns))
    for number, row in enumerate(rows):
        values = [_number(field) for field in row]
        if len(row) != columns or None in values:
            line = number + 1 + len(lines) - len(rows)
            raise DecodeError(
                "undecodable", f".csv, line {line}: got {row[:8]}, wanted {columns} numbers by {delimiter!r}"
            )
        found[number] = values
    return Stored(found.shape, found.dtype, lambda: found)


def _number(field: str) -> float | None:
    """A field as a number, NaN if it is empty; None: it is no number."""
    try:
        return float(field) if field.strip() else math.nan
    except ValueError:
        return None


def check_whole(data: bytes) -> None:
    """Check that a `.npy`, `.npz` or PNG file is whole by its header and its end, without reading numbers; a TIFF is not looked at.

    Raises:
        DecodeError: "undecodable": damaged, truncated or of another format; "empty".
    """
    if is_picture(data):
        check_picture(data)
    elif data.startswith(NPZ):
        _archive(data)  # its table stands at the end
    else:
        open_array(data, None, sys.maxsize)


def _archive(data: bytes) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(io.BytesIO(data))
    except _UNZIPPED as error:
        raise DecodeError("undecodable", f".npz of {len(data)} bytes: {error}") from error


def _open_npz(data: bytes, entry: str | None, max_values: int) -> Stored:
    archive = _archive(data)
    names = [name.removesuffix(".npy") for name in archive.namelist()]
    if (entry is None and len(names) != 1) or (entry is not None and entry not in names):
        wanted = f"{entry!r}" if entry is not None else "one array: name it (`entry`)"
        raise DecodeError("entry", f"got the arrays {', '.join(map(repr, names[:8])) or 'none'}, wanted {wanted}")
    place = archive.infolist()[0 if entry is None else names.index(entry)]
    with _unzipping(archive, place) as file:
        shape, dtype, _ = _header(file, max_values)

    def read() -> np.ndarray:
        with _unzipping(archive, place) as file:
            shape, dtype, fortran = _header(file, max_values)
            size = math.prod(shape) * dtype.itemsize
            try:
                found = file.read(size)
                rest = file.read(1)  # the end is where the archive compares the checksum
            except _UNZIPPED as error:
                raise DecodeError("undecodable", f"{place.filename} in .npz: {error}") from error
        if len(found) != size or rest:
            raise DecodeError(
                "undecodable", f"got {len(found) + len(rest)} bytes or more, wanted {size} for {list(shape)}"
            )
        return _shaped(memoryview(found), shape, dtype, fortran)

    return Stored(shape, dtype, read)


def _unzipping(archive: zipfile.ZipFile, place: zipfile.ZipInfo) -> BinaryIO:
    try:
        return archive.open(place)  # type: ignore[return-value]
    except _UNZIPPED as error:
        raise DecodeError("undecodable", f"{place.filename} in .npz: {error}") from error


def _header(file: BinaryIO, max_values: int) -> tuple[tuple[int, ...], np.dtype, bool]:
    """Shape, type, and whether the first axis is the fastest."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        version = np.lib.format.read_magic(file)
        if version not in readers:
            raise ValueError(f"version {version} of the format is for arrays of records")
        shape, fortran, dtype = readers[version](file, max_header_size=_LONGEST_HEADER)
    except Exception as error:  # numpy raises many types of exceptions on foreign headers
        raise DecodeError("undecodable", f"no header of an array: {error}") from error
    if dtype.kind not in "biuf" or dtype.itemsize > 8 or dtype.subdtype is not None:
        what = "pickled objects, which run code" if dtype.hasobject else f"numbers of type {dtype}"
        raise DecodeError("undecodable", f"got {what}, wanted integers, floats of at most 64 bits, or booleans")
    if not shape or min(shape) < 1:
        raise DecodeError("empty", f"got shape {list(shape)}, wanted at least one number on each of some axes")
    check_value_count(shape, max_values)
    return shape, dtype, fortran


def _shaped(data: memoryview, shape: tuple[int, ...], dtype: np.dtype, fortran: bool) -> np.ndarray:
    flat = np.frombuffer(data, dtype)
    array = flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def check_value_count(shape: tuple[int, ...], max_values: int) -> None:
    """Refuse an array of more numbers than `max_values`.

    Raises:
        DecodeError: "too_large".
    """
    if math.prod(shape) > max_values:
        raise DecodeError("too_large", f"got {list(shape)} numbers, wanted at most {max_values} in all (`max_values`)")


def is_picture(data: bytes) -> bool:
    """Whether the bytes begin like a PNG or a TIFF."""
    return data.startswith((PNG, *_TIFF))


def read_picture(data: bytes, max_values: int) -> np.ndarray:
    """Decode a PNG or TIFF to [H, W, C] at its stored depth: uint8, uint16, int32 or float32.

    Alpha is a channel like any other.

    Raises:
        DecodeError: "undecodable" (foreign, damaged, a palette, several pages, a TIFF that Pillow does not read), "too_large".
    """
    return _read_png(data, max_values) if data.startswith(PNG) else _read_tiff(data, max_values)


def _read_png(data: bytes, max_values: int) -> np.ndarray:
    if len(data) < 26 or data[25] not in _PNG_COLOURS:
        found = "colours of a palette" if len(data) >= 26 and data[25] == 3 else "no header"
        raise DecodeError("undecodable", f"PNG of {len(data)} bytes: got {found}, wanted one to four channels")
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    check_value_count((height, width, _PNG_COLOURS[data[25]]), max_values)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `max_values` is the limit
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                image.load()  # compares checksums, which the decoder of 16-bit colours does not
                pixels = np.array(image.convert("L") if image.mode == "1" else image)
    except Exception as error:  # Pillow's readers raise many types of exceptions on foreign bytes
        raise DecodeError("undecodable", f"PNG of {len(data)} bytes: {error or type(error).__name__}") from error
    if has_deep_colours(data):
        return decode_deep_colours(data)
    pixels = pixels.astype(np.uint16) if pixels.dtype.itemsize > 1 else pixels
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _read_tiff(data: bytes, max_values: int) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `max_values` is the limit
            with Image.open(io.BytesIO(data), formats=("TIFF",)) as image:
                pages = getattr(image, "n_frames", 1)
                if image.mode not in _TIFF_MODES or pages > 1:
                    raise DecodeError(
                        "undecodable", f"got a TIFF of {pages} pages and mode {image.mode}: convert it to .npy"
                    )
                check_value_count((image.height, image.width, len(image.getbands())), max_values)
                pixels = np.array(image)
    except DecodeError:
        raise
    except UnidentifiedImageError as error:
        raise DecodeError(
            "undecodable", "a TIFF that Pillow does not read, such as several bands of 16 bits: convert it to .npy"
        ) from error
    except Exception as error:  # Pillow's readers raise many types of exceptions on foreign bytes
        raise DecodeError("undecodable", f"TIFF of {len(data)} bytes: {error or type(error).__name__}") from error
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]
