"""LitData: chunks written by `optimize`'s writer, read by `StreamingDataset` and `StreamingDataLoader`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import litdata
import torch
from litdata.streaming import Cache
from torchvision.transforms import v2

from loaders.adapter import CaptionedPicture, Item, LoaderAdapter, LoaderSetting, LoaderStream, digest


class LitData(LoaderAdapter):
    """Local chunks, shuffled with a seed; two sources by `CombinedStreamingDataset`."""

    package = "litdata"
    settings = (
        "`StreamingDataLoader`, `shuffle=True` with a seed, `drop_last` as it sets it; mixture: weights and "
        "`iterate_over_all=False`, as its README asks"
    )
    layout = "table"

    def prepare(self, samples: Sequence[CaptionedPicture], folder: Path, per_shard: int) -> None:
        """Chunks of `per_shard` samples, JPEGs as they are."""
        cache = Cache(str(folder), chunk_size=per_shard)
        for number, sample in enumerate(samples):
            cache[number] = {"image": litdata.Jpeg(bytes=sample.jpeg), "caption": sample.caption, "key": sample.key}
        cache.done()
        cache.merge()

    def open(self, setting: LoaderSetting) -> LoaderStream:
        """A `StreamingDataLoader`."""
        return LitStream(setting)

    def shards(self, folder: Path) -> list[Path]:
        """The chunks."""
        return sorted(folder.glob("*.bin"))


class LitStream(LoaderStream):
    """Epochs of a `StreamingDataLoader`."""

    def __init__(self, setting: LoaderSetting) -> None:
        transform = None if setting.crop is None else _Crop(setting.crop)
        parts = [
            litdata.StreamingDataset(str(folder), shuffle=True, seed=setting.seed, transform=transform)
            for folder in setting.folders
        ]
        dataset: Any = parts[0]
        if len(parts) > 1:
            weights = list(setting.weights)
            dataset = litdata.CombinedStreamingDataset(parts, setting.seed, weights, iterate_over_all=False)
        self._loader = litdata.StreamingDataLoader(dataset, batch_size=setting.batch, num_workers=setting.workers)

    def batches(self) -> Iterator[Any]:
        """The next epoch."""
        return iter(self._loader)

    def items(self, batch: Mapping[str, Any]) -> list[Item]:
        """Key and digest of each row."""
        rows = zip(batch["key"], batch["image"], batch["caption"], strict=True)
        return [(key, digest(*row)) for key, *row in rows]

    def state(self) -> Any:
        """The state of the loader."""
        return self._loader.state_dict()

    def load(self, state: Any) -> None:
        """Load the state."""
        self._loader.load_state_dict(state)


class _Crop:
    """A random resized crop as float32, of the decoded uint8 tensor."""

    def __init__(self, size: int) -> None:
        self._views = v2.Compose([v2.RandomResizedCrop(size), v2.ToDtype(torch.float32, scale=True)])

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        return sample | {"image": self._views(sample["image"])}


ADAPTER = LitData()
