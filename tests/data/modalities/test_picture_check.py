"""The check of header and end: whole pictures of every kind pass, and none that is cut anywhere."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmssl.data.modalities.picture_check import check_picture
from mmssl.data.modality import DecodeError


def saved(kind: str, **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def with_thumbnail() -> bytes:
    """A JPEG with a whole JPEG in a segment before its own data, as cameras write them."""
    inner, outer = saved("JPEG", quality=20), saved("JPEG")
    segment = b"Exif\0\0" + inner
    return outer[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2) + segment + outer[2:]


FILES = {
    "baseline": saved("JPEG"),
    "progressive": saved("JPEG", progressive=True),
    "restart markers": saved("JPEG", restart_marker_blocks=1),
    "with a thumbnail": with_thumbnail(),
    "png": saved("PNG"),
    "webp": saved("WEBP"),
    "lossless webp": saved("WEBP", lossless=True),
}


@pytest.mark.parametrize("name", FILES)
def test_whole_pictures_pass_with_and_without_bytes_behind_them(name: str) -> None:
    check_picture(FILES[name])
    check_picture(FILES[name] + b"\0" * 40)


@pytest.mark.parametrize("name", FILES)
def test_a_picture_that_is_cut_anywhere_is_refused(name: str) -> None:
    data = FILES[name]
    for stop in (*range(16, len(data) - 1, 97), len(data) - 2):
        with pytest.raises(DecodeError, match="undecodable"):
            check_picture(data[:stop])


def test_damaged_headers_are_refused() -> None:
    with pytest.raises(DecodeError, match="JPEG of 9 bytes"):
        check_picture(b"\xff\xd8\xff\xe0\0\0\0\xff\xd9")
    with pytest.raises(DecodeError, match=r"begins with the chunk b'XXXX', wanted IHDR"):
        check_picture(FILES["png"].replace(b"IHDR", b"XXXX"))


def test_other_formats_are_not_looked_at() -> None:
    check_picture(b"GIF89a")
