"""Unfinished embeddings on disk: pieces of whole batches, each there with all its files or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from mmssl.core.errors import DataError, os_words

ROWS, OWNERS = "rows", "owners"


@dataclass(frozen=True)
class Piece:
    """The embedded samples of batches `start` ... `stop`-1.

    Attributes:
        start, stop: numbers of batches; batch k has the samples kB ... (k+1)B-1.
        samples: that could be read.
        rows: modality -> rows, one an item.
        present: modality -> samples that have it.
        widths: modality -> E; only of those with rows.
    """

    start: int
    stop: int
    samples: int
    rows: dict[str, int]
    present: dict[str, int]
    widths: dict[str, int]

    def path(self, folder: Path, name: str, what: str) -> Path:
        """File of the rows or owners of a modality."""
        return folder / f".piece-{self.start:09d}-{self.stop:09d}.{name}.{what}"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Context of writing: an error of the disk becomes one sentence.

    Raises:
        DataError: the files cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {folder}: {os_words(error)}; finished pieces are kept: give the command again"
        ) from error


class PieceWriter:
    """Writes one piece.

    Args:
        folder: of all pieces.
        names: modalities.
        dtype: of the rows.
        rank: of this process; no two processes write one file.
    """

    def __init__(self, folder: Path, names: Sequence[str], dtype: type[np.floating[Any]], rank: int) -> None:
        self._folder, self._names, self._dtype, self._rank = folder, tuple(names), dtype, rank
        with writing(folder):
            self._files = {(name, what): self._open(name, what) for name in names for what in (ROWS, OWNERS)}
        self.samples = 0
        self._rows = dict.fromkeys(names, 0)
        self._present = dict.fromkeys(names, 0)
        self._widths: dict[str, int] = {}

    def add(self, name: str, rows: np.ndarray, owners: np.ndarray) -> None:
        """Append rows [n, E] of a modality, and the samples [n] that they belong to."""
        with writing(self._folder):
            self._files[name, ROWS].write(rows.astype(self._dtype).tobytes())
            self._files[name, OWNERS].write(owners.astype(np.int64).tobytes())
        self._rows[name] += len(rows)
        self._widths[name] = rows.shape[1]

    def count(self, name: str, samples: int) -> None:
        """Count samples that have a modality."""
        self._present[name] += samples

    def finish(self, start: int, stop: int) -> None:
        """Close the files, and give them their names; the description, last, makes the piece a whole one."""
        piece = Piece(start, stop, self.samples, self._rows, self._present, self._widths)
        with writing(self._folder):
            for (name, what), file in self._files.items():
                _flush(file)
                os.replace(self._temporary(name, what), piece.path(self._folder, name, what))
            _write_whole(_description(self._folder, start, stop), json.dumps(asdict(piece)))

    def close(self) -> None:
        """Close the files; what is not finished counts for nothing."""
        for file in self._files.values():
            file.close()

    def _temporary(self, name: str, what: str) -> Path:
        return self._folder / f".writing-{self._rank}.{name}.{what}"

    def _open(self, name: str, what: str) -> BinaryIO:
        return open(self._temporary(name, what), "wb")


def finished_pieces(folder: Path, dtype: type[np.floating[Any]]) -> list[Piece]:
    """The whole pieces in a folder, in order; one whose files have other sizes than described is none."""
    found = []
    for path in sorted(folder.glob(".piece-*.json")):
        piece = Piece(**json.loads(path.read_text(encoding="utf-8")))
        sizes = {
            piece.path(folder, name, what): count * size
            for name, count in piece.rows.items()
            for what, size in ((ROWS, piece.widths.get(name, 0) * np.dtype(dtype).itemsize), (OWNERS, 8))
        }
        if all(file.is_file() and file.stat().st_size == size for file, size in sizes.items()):
            found.append(piece)
    return sorted(found, key=lambda piece: piece.start)


def missing_batches(pieces: Sequence[Piece], batches: int) -> list[range]:
    """Spans of batches that no piece has, in order."""
    stops = chain([0], (piece.stop for piece in pieces))
    starts = chain((piece.start for piece in pieces), [batches])
    return [range(stop, start) for stop, start in zip(stops, starts, strict=True) if stop < start]


def share_of(spans: Sequence[range], rank: int, world: int) -> list[range]:
    """The part of one process in spans of batches: the next of `world` parts of equal sizes, in order."""
    total, first, share = sum(map(len, spans)), 0, []
    start, stop = rank * total // world, (rank + 1) * total // world
    for span in spans:
        part = span[max(0, start - first) : max(0, stop - first)]
        first += len(span)
        if part:
            share.append(part)
    return share


def join_pieces(folder: Path, pieces: Sequence[Piece], name: str, dtype: type[np.floating[Any]]) -> dict[str, str]:
    """Write `NAME.npy` and `NAME.samples.npy` of all pieces, piece by piece; returns file -> SHA-256.

    Raises:
        DataError: rows of several widths.
    """
    if any(
        piece.start != before for piece, before in zip(pieces, [0, *(piece.stop for piece in pieces)], strict=False)
    ):
        raise DataError(
            f"{folder}: another call embeds into this folder at the same time: end one, and give the other again"
        )
    rows = sum(piece.rows[name] for piece in pieces)
    widths = {piece.widths[name] for piece in pieces if name in piece.widths}
    if len(widths) != 1:
        raise DataError(f"{folder}: got rows of {name!r} of the widths {sorted(widths)}, wanted one: embed again")
    files = {f"{name}.npy": (ROWS, (rows, *widths), dtype), f"{name}.samples.npy": (OWNERS, (rows,), np.int64)}
    return {
        file: _join(folder / file, [piece.path(folder, name, what) for piece in pieces], shape, kind)
        for file, (what, shape, kind) in files.items()
    }


def _join(path: Path, parts: Sequence[Path], shape: tuple[int, ...], dtype: Any) -> str:
    with open(path, "wb") as file:
        header = {"descr": npy.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(file, header)
        for part in parts:
            with open(part, "rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)
        _flush(file)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _description(folder: Path, start: int, stop: int) -> Path:
    return folder / f".piece-{start:09d}-{stop:09d}.json"


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(text.encode())
        _flush(file)
    os.replace(temporary, path)


def sample_spans(batches: Sequence[range], batch_size: int, samples: int) -> Iterator[range]:
    """The samples of spans of batches."""
    for span in batches:
        yield range(span.start * batch_size, min(span.stop * batch_size, samples))
