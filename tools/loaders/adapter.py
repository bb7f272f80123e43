"""What an adapter of a loader does: write its own format, open it in one process of a run, and deliver batches.

An adapter uses a library as its documentation recommends for a reproducible order, and hides nothing of it: what it delivers,
raises and logs is what the library does.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch

NAMES = {
    "mmssl": "ours",
    "webdataset": "wds",
    "LitData": "lit",
    "Streaming": "mds",
    "Energon": "energon",
}
"""Name in the table -> module of the adapter."""

Item = tuple[str, str]
"""Key of a delivered sample, and digest of its pixels and caption."""


@dataclass(frozen=True)
class CaptionedPicture:
    """A picture and its caption, before packing."""

    key: str
    jpeg: bytes
    caption: str


@dataclass(frozen=True)
class LoaderSetting:
    """How one process of a run opens its loader.

    Attributes:
        folders: one prepared folder for each source.
        weights: of the sources, summing up to 1.
        rank, world: number of this process, of how many.
        workers: DataLoader workers of this process.
        batch: samples of a batch of this process.
        draws: samples of an epoch of all processes, for loaders that want to know it.
        scratch: empty folder, shared by the processes of the run, for caches.
        crop: None: whole pictures as uint8; N: a random resized crop of N pixels, as in training.
    """

    folders: tuple[Path, ...]
    weights: tuple[float, ...]
    rank: int
    world: int
    workers: int
    batch: int
    draws: int
    scratch: Path
    seed: int = 7
    crop: int | None = None


class NoState(Exception):
    """The loader cannot save its position."""


class LoaderStream(ABC):
    """A loader, open in one process."""

    @abstractmethod
    def batches(self) -> Iterator[Any]:
        """The batches of an epoch, or without end, as the library delivers them."""

    @abstractmethod
    def items(self, batch: Any) -> list[Item]:
        """The samples of a batch."""

    def save(self, path: Path) -> None:
        """Save the position after the batches that were delivered."""
        torch.save(self.state(), path)

    def restore(self, paths: Sequence[Path]) -> None:
        """Go to a saved position, before the first batch.

        Args:
            paths: files that `save` wrote, one for each process of the run that saved them.
        """
        self.load(torch.load(paths[0], weights_only=True))

    def state(self) -> Any:
        """The position, of plain data."""
        raise NoState

    def load(self, state: Any) -> None:
        """Go to a position."""
        raise NoState

    def reports(self) -> list[str]:
        """What counters of the library tell of lost or replaced samples."""
        return []

    def close(self) -> None:
        """End the worker processes."""
        return


class LoaderAdapter(ABC):
    """A library in the table.

    Attributes:
        package: its distribution, whose version is shown.
        settings: those that matter here, in words, for the table.
        layout: of a shard: "tar", or "table": uint32 n, uint32 offsets [n+1], then the samples.
        endless: whether its batches go on after an epoch.
    """

    package: ClassVar[str]
    settings: ClassVar[str]
    layout: ClassVar[str] = "tar"
    endless: ClassVar[bool] = False

    @abstractmethod
    def prepare(self, samples: Sequence[CaptionedPicture], folder: Path, per_shard: int) -> None:
        """Write shards of `per_shard` samples, with whatever finds damage later."""

    @abstractmethod
    def open(self, setting: LoaderSetting) -> LoaderStream:
        """Open prepared folders in this process."""

    @abstractmethod
    def shards(self, folder: Path) -> list[Path]:
        """The shards of a prepared folder."""

    def clean(self) -> None:
        """Before a run: remove what killed processes have left on the machine, if the library has a call for it."""
        return


def load(name: str) -> LoaderAdapter:
    """The adapter of a library.

    Raises:
        ImportError: the library is not installed.
    """
    adapter: LoaderAdapter = import_module(f"loaders.{NAMES[name]}").ADAPTER
    return adapter


def digest(pixels: Any, caption: Any) -> str:
    """Digest of a delivered picture (tensor or array) and caption (text, or tensor of token ids)."""
    words = caption.encode() if isinstance(caption, str) else torch.as_tensor(caption).numpy().tobytes()
    data = torch.as_tensor(pixels).contiguous().numpy().tobytes()
    return hashlib.blake2b(data + words, digest_size=8).hexdigest()
