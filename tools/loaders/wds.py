"""webdataset: the same tar shards, split over processes and workers by shard."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import webdataset
from torchvision.transforms import v2

from loaders.adapter import CaptionedPicture, Item, LoaderAdapter, LoaderSetting, LoaderStream, digest
from loaders.samples import write_tars


class WebDataset(LoaderAdapter):
    """`WebDataset` and `WebLoader` with the seeded shuffles."""

    package = "webdataset"
    settings = (
        "`detshuffle` of shards and samples with a seed, `split_by_node`, `warn_and_continue`, batches by `WebLoader`"
    )

    def prepare(self, samples: Sequence[CaptionedPicture], folder: Path, per_shard: int) -> None:
        """Tar files."""
        write_tars(samples, folder, per_shard)

    def open(self, setting: LoaderSetting) -> LoaderStream:
        """A `WebLoader`."""
        return WdsStream(setting)

    def shards(self, folder: Path) -> list[Path]:
        """The tar files."""
        return sorted(folder.glob("*.tar"))


class WdsStream(LoaderStream):
    """One epoch of a pipeline; there is no state."""

    def __init__(self, setting: LoaderSetting) -> None:
        random.seed(setting.seed)  # `RandomMix` draws from it; workers take their seeds from torch's
        torch.manual_seed(setting.seed)
        parts = [self._pipeline(folder, setting) for folder in setting.folders]
        mix = parts[0] if len(parts) == 1 else webdataset.RandomMix(parts, setting.weights)
        loader = webdataset.WebLoader(mix, batch_size=setting.batch, num_workers=setting.workers)
        # Workers end with smaller batches; joining them again costs time, and nothing is gained in the middle of an epoch.
        self._loader = loader if setting.crop else loader.unbatched().batched(setting.batch)

    @staticmethod
    def _pipeline(folder: Path, setting: LoaderSetting) -> Any:
        handler = webdataset.warn_and_continue
        pipeline = webdataset.WebDataset(
            [str(path) for path in sorted(folder.glob("*.tar"))],
            shardshuffle=100,
            detshuffle=True,
            seed=setting.seed,
            nodesplitter=webdataset.split_by_node,
            empty_check=False,
            handler=handler,
        )
        shuffled = pipeline.compose(webdataset.detshuffle(1000, seed=setting.seed))
        decoded = shuffled.decode("pil", handler=handler).to_tuple("jpg", "txt", "__key__", handler=handler)
        return decoded.map_tuple(_transform(setting.crop), handler=handler)

    def batches(self) -> Iterator[Any]:
        """The batches of this process' shards."""
        return iter(self._loader)

    def items(self, batch: Any) -> list[Item]:
        """Key and digest of each row."""
        pixels, captions, keys = batch
        return [(key, digest(*row)) for key, *row in zip(keys, pixels, captions, strict=True)]


def _transform(crop: int | None) -> Any:
    """PIL to tensor: whole and uint8, or cropped, as float32, as in the examples."""
    if crop is None:
        return v2.PILToTensor()
    return v2.Compose([v2.RandomResizedCrop(crop), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


ADAPTER = WebDataset()
