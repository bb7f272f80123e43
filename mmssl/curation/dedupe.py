"""Finding repeated samples: equal media files, and pictures that look alike."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from PIL import Image

from mmssl.curation.figures import bytes_digest

BITS = 64


class Exact:
    """Finds samples whose media files are all equal, byte for byte, to those of an earlier sample."""

    def __init__(self) -> None:
        self._first: dict[bytes, str] = {}

    def first(self, media: Mapping[str, bytes], name: str) -> str | None:
        """Name of the first sample with equal files (extension -> bytes); None: this one is the first, or has none."""
        if not media:
            return None
        whole = bytes_digest(
            b"".join(extension.encode() + b"\0" + bytes_digest(media[extension]) for extension in sorted(media))
        )
        first = self._first.setdefault(whole, name)
        return None if first == name else first


class Perceptual:
    """Finds pictures whose difference hashes differ in at most `distance` of 64 bits from an earlier one's.

    The hash survives other sizes, compression and small changes of brightness; mirroring and cropping change it. Pictures without
    any gradient, such as blank pages, all have the hash 0 and are never alike.
    """

    def __init__(self, distance: int) -> None:
        self.distance = distance
        # Of distance + 1 bands, two hashes within the distance share one: only those with an equal band are compared.
        ends = np.linspace(0, BITS, distance + 2).astype(int).tolist()
        self._bands = [(start, (1 << (stop - start)) - 1) for start, stop in pairwise(ends)]
        self._by_band: list[dict[int, list[tuple[int, str]]]] = [{} for _ in self._bands]

    def first(self, bits: int) -> str | None:
        """Name of the first sample added that is near enough; None if none is."""
        if not bits:
            return None
        for (start, mask), known in zip(self._bands, self._by_band, strict=True):
            for other, name in known.get(bits >> start & mask, ()):
                if (bits ^ other).bit_count() <= self.distance:
                    return name
        return None

    def add(self, bits: int, name: str) -> None:
        """Add the hash of a picture."""
        for (start, mask), known in zip(self._bands, self._by_band, strict=True):
            known.setdefault(bits >> start & mask, []).append((bits, name))


def difference_hash(pixels: np.ndarray) -> int:
    """64-bit difference hash (dHash) of pixels [H, W, 3] uint8: grey, 9 x 8 by area; a bit is set where a pixel is brighter than
    its left neighbour.

    Source: N. Krawetz, "Kind of Like That", 2013, with the box filter.
    """
    small = np.asarray(Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.BOX)).astype(int)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")
