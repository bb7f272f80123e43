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
    "gif": saved("GIF"),
    "gif with a comment": saved("GIF", comment=b"drawn by hand", transparency=0),
    "avif": saved("AVIF"),
}


@pytest.mark.parametrize("name", FILES)
def test_whole_pictures_pass_with_and_without_bytes_behind_them(name: str) -> None:
    check_picture(FILES[name])
    check_picture(FILES[name] + b"\0" * 40)


@pytest.mark.parametrize("name", FILES)
def test_a_picture_that_is_cut_anywhere_is_refused(name: str) -> None:
    data = FILES[name]
    last = len(data) - (3 if "gif" in name else 2)  # a GIF is read without its last byte
    for stop in (*range(16, last, 97), last):
        with pytest.raises(DecodeError, match="undecodable"):
            check_picture(data[:stop])


def test_damaged_headers_are_refused() -> None:
    with pytest.raises(DecodeError, match="JPEG of 9 bytes"):
        check_picture(b"\xff\xd8\xff\xe0\0\0\0\xff\xd9")
    with pytest.raises(DecodeError, match=r"begins with the chunk b'XXXX', wanted IHDR"):
        check_picture(FILES["png"].replace(b"IHDR", b"XXXX"))


def test_of_an_animation_the_first_frame_must_be_whole() -> None:
    frames = [Image.fromarray(np.full((24, 40), level, np.uint8)) for level in (0, 99, 200)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    data = file.getvalue()
    check_picture(data[:-5])  # the last frame is cut
    with pytest.raises(DecodeError, match="truncated file: got 40 bytes of GIF without a whole frame"):
        check_picture(data[:40])


def test_other_formats_are_not_looked_at() -> None:
    check_picture(b"BM")
