"""EXIF orientation of pictures: where files have it, and how their pixels are turned."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
from PIL import Image

Orientation = Literal["exif", "stored"]
UPRIGHT = 1
_TAG = 0x0112
_JPEG = b"\xff\xd8\xff"
_SCAN, _BARE = 0xDA, (*range(0xD0, 0xDA), 0xFF)  # JPEG markers: of the scan; without a length
_MARKS = (b"eXIf", b"EXIF", b"Exif", b"irot", b"imir")
"""What files with an orientation hold: PNG (the first, or as text the third), WebP, JPEG, AVIF (the last two)."""


def exif_orientation(data: bytes) -> int:
    """EXIF orientation of a file, 1 to 8; 1 (upright) without one, and for HEIC, whose decoder turns. Pixels are not decoded."""
    marks, end = ((b"Exif",), _scan_start(data)) if data.startswith(_JPEG) else (_MARKS, len(data))
    if all(data.find(mark, 0, end) < 0 for mark in marks):
        return UPRIGHT
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "AVIF")) as image:
            return orientation_of(image)
    except Exception:  # a damaged header is no reason to lose the picture
        return UPRIGHT


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation of a PIL picture, 1 to 8; 1 (upright) without one."""
    try:
        number = image.getexif().get(_TAG, UPRIGHT)
    except Exception:  # as above
        return UPRIGHT
    return number if isinstance(number, int) and 1 <= number <= 8 else UPRIGHT


def _scan_start(data: bytes) -> int:
    """Where the compressed pixels of a JPEG begin, behind all metadata; its end, if its segments are not as they should be."""
    at = 2
    while at < len(data) - 4 and data[at] == 0xFF:
        marker, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        if marker == _SCAN:
            return at
        if marker < 0xC0 or marker in _BARE or length < 2:
            break
        at += 2 + length
    return len(data)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels [H, W, C] as a viewer shows them, for an EXIF orientation of 1 to 8. A contiguous and writable array."""
    upright = pixels.transpose(1, 0, 2) if orientation >= 5 else pixels
    upright = upright[::-1] if orientation in (3, 4, 7, 8) else upright
    upright = upright[:, ::-1] if orientation in (2, 3, 6, 7) else upright
    return np.require(upright, requirements=["C", "W"])
