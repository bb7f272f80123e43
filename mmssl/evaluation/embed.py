"""Write embeddings of shards to numpy files, in constant memory; no partial files remain after an error."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy

from mmssl.core import distributed
from mmssl.core.batch import Batch
from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError
from mmssl.data.modality import Modality
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.remote import Remote
from mmssl.data.stream.batches import EvalStream
from mmssl.evaluation.collect import unpack_items
from mmssl.evaluation.common import inference, require_usable


class _Rows:
    """Embeddings of one modality from this process, in raw files until all processes have finished."""

    def __init__(self, folder: Path, name: str, dtype: type[np.floating[Any]]) -> None:
        self.folder, self.name, self.dtype = folder, name, dtype
        self.rows, self.width, self.samples = 0, 0, 0
        self._values: BinaryIO = open(self._part("values", distributed.rank()), "wb")  # noqa: SIM115 - closed in `close`
        self._owners: BinaryIO = open(self._part("owners", distributed.rank()), "wb")  # noqa: SIM115

    def add(self, rows: torch.Tensor, owners: torch.Tensor) -> None:
        values = rows.cpu().numpy().astype(self.dtype)
        self._values.write(values.tobytes())
        self._owners.write(owners.cpu().numpy().astype(np.int64).tobytes())
        self.rows += len(values)
        self.width = values.shape[1]

    def close(self) -> tuple[int, int]:
        """Join the parts of all processes, if there is a row; returns the numbers of rows and of samples over all processes."""
        self._values.close()
        self._owners.close()
        shares = distributed.gather_objects((self.rows, self.samples, self.width))
        rows, samples = sum(int(share[0]) for share in shares), sum(int(share[1]) for share in shares)
        if distributed.is_main() and rows:
            width = max(int(share[2]) for share in shares)
            self._join(self.folder / f"{self.name}.npy", "values", (rows, width), self.dtype)
            self._join(self.folder / f"{self.name}.samples.npy", "owners", (rows,), np.int64)
        distributed.barrier()
        return rows, samples

    def _part(self, what: str, rank: int) -> Path:
        return self.folder / f".{self.name}.{what}.{rank}"

    def _join(self, path: Path, what: str, shape: tuple[int, ...], dtype: Any) -> None:
        with open(path, "wb") as file:
            header = {"descr": npy.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
            npy.write_array_header_1_0(file, header)
            for rank in range(distributed.world_size()):
                with open(self._part(what, rank), "rb") as part:
                    shutil.copyfileobj(part, file)
                self._part(what, rank).unlink()


def write_embeddings(
    model: EmbeddingModel,
    modalities: Mapping[str, Modality],
    shards: Sequence[str],
    out: Path,
    *,
    wanted: Sequence[str],
    required: bool = True,
    features: bool = False,
    half: bool = False,
    batch_size: int = 256,
    workers: int = 0,
    source: Mapping[str, str] | None = None,
    remote: Remote | None = None,
) -> dict[str, int]:
    """Embed every sample of the shards into numpy files; all processes must call this, with the same folder.

    The files appear when all are complete, the manifest last, and replace files of an earlier call. After an error the folder is
    unchanged.

    Args:
        model: encoders and heads.
        modalities: decoders and views.
        shards: paths, braces or globs of the shards to embed.
        out: folder for `<modality>.npy`, `<modality>.samples.npy`, `keys.txt` and `manifest.json`.
        wanted: modalities to embed. A sample that lacks one gives no row; the manifest counts them ("without").
        required: whether a modality that no sample has is an error; otherwise it has no files and 0 rows.
        features: pooled encoder features instead of unit-norm embeddings.
        half: float16 instead of float32.
        batch_size, workers: as in `EvalStream`.
        source: facts to copy into the manifest. remote: client for URLs; default: one with the usual cache.

    Returns:
        modality -> number of rows.

    Raises:
        ValueError: the model lacks a modality.
        DataError: no sample has a required modality, or none has any.
        NumericError: a row is not finite.
    """
    for name in wanted:
        model.require(name, shared_space=not features)
    index = ShardIndex.open(list(shards), remote=remote)
    dtype = np.float16 if half else np.float32
    with _unfinished(out) as folder:
        files = {name: _Rows(folder, name, dtype) for name in wanted}
        skipped = _embed_all(model, index, modalities, files, features, batch_size, workers)
        counts = {name: file.close() for name, file in files.items()}
        written = {name: rows for name, (rows, _) in counts.items()}
        absent = [name for name, rows in written.items() if not rows]
        if absent and (required or len(absent) == len(written)):
            raise DataError(
                f"no sample of {list(shards)} has {' or '.join(map(repr, absent))}: of {len(index)}, {skipped} cannot be decoded; "
                "check the shards, and the modality's `extensions`; nothing was written"
            )
        if distributed.is_main():
            facts = {
                **(source or {}),
                "shards": list(shards),
                "samples": len(index),
                "skipped": skipped,
                "rows": written,
                "without": {name: len(index) - skipped - samples for name, (_, samples) in counts.items()},
                "what": "features" if features else "unit-norm embeddings",
                "dtype": np.dtype(dtype).name,
            }
            _write_legend(folder, index, facts)
            _publish(folder, out, absent)
        distributed.barrier()
    return written


@contextmanager
def _unfinished(out: Path) -> Iterator[Path]:
    """Temporary folder within `out` for unfinished files, shared by all processes and removed at exit."""
    folder, made = out / ".unfinished", not out.exists()
    distributed.barrier()  # all processes have checked
    if distributed.is_main():
        try:
            if folder.exists():  # left by a killed process
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
        except OSError as error:
            raise DataError(f"cannot write {out}: {error}; choose another folder") from error
    distributed.barrier()
    try:
        yield folder
    finally:
        # Another process may remove it too, so missing files are no error.
        shutil.rmtree(folder, ignore_errors=True)
        if made and distributed.is_main() and not any(out.iterdir()):
            out.rmdir()


def _publish(folder: Path, out: Path, absent: Sequence[str]) -> None:
    """Move finished files into `out`, the manifest last: all files that a manifest names are from one call."""
    (out / "manifest.json").unlink(missing_ok=True)
    for name in absent:
        (out / f"{name}.npy").unlink(missing_ok=True)
        (out / f"{name}.samples.npy").unlink(missing_ok=True)
    for path in sorted(folder.glob("[!.]*"), key=lambda path: path.name == "manifest.json"):
        os.replace(path, out / path.name)


def _embed_all(
    model: EmbeddingModel,
    index: ShardIndex,
    modalities: Mapping[str, Modality],
    files: Mapping[str, _Rows],
    features: bool,
    batch_size: int,
    workers: int,
) -> int:
    """Embed this process' share in one pass; returns the number of skipped samples over all processes."""
    needs = {name: {"eval": 1} for name in files}
    stream = EvalStream(index, modalities, needs, batch_size, workers, on_error="skip", optional=tuple(files))
    try:
        with inference(model):
            for batch in stream:
                for name, file in files.items():
                    _embed_batch(model, batch, name, file, features, batch_size)
    finally:
        stream.close()
    return sum(int(count) for count in distributed.gather_objects(stream.faults.total()))


def _embed_batch(model: EmbeddingModel, batch: Batch, name: str, file: _Rows, features: bool, chunk: int) -> None:
    """Write the embeddings of one modality of a batch; each caption of a sample is encoded separately."""
    keys = dict(zip(batch.index.tolist(), batch.keys, strict=True))
    views, owners = unpack_items(batch, name)
    file.samples += len(torch.unique(owners))
    for views_part, owners_part in zip(torch.split(views, chunk), torch.split(owners, chunk), strict=True):
        if len(owners_part):
            rows = model.features(name, views_part) if features else model.embed(name, views_part)
            require_usable(rows, owners_part, keys, f"row of {name!r}", unit=not features)
            file.add(rows, owners_part)


def _write_legend(out: Path, index: ShardIndex, facts: Mapping[str, Any]) -> None:
    """Write the keys of all samples, one a line, and the manifest."""
    with open(out / "keys.txt", "w", encoding="utf-8") as file:
        file.writelines(f"{index.key(i)}\n" for i in range(len(index)))
    (out / "manifest.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
