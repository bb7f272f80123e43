"""The `data` section of a recipe: shards, mixture weights, shuffling, workers and caching."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from mmssl.core.batch import Needs
from mmssl.core.config import Config, LocalPath
from mmssl.core.distributed import world_size
from mmssl.core.errors import DataError
from mmssl.data.modality import Modality
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.remote import CacheConfig, Remote, RemoteReader
from mmssl.data.shards.storage import is_remote
from mmssl.data.stream.batches import EvalStream, TrainStream
from mmssl.data.stream.mixture import Batches, BlockShuffleConfig, GlobalShuffleConfig
from mmssl.data.stream.rows import SUBSTITUTE
from mmssl.data.stream.sources import Source
from mmssl.data.stream.workers import StartMethod, Workers
from mmssl.data.synchronized.chain import SynchronizedConfig

Shuffle = Annotated[GlobalShuffleConfig | BlockShuffleConfig, Field(discriminator="kind")]
SourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Shards = Annotated[tuple[str, ...], Field(min_length=1)]


class SourceConfig(Config):
    """One source of a mixture: its shards and weight.

    Attributes:
        shards: paths, folders, globs, brace patterns or URLs of tar files.
        weight: sampling weight, relative to the other sources' weights and independent of their sizes. If no source has a weight,
            each has its number of samples as weight, so that all have equally long epochs.
    """

    shards: Shards
    weight: float | None = Field(default=None, gt=0)


class DataConfig(Config):
    """Training data: shards or sources, shuffling, workers, faults and synchronized augmentation.

    Attributes:
        shards: paths, folders, globs or brace patterns of tar files, as in `train/{000000..000127}.tar`; or URLs (http, https, s3,
            gs, hf) with braces; or `pipe:` commands.
        sources: instead of `shards`: name -> shards and weight. An epoch has as many draws as all sources have samples.
        batches: with `sources`: "mixed": every batch has samples of all sources; "one_source": of one source only.
        shuffle: `{kind: global}` or `{kind: block, ...}`; default: block if a source is remote, else global.
        cache: how remote shards are fetched and cached on disk.
        allow_pipe: whether `pipe:` commands may run; they are arbitrary shell commands.
        workers: DataLoader worker processes of each rank.
        prefetch: batches that each worker prepares ahead.
        timeout: seconds to wait for one batch before the workers count as stalled; 0: no limit.
        start_method: "forkserver" starts workers from a clean process, safe with CUDA, NCCL and threads; "fork" starts at once,
            but copies a process whose threads may hold locks; "spawn" imports everything again in each worker.
        on_error: "raise": the first unusable sample or damaged shard ends the run; "substitute": unusable samples are replaced and
            counted, and the readable part of damaged local shards is used.
        verify: compare members with their checksums, if the sidecar of the shard has them.
        max_failures: largest share of unusable samples, checked after 500 samples; above it the run ends.
        optional: modalities that samples, or whole sources, may lack; some sample must have each.
        synchronized: augmentations of all modalities of a sample together, in this order; `modalities.<name>.views` augment one
            modality alone. Not used in evaluation.
        audit: folder of the log of used samples, see `Audit`; a relative path starts at the run folder.
    """

    shards: Shards | None = None
    sources: dict[SourceName, SourceConfig] | None = Field(default=None, min_length=1)
    batches: Batches = "mixed"
    shuffle: Shuffle | None = None
    cache: CacheConfig = CacheConfig()
    allow_pipe: bool = False
    workers: int = Field(default=2, ge=0)
    prefetch: int = Field(default=2, ge=1)
    timeout: float = Field(default=600.0, ge=0)
    start_method: StartMethod = "forkserver"
    on_error: Literal["raise", "substitute"] = "raise"
    max_failures: float = Field(default=0.01, ge=0, le=1)
    verify: bool = True
    optional: tuple[str, ...] = ()
    synchronized: tuple[SynchronizedConfig, ...] = ()
    audit: LocalPath | None = None

    @field_validator("sources")
    @classmethod
    def _all_weighted_or_none(cls, sources: dict[str, SourceConfig] | None) -> dict[str, SourceConfig] | None:
        without = [name for name, source in (sources or {}).items() if source.weight is None]
        if without and len(without) < len(sources or {}):
            raise ValueError(
                f"got weights for some sources, but none for {', '.join(without)}: give each source a weight, or none"
            )
        return sources

    @model_validator(mode="after")
    def _shards_or_sources(self) -> DataConfig:
        if (self.shards is None) == (self.sources is None):
            got = "neither" if self.shards is None else "both"
            raise ValueError(
                f"got {got} of `shards` and `sources`, wanted one: a list of shards, or name -> shards and weight"
            )
        if self.batches == "one_source" and len(self.sources or {}) < 2:
            raise ValueError(
                "batches: got 'one_source' without `sources`, where it has no effect: remove it, or set `sources`"
            )
        return self

    def build(
        self,
        modalities: Mapping[str, Modality],
        needs: Needs,
        *,
        batch_size: int,
        seed: int,
        source: str = "train",
        folder: Path = Path(),
    ) -> TrainStream:
        """Index the shards and make the stream.

        Args:
            source: name of the data set, for `shards`.
            folder: folder of the run, for a relative `audit`.

        Raises:
            DataError: the shards are missing or damaged, hold too few samples, or two sources share a shard. ValueError: see
                `TrainStream`.
        """
        return self.stream(self.open(source), modalities, needs, batch_size=batch_size, seed=seed, folder=folder)

    def stream(
        self,
        sources: list[Source],
        modalities: Mapping[str, Modality],
        needs: Needs,
        *,
        batch_size: int,
        seed: int,
        folder: Path = Path(),
    ) -> TrainStream:
        """Make the stream over the sources from `open`.

        Raises:
            DataError, ValueError: see `build`.
        """
        shuffle = self._shuffle()
        if isinstance(shuffle, BlockShuffleConfig):
            self._check_cache(sources, shuffle, batch_size)
        return TrainStream(
            sources,
            modalities,
            needs,
            batch_size=batch_size,
            seed=seed,
            workers=self._workers(),
            on_error=self.on_error,
            max_failures=self.max_failures,
            optional=self.optional,
            synchronized=self.synchronized,
            batches=self.batches,
            shuffle=shuffle,
            audit=folder / self.audit if self.audit is not None else None,
            ahead=self.cache.threads,
        )

    def pass_over(
        self, sources: list[Source], modalities: Mapping[str, Modality], needs: Needs, *, batch_size: int, seed: int
    ) -> EvalStream:
        """Make a stream that reads each training sample once in a pass, in order, unsynchronized; for `Objective.refresh`.

        Samples that training substitutes are left out. Random views are those of each source's first epoch.

        Args:
            sources: from `open`.
            batch_size: samples of a batch of this process.

        Raises:
            ValueError: views that no modality has.
        """
        return EvalStream(
            sources,
            modalities,
            needs,
            batch_size,
            self._workers(),
            on_error="skip" if self.on_error == "substitute" else "raise",
            max_failures=self.max_failures,
            optional=self.optional,
            seed=seed,
            remedy=SUBSTITUTE,
        )

    def _workers(self) -> Workers:
        return Workers(self.workers, self.prefetch, self.timeout, self.start_method)

    def open(self, source: str = "train") -> list[Source]:
        """Index the shards of all sources.

        Raises:
            DataError: see `build`.
        """
        shuffle = self._shuffle()
        remote = self.cache.build(self.allow_pipe)
        if isinstance(shuffle, BlockShuffleConfig):
            remote = replace(remote, slice=shuffle.slice)
        if self.shards is not None:
            return [Source(self._index(self.shards, source, remote))]
        opened = []
        for name, config in (self.sources or {}).items():
            index = self._index(config.shards, name, remote)
            opened.append(Source(index, len(index) if config.weight is None else config.weight))
        _refuse_common(opened)
        return opened

    def _index(self, shards: Shards, source: str, remote: Remote) -> ShardIndex:
        index = ShardIndex.open(shards, source=source, remote=remote, salvage=self.on_error == "substitute")
        index.verify = self.verify
        return index

    def _shuffle(self) -> GlobalShuffleConfig | BlockShuffleConfig:
        named = [*(self.shards or ()), *(shard for source in (self.sources or {}).values() for shard in source.shards)]
        return self.shuffle or (BlockShuffleConfig() if any(map(is_remote, named)) else GlobalShuffleConfig())

    def _check_cache(self, sources: list[Source], shuffle: BlockShuffleConfig, batch_size: int) -> None:
        """Refuse a cache that is too small for the slices in use: each would be fetched again for almost every batch."""
        lanes = -(-shuffle.lanes_for(batch_size, min(len(source.index) for source in sources)) // world_size())
        sources = [source for source in sources if isinstance(source.index.reader, RemoteReader)]
        slices = sum(
            shuffle.slice * source.index.shard_bytes / len(source.index) * shuffle.mixed * lanes for source in sources
        )
        wanted = int(2 * min(slices, sum(source.index.shard_bytes for source in sources)))
        if wanted > self.cache.max_bytes:
            raise DataError(
                f"data.cache.max_bytes: got {self.cache.max_bytes}, wanted at least {wanted} for each process of this machine: "
                "twice the slices that block shuffle mixes. Raise it, or lower `lanes`, `slice` or `mixed` of `data.shuffle`"
            )


def _refuse_common(sources: list[Source]) -> None:
    """Refuse a shard in two sources: its samples would have two numbers, and twice the share."""
    owner: dict[Path | str, str] = {}
    for source in sources:
        for shard in source.index.shards:
            other = owner.setdefault(shard.resolve() if isinstance(shard, Path) else shard, source.name)
            if other != source.name:
                raise DataError(
                    f"data.sources: {shard} is in {other!r} and in {source.name!r}: its samples would be drawn from both; "
                    "keep it in one source, and raise the weight of that source"
                )
