"""Embeddings of shards as numpy files, written as they come: memory does not grow with the data."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy

from mmssl.core import distributed
from mmssl.core.batch import Batch
from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError
from mmssl.data.index import ShardIndex
from mmssl.data.modality import Modality
from mmssl.data.stream import EvalStream
from mmssl.evaluation.common import inference, require_usable, unpack


class _Rows:
    """This process' rows of one modality, in raw files until all processes are done."""

    def __init__(self, folder: Path, name: str, dtype: type[np.floating[Any]]) -> None:
        self.folder, self.name, self.dtype = folder, name, dtype
        self.rows, self.width = 0, 0
        self._values: BinaryIO = open(self._part("values", distributed.rank()), "wb")  # noqa: SIM115 - closed in `close`
        self._owners: BinaryIO = open(self._part("owners", distributed.rank()), "wb")  # noqa: SIM115

    def add(self, rows: torch.Tensor, owners: torch.Tensor) -> None:
        values = rows.cpu().numpy().astype(self.dtype)
        self._values.write(values.tobytes())
        self._owners.write(owners.cpu().numpy().astype(np.int64).tobytes())
        self.rows += len(values)
        self.width = values.shape[1]

    def close(self) -> int:
        """Join the parts of all processes; returns the rows of all."""
        self._values.close()
        self._owners.close()
        shares = distributed.gather_objects((self.rows, self.width))
        total, width = sum(int(rows) for rows, _ in shares), max(int(width) for _, width in shares)
        if distributed.is_main():
            self._join(self.folder / f"{self.name}.npy", "values", (total, width), self.dtype)
            self._join(self.folder / f"{self.name}.samples.npy", "owners", (total,), np.int64)
        distributed.barrier()
        return total

    def _part(self, what: str, rank: int) -> Path:
        return self.folder / f".{self.name}.{what}.{rank}"

    def _join(self, path: Path, what: str, shape: tuple[int, ...], dtype: Any) -> None:
        temporary = path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            header = {"descr": npy.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
            npy.write_array_header_1_0(file, header)
            for rank in range(distributed.world_size()):
                with open(self._part(what, rank), "rb") as part:
                    shutil.copyfileobj(part, file)
                self._part(what, rank).unlink()
        os.replace(temporary, path)


def write_embeddings(
    model: EmbeddingModel,
    modalities: Mapping[str, Modality],
    shards: Sequence[str],
    out: Path,
    *,
    wanted: Sequence[str],
    features: bool = False,
    half: bool = False,
    batch_size: int = 256,
    workers: int = 0,
    source: Mapping[str, str] | None = None,
) -> dict[str, int]:
    """Embed every sample of the shards; every process of a launch must call, and needs the same folder.

    Args:
        model: encoders and heads.
        modalities: decoders and views.
        shards: what is embedded.
        out: folder for `<modality>.npy`, `<modality>.samples.npy`, `keys.txt` and `manifest.json`.
        wanted: modalities that are embedded.
        features: pooled encoder features instead of unit-norm embeddings.
        half: float16 instead of float32.
        batch_size, workers: as in `EvalStream`.
        source: goes into the manifest.

    Returns:
        modality -> rows.

    Raises:
        ValueError: the model lacks a modality. DataError: no usable sample. NumericError: a row is not finite.
    """
    for name in wanted:
        model.require(name, shared_space=not features)
    index = ShardIndex.open(list(shards))
    out.mkdir(parents=True, exist_ok=True)
    dtype = np.float16 if half else np.float32
    files = {name: _Rows(out, name, dtype) for name in wanted}
    skipped = _embed_all(model, index, modalities, files, features, batch_size, workers)
    written = {name: file.close() for name, file in files.items()}
    if not any(written.values()):
        raise DataError(f"no sample of {list(shards)} has any of {list(wanted)}: check the shards and `extensions`")
    if distributed.is_main():
        facts = {
            **(source or {}),
            "shards": list(shards),
            "samples": len(index),
            "skipped": skipped,
            "rows": written,
            "what": "features" if features else "unit-norm embeddings",
            "dtype": np.dtype(dtype).name,
        }
        _write_legend(out, index, facts)
    distributed.barrier()
    return written


def _embed_all(
    model: EmbeddingModel,
    index: ShardIndex,
    modalities: Mapping[str, Modality],
    files: Mapping[str, _Rows],
    features: bool,
    batch_size: int,
    workers: int,
) -> int:
    """One pass over this process' share; returns how many samples were skipped on all."""
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
    """Write the rows of one modality of a batch; captions of a sample are encoded as samples of their own."""
    keys = dict(zip(batch.index.tolist(), batch.keys, strict=True))
    views, owners = unpack(batch, name)
    for views_part, owners_part in zip(torch.split(views, chunk), torch.split(owners, chunk), strict=True):
        if len(owners_part):
            rows = model.features(name, views_part) if features else model.embed(name, views_part)
            require_usable(rows, owners_part, keys, f"row of {name!r}", unit=not features)
            file.add(rows, owners_part)


def _write_legend(out: Path, index: ShardIndex, facts: Mapping[str, Any]) -> None:
    """What the rows are: a key a line for every sample, and a manifest."""
    with open(out / "keys.txt", "w", encoding="utf-8") as file:
        file.writelines(f"{index.key(i)}\n" for i in range(len(index)))
    (out / "manifest.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
