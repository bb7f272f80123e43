"""Pictures and shards, small and always the same."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
from PIL import Image

from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.table import ShardTable

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


def imagined(counts: Sequence[int], source: str = "data") -> ShardIndex:
    """The index of shards that are nowhere, with so many samples each: for all that is decided without reading."""
    tables = []
    for count in counts:
        keys = [f"{i:05d}".encode() for i in range(count)]
        numbers = np.arange(count + 1)
        tables.append(
            ShardTable(
                extensions=("cls",),
                keys=np.frombuffer(b"".join(keys), np.uint8),
                key_ends=5 * numbers,
                members=numbers,
                extension=np.zeros(count, np.uint16),
                offset=512 + 1024 * numbers[:-1],
                size=np.full(count, 100),
                shard_bytes=1024 * (count + 1),
                crc=np.full(count, -1),
                ignored=0,
            )
        )
    return ShardIndex([Path(f"/nowhere/{i:06d}.tar") for i in range(len(counts))], tables, source)
