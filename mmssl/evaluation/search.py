"""Exact nearest neighbours in folders of embeddings, tile by tile from memory-mapped files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmssl.core.errors import DataError, os_words

TILE = 65_536
"""Rows that are read and multiplied at once."""


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
            why = os_words(error) if isinstance(error, OSError) else str(error)
            raise DataError(
                f"{folder}: wanted a folder that `mmssl embed` wrote: cannot use {path.name}: {why}"
            ) from error
        if manifest.get("what") != "unit-norm embeddings":
            raise DataError(f"{folder}: got {manifest.get('what')}, wanted embeddings: embed again without --features")
        return cls(folder, {**manifest, "modalities": [name for name, count in names.items() if count]})

    def search(self, modality: str, query: np.ndarray, top: int, tile: int = TILE) -> list[Hit]:
        """The `top` samples with the largest cosine to a unit-norm query [E], best first; ties: the earlier row.

        A sample with several items counts once, by its nearest.

        Raises:
            DataError: the files are missing, or of another width than the query.
        """
        try:
            rows = np.load(self.folder / f"{modality}.npy", mmap_mode="r", allow_pickle=False)
            owners = np.load(self.folder / f"{modality}.samples.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.folder}: cannot read the rows of {modality!r}: {error}") from error
        if rows.ndim != 2 or rows.shape[1] != len(query) or len(owners) != len(rows):
            raise DataError(
                f"{self.folder}: got rows {list(rows.shape)} of {modality!r} for a query of {len(query)} numbers: embed again "
                "with this model"
            )
        return nearest(rows, owners, query, top, tile)

    def first_rows(self, modality: str, samples: list[int]) -> list[int]:
        """Number of the first row of each sample."""
        owners = np.load(self.folder / f"{modality}.samples.npy", mmap_mode="r", allow_pickle=False)
        return [int(np.argmax(np.asarray(owners) == sample)) for sample in samples]

    def keys(self, samples: list[int]) -> dict[int, str]:
        """Keys of samples by number; read line by line."""
        wanted, found = set(samples), {}
        with open(self.folder / "keys.txt", encoding="utf-8") as file:
            for number, line in enumerate(file):
                if number in wanted:
                    found[number] = line.rstrip("\n")
        return found


def nearest(rows: np.ndarray, owners: np.ndarray, query: np.ndarray, top: int, tile: int = TILE) -> list[Hit]:
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
