"""All-gather the embeddings of a data set, and keep the shards and workers of an evaluator between its runs."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mmssl.core import distributed
from mmssl.core.batch import Batch, Needs, merge_needs
from mmssl.core.errors import DataError
from mmssl.data.modality import Modality
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.paths import stamps
from mmssl.data.shards.remote import Remote
from mmssl.data.stream.batches import EvalStream
from mmssl.data.stream.formats import check_formats, require_members
from mmssl.evaluation.common import EvaluatorConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Items:
    """Embeddings (or other rows) of one modality of a data set, from all processes, in the order of the samples.

    Attributes:
        rows: [n, ...], one row an item; a sample may have several items (captions), or none.
        owner: [n] int64, ascending: number of the sample that the item belongs to.
        hashes: see `digest`; None: collected without hashes.
    """

    rows: Tensor
    owner: Tensor
    hashes: Tensor | None = None

    @property
    def digest(self) -> Tensor:
        """[n] int64, hash of the item's view before it was encoded: equal items have equal digests.

        Raises:
            ValueError: they were collected without hashes.
        """
        if self.hashes is None:
            raise ValueError("these items were collected without hashes; collect them with hashed=True")
        return self.hashes


@dataclass(frozen=True)
class Collected:
    """An encoded data set: the items of each modality, the keys of the samples, and the number of skipped ones.

    Attributes:
        items: modality, or "modality/view" -> its items.
        keys: number of a sample -> its key.
        skipped: number of samples that could not be decoded; they are not in `keys`.
    """

    items: Mapping[str, Items]
    keys: Mapping[int, str]
    skipped: int = 0

    def __getitem__(self, modality: str) -> Items:
        return self.items[modality]


Encode = Callable[[Tensor], Tensor]
"""Function that encodes views: [n, ...] on the CPU -> rows [n, ...] on any device."""


class KeptIndex:
    """The index of an evaluator's shards, opened by the first run and reused by later ones.

    Shards that have changed in between (other files, sizes or modification times) are opened again, with a warning.

    Args:
        shards: paths, braces or globs.
        modalities: those that are read: some sample must have each, in the format that its settings read.
        remote: client for URLs; None: one with the usual cache.
    """

    def __init__(self, shards: Sequence[str], modalities: Mapping[str, Modality], remote: Remote | None = None) -> None:
        self.shards = tuple(shards)
        self.modalities = modalities
        self.remote = remote
        self._index: ShardIndex | None = None
        self._stamps: object = None

    @property
    def reads(self) -> tuple[tuple[tuple[str, ...], Mapping[str, Modality]], ...]:
        """The shards, and the modalities that are read."""
        return ((self.shards, self.modalities),)

    def open(self) -> ShardIndex:
        """Open the index of the current shards, or return the open one.

        Raises:
            DataError: the shards cannot be used.
        """
        found = stamps(self.shards)
        if self._index is not None and found != self._stamps:
            log.warning(
                "the shards %s have changed since the last evaluation: earlier scores are of other samples",
                list(self.shards),
            )
            self._index = None
        if self._index is None:
            index = ShardIndex.open(self.shards, remote=self.remote)
            require_members([index], self.modalities)
            check_formats(index, self.modalities)
            self._index, self._stamps = index, found
        return self._index

    def digest(self) -> str:
        """Hash of the names, sizes and keys of the samples."""
        return self.open().digest

    def close(self) -> None:
        """Close the index; the next run opens it again."""
        self._index = None


class KeptShards:
    """Data loader of an evaluator: the index of its shards, and worker processes that persist between runs.

    Args:
        config: batch size, workers, and `on_error` for damaged samples.
        modalities: by name.
        names: modalities to collect, by their views "eval"; a sample may lack any of them.
        shards: paths, braces or globs.
        limit: number of samples, the first ones; None: all.
        views: further views of these modalities; random ones are the same in every pass.
        hashed: compute the hashes of items, see `Items.digest`: about one second for each gigabyte of views.

    Attributes:
        inputs: modality -> hashes [n] int64 of its items in the latest pass; empty without `hashed`.
    """

    def __init__(
        self,
        config: EvaluatorConfig,
        modalities: Mapping[str, Modality],
        names: Sequence[str],
        shards: Sequence[str],
        limit: int | None,
        views: Needs | None = None,
        *,
        hashed: bool = False,
    ) -> None:
        self.hashed, self.inputs = hashed, dict[str, Tensor]()
        self.config, self.modalities, self.names, self.limit = config, modalities, tuple(names), limit
        self.needs = merge_needs({name: {"eval": 1} for name in names}, views or {})
        self.index = KeptIndex(shards, {name: modalities[name] for name in self.names}, config.remote())
        self._stream: EvalStream | None = None

    @property
    def reads(self) -> tuple[tuple[tuple[str, ...], Mapping[str, Modality]], ...]:
        """The shards, and the modalities that are read."""
        return self.index.reads

    def collect(self, encode: Mapping[str, Encode], device: torch.device) -> Collected:
        """Run `collect` over this process' share of the samples, with the number of damaged ones.

        Args:
            encode: see `collect`; for each of the names.

        Raises:
            DataError: the shards cannot be used.
        """
        stream = self.open()
        try:
            data = collect(stream, encode, device, self.config.batch_size, hashed=self.hashed)
        except BaseException:
            self.close()  # after an interrupted pass, workers are in the middle of it, or dead
            raise
        self.inputs = {name: items.digest for name, items in data.items.items()} if self.hashed else {}
        return replace(data, skipped=sum(distributed.gather_objects(stream.faults.total())))

    def digest(self) -> str:
        """See `KeptIndex.digest`."""
        return self.index.digest()

    def close(self) -> None:
        """Stop the workers and close the index; the next run starts them again."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self.index.close()

    def open(self) -> EvalStream:
        """Open the index and make the stream of batches; its workers start with the first batch.

        Raises:
            DataError: the shards cannot be used.
        """
        index = self.index.open()
        if self._stream is not None and self._stream.index is not index:
            self._stream.close()
            self._stream = None
        if self._stream is None:
            self._stream = EvalStream(
                index,
                self.modalities,
                self.needs,
                self.config.batch_size,
                self.config.workers_for(min(len(index), self.limit or len(index)) // distributed.world_size()),
                on_error=self.config.on_error,
                optional=self.names,
                limit=self.limit,
            )
        return self._stream


@torch.no_grad()
def collect(
    batches: Iterable[Batch], encode: Mapping[str, Encode], device: torch.device, chunk: int, *, hashed: bool = False
) -> Collected:
    """Encode one pass over this process' share, and all-gather the rows.

    Ragged views are unpacked: a sample with three captions gives three rows. A sample that lacks a modality gives none.

    Args:
        batches: the views that `encode` names.
        encode: modality, for its view "eval0", or "modality/view" -> function that encodes the view.
        device: device of the rows.
        chunk: largest number of items encoded at a time.
        hashed: compute `digest` of the items, about one second for each gigabyte of views.

    Raises:
        DataError: there are no samples, or none has one of the modalities.
    """
    parts: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in encode}
    keys: dict[int, str] = {}
    for batch in batches:
        keys.update(zip(batch.index.tolist(), batch.keys, strict=True))
        for name, function in encode.items():
            views, owner = unpack_items(batch, *name.split("/"))
            if len(owner):
                rows = encode_in_parts(function, views, chunk).to(device)
                columns = (rows, owner.to(device))
                parts[name].append((*columns, row_hashes(views).to(device)) if hashed else columns)
    everyone = {number: key for share in distributed.gather_objects(keys) for number, key in share.items()}
    if not everyone:
        raise DataError("got no sample to evaluate on, wanted at least one; check the evaluator's `shards`")
    joined = {name: _joined(name, part, device, len(everyone)) for name, part in parts.items()}
    return Collected(joined, everyone)


def unpack_items(batch: Batch, modality: str, view: str = "eval0") -> tuple[Tensor, Tensor]:
    """Unpack a modality's view into items [n, ...] and their owners [n], without absent samples and padding."""
    x, owner = batch[modality][view], batch.index
    if modality not in batch.present and modality not in batch.lengths:
        return x, owner  # as it is, perhaps in pinned memory
    present = batch.present.get(modality, torch.ones(len(batch), dtype=torch.bool))
    if modality not in batch.lengths:
        return x[present], owner[present]
    real = (torch.arange(x.shape[1]) < batch.lengths[modality][:, None]) & present[:, None]
    return x[real], owner[:, None].expand_as(real)[real]


def encode_in_parts(encode: Encode, views: Tensor, chunk: int) -> Tensor:
    """Rows [n, ...] of views [n, ...], n >= 1, of which at most `chunk` are encoded at a time: a sample may have many captions."""
    return torch.cat([encode(part) for part in torch.split(views, chunk)])


def row_hashes(views: Tensor) -> Tensor:
    """Hash of each row's bytes, [n] int64."""
    rows = views.reshape(len(views), -1).contiguous().cpu().numpy()
    found = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows]
    return torch.from_numpy(np.frombuffer(b"".join(found), np.int64).copy())


def _joined(modality: str, parts: list[tuple[Tensor, ...]], device: torch.device, samples: int) -> Items:
    """All-gather the parts of all processes. A process without items gets the shape of a row from another."""
    own = [torch.cat(column) for column in zip(*parts, strict=True)] if parts else None
    shapes = distributed.gather_objects([(tuple(x.shape[1:]), x.dtype) for x in own] if own else None)
    shape = next((shape for shape in shapes if shape), None)
    if shape is None:
        raise DataError(
            f"no sample has {modality!r}, of {samples}: check the evaluator's `shards`, and the modality's `extensions`"
        )
    if own is None:
        own = [torch.empty((0, *rest), dtype=dtype, device=device) for rest, dtype in shape]
    return Items(*(distributed.gather_uneven(x) for x in own))


def items_in_both(data: Collected, a: str, b: str) -> tuple[Tensor, Tensor]:
    """Masks of the items of two modalities whose sample has both: [n of a] bool, [n of b] bool.

    Raises:
        DataError: no sample has both; says how many have each.
    """
    has, also = items_in_all(data, (a, b))
    return has, also


def items_in_all(data: Collected, names: Sequence[str]) -> tuple[Tensor, ...]:
    """Masks of the items of each modality whose sample has all of them: [n] bool each.

    Raises:
        DataError: no sample has all; says how many have each.
    """
    owners = [data[name].owner for name in names]
    masks = [torch.stack([torch.isin(own, other) for other in owners]).all(0) for own in owners]
    if not masks[0].any():
        *some, last = (f"{name!r}" for name in names)
        counts = [f"{len(torch.unique(own))} have {name!r}" for name, own in zip(names, owners, strict=True)]
        raise DataError(
            f"no sample has {'both ' if len(names) == 2 else ''}{', '.join(some)} and {last}: of {len(data.keys)}, "
            f"{', '.join(counts[:-1])} and {counts[-1]}; check the evaluator's `shards`"
        )
    return tuple(masks)
