"""Pictures and shards, small and always the same."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
from PIL import Image

Record = dict[str, Any]


def encode(pixels: np.ndarray | Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(seed: int, height: int = 20, width: int = 24) -> np.ndarray:
    """A smooth random picture, uint8 [H, W, 3]."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def write(path: Path, records: Iterable[Record]) -> Path:
    with wds.TarWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path


def pairs(start: int, count: int) -> list[Record]:
    return [
        {
            "__key__": f"{i:04d}",
            "jpg": encode(noise(i)),
            "txt": f"scene {i} of many".encode(),
            "cls": str(i % 10).encode(),
        }
        for i in range(start, start + count)
    ]
