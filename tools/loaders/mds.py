"""MosaicML Streaming: MDS shards with hashes, read by `StreamingDataset` and `StreamingDataLoader` through a local cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import streaming
import torch
from PIL import Image
from torchvision.transforms import v2

from loaders.adapter import CaptionedPicture, Item, LoaderAdapter, LoaderSetting, LoaderStream, digest

COLUMNS = {"image": "jpeg", "caption": "str", "key": "str"}


class Mosaic(LoaderAdapter):
    """Shards in a folder that is read as remote storage, with their hashes compared when they are fetched."""

    package = "mosaicml-streaming"
    settings = (
        "`shuffle=True` with a seed, `batch_size` given, `validate_hash`, `num_canonical_nodes` as it sets it; mixture: "
        "`proportion` and `epoch_size`"
    )
    layout = "table"

    def prepare(self, samples: Sequence[CaptionedPicture], folder: Path, per_shard: int) -> None:
        """Shards of about `per_shard` samples: the format limits their bytes. JPEGs as they are, copied from files."""
        limit = per_shard * sum(len(sample.jpeg) + 80 for sample in samples) // len(samples)
        files = folder.with_name(f"{folder.name}-files")
        files.mkdir()
        hashes = ["xxh64"]
        with streaming.MDSWriter(columns=COLUMNS, out=str(folder), hashes=hashes, size_limit=limit) as writer:
            for sample in samples:
                path = files / f"{sample.key}.jpg"
                path.write_bytes(sample.jpeg)
                with Image.open(path) as image:
                    writer.write({"image": image, "caption": sample.caption, "key": sample.key})

    def open(self, setting: LoaderSetting) -> LoaderStream:
        """A `StreamingDataLoader`."""
        return MosaicStream(setting)

    def shards(self, folder: Path) -> list[Path]:
        """The shards."""
        return sorted(folder.glob("*.mds"))

    def clean(self) -> None:
        """Shared memory of killed processes; its documentation asks for this call."""
        streaming.base.util.clean_stale_shared_memory()


class MosaicStream(LoaderStream):
    """Epochs of a `StreamingDataLoader`."""

    def __init__(self, setting: LoaderSetting) -> None:
        parts = [
            streaming.Stream(
                remote=str(folder), local=str(setting.scratch / folder.name), validate_hash="xxh64", proportion=weight
            )
            for folder, weight in zip(setting.folders, setting.weights, strict=True)
        ]
        dataset = _Views(
            setting.crop,
            streams=parts,
            epoch_size=setting.draws,
            shuffle=True,
            shuffle_seed=setting.seed,
            batch_size=setting.batch,
        )
        self._loader = streaming.StreamingDataLoader(
            dataset, batch_size=setting.batch, num_workers=setting.workers, drop_last=False
        )

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


class _Views(streaming.StreamingDataset):
    """PIL to tensor: whole and uint8, or cropped, as float32."""

    def __init__(self, crop: int | None, **options: Any) -> None:
        super().__init__(**options)
        whole = v2.PILToTensor()
        views = [v2.RandomResizedCrop(crop or 1), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        self._view = whole if crop is None else v2.Compose(views)

    def __getitem__(self, at: Any) -> Any:
        sample = super().__getitem__(at)
        return sample | {"image": self._view(sample["image"].convert("RGB"))}


ADAPTER = Mosaic()
