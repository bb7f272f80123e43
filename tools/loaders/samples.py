"""Small samples for the scenarios: noisy pictures with captions, equal on every machine; and tar shards of them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from loaders.adapter import CaptionedPicture

SIDE = 32
WORDS = ("red", "temple", "behind", "a", "small", "garden", "two", "people", "yellow", "petals", "quiet", "light")


def make_samples(source: str, count: int) -> list[CaptionedPicture]:
    """`count` samples with the keys `<source>00000`, ...: pictures of 32 x 32 pixels, JPEG of 1 to 2 kB."""
    return [CaptionedPicture(f"{source}{number:05d}", _picture(number), _caption(number)) for number in range(count)]


def write_tars(samples: Sequence[CaptionedPicture], folder: Path, per_shard: int) -> list[Path]:
    """WebDataset tar files `000000.tar`, ... with a jpg and a txt of each sample."""
    paths = []
    for start in range(0, len(samples), per_shard):
        path = folder / f"{start // per_shard:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in samples[start : start + per_shard]:
                for name, data in ((f"{sample.key}.jpg", sample.jpeg), (f"{sample.key}.txt", sample.caption.encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        paths.append(path)
    return paths


def _picture(number: int) -> bytes:
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.int16)
    pixels = (smooth + rng.integers(-25, 26, smooth.shape)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _caption(number: int) -> str:
    words = np.random.default_rng(number).choice(WORDS, 6)
    return f"number {number}: " + " ".join(map(str, words))
