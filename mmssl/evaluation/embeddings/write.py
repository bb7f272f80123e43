"""Write embeddings of data sets to numpy files, in constant memory; a call that was killed goes on where it stopped."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mmssl.core import distributed
from mmssl.core.batch import Batch
from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError, MmsslError, os_words
from mmssl.data.modality import Modality
from mmssl.data.samples import SampleIndex
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.remote import Remote
from mmssl.data.stream.batches import EvalStream
from mmssl.evaluation.collect import unpack_items
from mmssl.evaluation.common import inference, require_usable
from mmssl.evaluation.embeddings.legend import finished_rows, publish, write_legend
from mmssl.evaluation.embeddings.pieces import (
    Piece,
    PieceWriter,
    finished_pieces,
    join_pieces,
    missing_batches,
    sample_spans,
    share_of,
    writing,
)

log = logging.getLogger(__name__)

VERSION = 1  # raise it when equal settings give other rows
PIECE_SECONDS = 60.0
"""A piece is closed after this time: about what a killed process loses."""


def write_embeddings(
    model: EmbeddingModel,
    modalities: Mapping[str, Modality],
    samples: Sequence[str] | SampleIndex,
    out: Path,
    *,
    wanted: Sequence[str],
    required: bool = True,
    features: bool = False,
    half: bool = False,
    batch_size: int = 256,
    workers: int = 0,
    max_failures: float = 0.01,
    source: Mapping[str, Any] | None = None,
    remote: Remote | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Embed every sample of a data set into numpy files; all processes must call this, with the same folder.

    Batch k has the samples kB ... (k+1)B-1, on any number of processes, so that rows do not depend on it. Finished pieces lie in
    `out/.unfinished`: after a kill, a signal or an error, the same call goes on behind them, on any number of processes. The files
    appear when all are complete, the manifest last, and replace files of an earlier call; until then they stay as they are. A
    folder that holds the same embeddings already is left as it is.

    Args:
        model: encoders and heads.
        modalities: decoders and views.
        samples: paths, braces or globs of shards; or an index of samples.
        out: folder for `<modality>.npy`, `<modality>.samples.npy`, `keys.txt`, `samples.parquet` and `manifest.json`.
        wanted: modalities to embed. A sample that lacks one gives no row; the manifest counts them ("without").
        required: whether a modality that no sample has is an error; otherwise it has no files and 0 rows.
        features: pooled encoder features instead of unit-norm embeddings.
        half: float16 instead of float32.
        batch_size, workers, max_failures: as in `EvalStream`.
        source: facts to copy into the manifest. Only with "model", which must change with weights and preprocessing, pieces of
            an earlier call are used.
        remote: client for URLs; default: one with the usual cache.
        overwrite: embed again what the folder holds already.
        progress: called with (samples done, all of them), of the share of this process.

    Returns:
        modality -> number of rows.

    Raises:
        ValueError: the model lacks a modality.
        DataError: no sample has a required modality, or none has any; or the files cannot be written.
        NumericError: a row is not finite.
    """
    for name in wanted:
        model.require(name, shared_space=not features)
    shards = list(samples) if isinstance(samples, Sequence) else None
    index = ShardIndex.open(samples, remote=remote) if isinstance(samples, Sequence) else samples
    dtype, facts = np.float16 if half else np.float32, dict(source or {})
    reading = _Reading(batch_size, workers, max_failures)
    job = _Job(model, index, modalities, tuple(wanted), dtype, features, reading, shards, facts, progress)
    if "model" in facts and not overwrite and (done := _finished(out, job, required)):
        return done
    with _unfinished(out, job.settings(), resume="model" in facts) as folder:
        _raise(distributed.attempt(lambda: job.run(folder)))
        pieces = distributed.gather_objects(finished_pieces(folder, dtype) if distributed.is_main() else None)[0]
        facts = job.manifest(pieces)
        if absent := job.absent(facts, required):
            shutil.rmtree(folder, ignore_errors=True)
            raise DataError(absent)
        _raise(distributed.attempt(lambda: _complete(folder, out, index, pieces, facts, dtype)))
    rows: dict[str, int] = facts["rows"]
    return rows


def _finished(out: Path, job: _Job, required: bool) -> dict[str, int] | None:
    """The rows of a folder that holds what the job would write; None: it does not."""
    done = distributed.gather_objects(finished_rows(out, job.facts()) if distributed.is_main() else None)[0]
    if done is None or (required and not all(done.values())):
        if distributed.is_main() and (out / "manifest.json").is_file():
            log.warning("%s holds embeddings of another model, data, settings or version: they are replaced", out)
        return None
    if distributed.is_main():
        log.warning("%s holds these embeddings already: nothing was embedded; to embed again: --overwrite", out)
    return dict(done)


def _raise(outcome: object) -> None:
    if isinstance(outcome, MmsslError):
        raise outcome


def _complete(
    folder: Path, out: Path, index: SampleIndex, pieces: Sequence[Piece], facts: Mapping[str, Any], dtype: Any
) -> None:
    """Join the pieces, and move the files into `out`; on the main process only."""
    if not distributed.is_main():
        return
    names = [name for name, count in facts["rows"].items() if count]
    with writing(out):
        digests = dict[str, str]()
        for name in names:
            digests |= join_pieces(folder, pieces, name, dtype)
        write_legend(folder, index, {**facts, "arrays": digests}, names)
        publish(folder, out, [name for name in facts["rows"] if name not in names])


@contextmanager
def _unfinished(out: Path, settings: Mapping[str, Any], *, resume: bool) -> Iterator[Path]:
    """Folder within `out` for pieces, shared by all processes; it stays after an error if there is a finished piece in it."""
    folder, made = out / ".unfinished", not out.exists()
    said = folder / "settings.json"
    text = json.dumps(settings, sort_keys=True, default=str)
    distributed.barrier()  # all processes have checked
    if distributed.is_main():
        try:
            if folder.exists() and not (resume and said.is_file() and said.read_text(encoding="utf-8") == text):
                if any(folder.glob(".piece-*.json")):
                    log.warning("%s: the unfinished pieces there are of another model, data or settings: removed", out)
                shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
            said.write_text(text, encoding="utf-8")
        except OSError as error:
            raise DataError(f"cannot write {out}: {os_words(error)}; choose another folder") from error
    distributed.barrier()
    done = False
    try:
        yield folder
        done = True
    finally:
        if distributed.is_main():
            if done or not any(folder.glob(".piece-*.json")):
                shutil.rmtree(folder, ignore_errors=True)
            if made and out.is_dir() and not any(out.iterdir()):
                out.rmdir()


class _Reading(NamedTuple):
    """How samples are read; see `EvalStream`."""

    batch_size: int
    workers: int
    max_failures: float


@dataclass(frozen=True)
class _Job:
    """The share of one process; see `write_embeddings`."""

    model: EmbeddingModel
    index: SampleIndex
    modalities: Mapping[str, Modality]
    wanted: tuple[str, ...]
    dtype: Any
    features: bool
    reading: _Reading
    shards: list[str] | None
    source: Mapping[str, Any]
    progress: Callable[[int, int], None] | None

    def settings(self) -> dict[str, Any]:
        """All that the rows depend on."""
        return {
            "version": VERSION,
            "source": self.source,
            "samples": [self.index.digest, len(self.index)],
            "wanted": self.wanted,
            "features": self.features,
            "dtype": np.dtype(self.dtype).name,
            "batch_size": self.reading.batch_size,
            "device": self.model.device.type,
        }

    def facts(self) -> dict[str, Any]:
        """What the manifest says before anything is embedded."""
        return {
            **self.source,
            **({} if self.shards is None else {"shards": self.shards}),
            "version": VERSION,
            "samples": len(self.index),
            "data": self.index.digest,
            "modalities": list(self.wanted),
            "what": "features" if self.features else "unit-norm embeddings",
            "dtype": np.dtype(self.dtype).name,
        }

    def manifest(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """What the manifest says of all pieces."""
        read = sum(piece.samples for piece in pieces)
        return self.facts() | {
            "skipped": len(self.index) - read,
            "rows": {name: sum(piece.rows[name] for piece in pieces) for name in self.wanted},
            "without": {name: read - sum(piece.present[name] for piece in pieces) for name in self.wanted},
        }

    def absent(self, facts: Mapping[str, Any], required: bool) -> str:
        """What is wrong if no sample has a modality; empty if that is fine."""
        absent = [name for name, count in facts["rows"].items() if not count]
        if not absent or not (required or len(absent) == len(self.wanted)):
            return ""
        what = f"sample of {self.shards}" if self.shards is not None else f"row of {self.index.source}"
        return (
            f"no {what} has {' or '.join(map(repr, absent))}: of {len(self.index)}, {facts['skipped']} cannot be decoded; "
            "check the shards, and the modality's `extensions`; nothing was written"
        )

    def run(self, folder: Path) -> None:
        """Embed the batches that no finished piece in the folder has."""
        batches = -(-len(self.index) // self.reading.batch_size)
        whole = finished_pieces(folder, self.dtype) if distributed.is_main() else None
        finished = distributed.gather_objects(whole)[0]
        missing = missing_batches(finished, batches)
        if finished and distributed.is_main():
            left = sum(map(len, missing))
            log.warning("going on behind an earlier call: %d of %d batches are embedded", batches - left, batches)
        spans = share_of(missing, distributed.rank(), distributed.world_size())
        if spans:
            self._embed(folder, spans)

    def _embed(self, folder: Path, spans: Sequence[range]) -> None:
        needs = {name: {"eval": 1} for name in self.wanted}
        numbers = list(sample_spans(spans, self.reading.batch_size, len(self.index)))
        stream = EvalStream(
            self.index,
            self.modalities,
            needs,
            self.reading.batch_size,
            self.reading.workers,
            on_error="skip",
            max_failures=self.reading.max_failures,
            optional=self.wanted,
            spans=numbers,
        )
        with inference(self.model), closing(stream):
            numbered = (
                (int(batch.index[0]) // self.reading.batch_size, batch) for batch in self._tracked(stream, numbers)
            )
            groups = groupby(numbered, key=lambda one: next(span for span in spans if one[0] in span))
            empty = list(spans)
            for span, some in groups:
                self._embed_span(folder, span, some)
                empty.remove(span)
            for span in empty:  # none of their samples can be decoded
                self._embed_span(folder, span, ())

    def _tracked(self, batches: Iterable[Batch], spans: Sequence[range]) -> Iterator[Batch]:
        total = sum(map(len, spans))
        for batch in batches:
            yield batch
            if self.progress is not None:
                last = int(batch.index[-1])
                self.progress(sum(len(span[: max(0, last + 1 - span.start)]) for span in spans), total)

    def _embed_span(self, folder: Path, span: range, batches: Iterable[tuple[int, Batch]]) -> None:
        """Embed a span of batches as one piece, or several by the clock."""
        start, began = span.start, time.monotonic()
        piece = self._piece(folder)
        try:
            for number, batch in batches:
                self._embed_batch(batch, piece)
                if time.monotonic() - began >= PIECE_SECONDS and number + 1 < span.stop:
                    piece.finish(start, number + 1)
                    start, began, piece = number + 1, time.monotonic(), self._piece(folder)
            piece.finish(start, span.stop)
        finally:
            piece.close()

    def _piece(self, folder: Path) -> PieceWriter:
        return PieceWriter(folder, self.wanted, self.dtype, distributed.rank())

    def _embed_batch(self, batch: Batch, piece: PieceWriter) -> None:
        """Write the embeddings of a batch; each caption of a sample is encoded separately."""
        keys = dict(zip(batch.index.tolist(), batch.keys, strict=True))
        piece.samples += len(batch)
        for name in self.wanted:
            views, owners = unpack_items(batch, name)
            piece.count(name, len(torch.unique(owners)))
            for x, owner in zip(
                torch.split(views, self.reading.batch_size), torch.split(owners, self.reading.batch_size), strict=True
            ):
                if len(owner):
                    rows = self.model.features(name, x) if self.features else self.model.embed(name, x)
                    require_usable(rows, owner, keys, f"row of {name!r}", unit=not self.features)
                    piece.add(name, rows.cpu().numpy(), owner.cpu().numpy())
