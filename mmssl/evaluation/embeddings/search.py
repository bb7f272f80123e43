"""Exact nearest neighbours in folders of embeddings, tile by tile from memory-mapped files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmssl.core.errors import DataError, os_words

TILE = 65_536
"""Rows that are read and multiplied at once."""
CHUNK = 1 << 24
"""Bytes of keys that are read at once."""


class Hit(NamedTuple):
    """A found sample: its number, the row of its nearest item (such as a caption), and the cosine."""

    sample: int
    row: int
    score: float


@dataclass(frozen=True)
class EmbeddedFolder:
    """A folder that `write_embeddings` wrote.

    Attributes:
        folder: with `<modality>.npy`, `<modality>.samples.npy`, `keys.txt` and `manifest.json`.
        manifest: its facts.
    """

    folder: Path
    manifest: Mapping[str, Any]
    _open: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, folder: Path) -> EmbeddedFolder:
        """Read the manifest.

        Raises:
            DataError: there is none, or the folder holds features instead of embeddings.
        """
        path = folder / "manifest.json"
        try:
            manifest = json.loads(path.read_text())
            names = manifest["rows"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = os_words(error)
            raise DataError(
                f"{folder}: wanted a folder that `mmssl embed` wrote: cannot use {path.name}: {why}"
            ) from error
        if manifest.get("what") != "unit-norm embeddings":
            raise DataError(
                f"{folder}: got {manifest.get('what')}, wanted embeddings: embed a model with a shared space, without --features"
            )
        return cls(folder, {**manifest, "modalities": [name for name, count in names.items() if count]})

    def search(self, modality: str, query: np.ndarray, top: int) -> list[Hit]:
        """The `top` samples with the largest cosine to a unit-norm query [E], best first; ties: the earlier row.

        A sample with several items counts once, by its nearest.

        Raises:
            DataError: the files are missing, or of another width than the query.
        """
        rows, owners = self.rows(modality, len(query))
        return nearest_owners(rows, owners, query, top)

    def rows(self, modality: str, width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Rows [n, E] of a modality and the sample [n] of each, ascending; memory-mapped once, and kept.

        Args:
            width: E that is wanted; None: any.

        Raises:
            DataError: the files are missing, or of another width.
        """
        if modality not in self._open:
            try:
                rows = np.load(self.folder / f"{modality}.npy", mmap_mode="r", allow_pickle=False)
                owners = np.load(self.folder / f"{modality}.samples.npy", mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise DataError(f"{self.folder}: cannot read the rows of {modality!r}: {os_words(error)}") from error
            self._open[modality] = rows, owners
        rows, owners = self._open[modality]
        if rows.ndim != 2 or rows.shape[1] != (width or rows.shape[1]) or len(owners) != len(rows):
            raise DataError(
                f"{self.folder}: got rows {list(rows.shape)} of {modality!r} for a query of {width} numbers: embed again "
                "with this model"
            )
        return rows, owners

    def first_rows(self, modality: str, samples: list[int]) -> list[int]:
        """Number of the first row of each sample."""
        _, owners = self.rows(modality)
        return [int(row) for row in np.searchsorted(owners, samples)]

    def keys(self, samples: list[int]) -> dict[int, str]:
        """Keys of samples by number."""
        text, ends = self._keys
        return {number: bytes(text[ends[number] : ends[number + 1]]).decode().rstrip("\n") for number in samples}

    @cached_property
    def _keys(self) -> tuple[np.ndarray, np.ndarray]:
        """Bytes of the keys, memory-mapped, and where each line begins, [n+1]."""
        try:
            text = np.memmap(self.folder / "keys.txt", np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise DataError(f"{self.folder}: cannot read keys.txt: {os_words(error)}; embed again") from error
        ends = [start + 1 + np.flatnonzero(text[start : start + CHUNK] == 10) for start in range(0, len(text), CHUNK)]
        return text, np.concatenate([[0], *ends])


def nearest_owners(rows: np.ndarray, owners: np.ndarray, query: np.ndarray, top: int, tile: int = TILE) -> list[Hit]:
    """The `top` owners of the rows with the largest inner product with the query; see `EmbeddedFolder.search`.

    Args:
        rows: [N, E], of any float type; may be memory-mapped.
        owners: [N] number of the sample of each row.
        query: [E] float32.
        top: number of samples.
        tile: rows at a time; it changes no result.
    """
    best: dict[int, Hit] = {}
    least = -np.inf
    for start in range(0, len(rows), tile):
        # One row at a time in the sum, whatever the tile: equal rows have equal scores.
        scores = np.einsum("ne,e->n", rows[start : start + tile].astype(np.float32), query.astype(np.float32))
        for place in np.flatnonzero(scores >= least) if len(best) >= top else range(len(scores)):
            sample, score = int(owners[start + place]), float(scores[place])
            known = best.get(sample)
            if known is None or score > known.score:
                best[sample] = Hit(sample, start + int(place), score)
        if len(best) > top:
            kept = sorted(best.values(), key=lambda hit: (-hit.score, hit.row))[:top]
            best, least = {hit.sample: hit for hit in kept}, kept[-1].score
    return sorted(best.values(), key=lambda hit: (-hit.score, hit.row))[:top]
