"""The training data of a recipe: which shards, in which shares and order, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from mmssl.core.batch import Needs
from mmssl.core.config import Config
from mmssl.core.distributed import world_size
from mmssl.core.errors import DataError
from mmssl.data.modality import Modality
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.remote import CacheConfig, Remote, RemoteReader
from mmssl.data.shards.storage import is_remote
from mmssl.data.stream.batches import TrainStream
from mmssl.data.stream.mixture import Batches, BlockShuffleConfig, GlobalShuffleConfig
from mmssl.data.stream.sources import Source
from mmssl.data.stream.workers import StartMethod, Workers
from mmssl.data.synchronized.chain import SynchronizedConfig

Shuffle = Annotated[GlobalShuffleConfig | BlockShuffleConfig, Field(discriminator="kind")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Shards = Annotated[tuple[str, ...], Field(min_length=1)]


class SourceConfig(Config):
    """One source of several.

    Attributes:
        shards: paths, folders, globs, brace patterns or URLs of tar files.
        weight: its share of all samples that are drawn, relative to the other sources' weights, whatever their sizes. Where no
            source has one, each has its number of samples as weight, so that all are passed through equally often.
    """

    shards: Shards
    weight: float | None = Field(default=None, gt=0)


class DataConfig(Config):
    """The training data of a recipe.

    Attributes:
        shards: paths, folders, globs or brace patterns of tar files, as in `train/{000000..000127}.tar`; or URLs (http, https, s3,
            gs, hf) with braces; or `pipe:` commands.
        sources: instead of `shards`: name -> shards and weight. An epoch is as many draws as there are samples in all sources.
        batches: with sources: "mixed": every batch holds samples of all of them; "one_source": of one only.
        shuffle: `{kind: global}` or `{kind: block, ...}`; default: block where a source is remote, else global.
        cache: how remote shards are fetched and kept.
        allow_pipe: whether `pipe:` commands are run; the shell does whatever they say.
        workers: processes of each rank that prepare batches.
        prefetch: batches that each worker makes ahead.
        timeout: seconds to wait for one batch before the workers count as stalled; 0: for ever.
        start_method: "forkserver" starts workers from a clean process, safe beside CUDA, NCCL and threads; "fork" starts at once,
            but copies a process whose threads may hold locks; "spawn" imports everything anew in each worker.
        on_error: "raise": the first sample that cannot be used, or a damaged shard, ends the run; "substitute": another takes
            its place, counted, and of damaged local shards what is left is used.
        verify: compare members with their checksums, where the sidecar of the shard has them.
        max_failures: share of such samples above which the run ends, judged after 500 samples.
        optional: modalities that samples may lack, or whole sources.
        synchronized: augmentation of all modalities of a sample alike, in this order; what `modalities.<name>.views` do is of that
            modality alone. Evaluation has none of it.
        audit: folder for the names of all samples that are used, see `Audit`; a relative path starts at the run folder.
    """

    shards: Shards | None = None
    sources: dict[Name, SourceConfig] | None = Field(default=None, min_length=1)
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
    audit: Path | None = None

    @field_validator("sources")
    @classmethod
    def _all_weighted_or_none(cls, sources: dict[str, SourceConfig] | None) -> dict[str, SourceConfig] | None:
        without = [name for name, source in (sources or {}).items() if source.weight is None]
        if without and len(without) < len(sources or {}):
            raise ValueError(
                f"got no weight for {', '.join(without)}, and one for the others: give each source a weight, or none of them"
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
            raise ValueError("batches: got 'one_source' for a single source, where it has no effect: leave it out")
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
            source: name of the data set where there are only `shards`.
            folder: of the run, where a relative `audit` starts.

        Raises:
            DataError: the shards are missing or damaged, hold too few samples, or two sources share one. ValueError: see
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
        """The stream over sources that `open` gave.

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
            workers=Workers(self.workers, self.prefetch, self.timeout, self.start_method),
            on_error=self.on_error,
            max_failures=self.max_failures,
            optional=self.optional,
            synchronized=self.synchronized,
            batches=self.batches,
            shuffle=shuffle,
            audit=folder / self.audit if self.audit is not None else None,
            ahead=self.cache.threads,
        )

    def open(self, source: str = "train") -> list[Source]:
        """The sources, indexed.

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
        """Slices that are being mixed must have room in the cache, or each would be fetched for almost every batch anew."""
        lanes = -(-shuffle.lanes_for(batch_size, min(len(source.index) for source in sources)) // world_size())
        sources = [source for source in sources if isinstance(source.index.reader, RemoteReader)]
        slices = sum(
            shuffle.slice * source.index.shard_bytes / len(source.index) * shuffle.mixed * lanes for source in sources
        )
        wanted = int(2 * min(slices, sum(source.index.shard_bytes for source in sources)))
        if wanted > self.cache.max_bytes:
            raise DataError(
                f"data.cache.max_bytes: got {self.cache.max_bytes}, wanted at least {wanted} for each process of this machine: "
                "twice what block shuffle mixes at a time. Raise it, or lower `lanes`, `slice` or `mixed` of `data.shuffle`"
            )


def _refuse_common(sources: list[Source]) -> None:
    """No shard in two sources: its samples would come in twice the share, under two numbers."""
    owner: dict[Path | str, str] = {}
    for source in sources:
        for shard in source.index.shards:
            other = owner.setdefault(shard.resolve() if isinstance(shard, Path) else shard, source.name)
            if other != source.name:
                raise DataError(
                    f"data.sources: {shard} is in {other!r} and in {source.name!r}: its samples would be drawn from both; "
                    "name it in one, and raise that one's weight"
                )
