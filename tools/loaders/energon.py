"""Energon: tar shards with its index (`energon prepare`), read by `get_train_dataset` and `get_savable_loader`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.energon import (
    CaptioningSample,
    DefaultTaskEncoder,
    SampleDecoder,
    WorkerConfig,
    get_savable_loader,
    get_train_dataset,
)
from megatron.energon.epathlib import EPath
from megatron.energon.flavors.webdataset import BaseWebdatasetFactory
from megatron.energon.tools.checkpoint import command_redist
from torchvision.transforms import v2

from loaders.adapter import CaptionedPicture, Item, LoaderAdapter, LoaderSetting, LoaderStream, digest
from loaders.samples import write_tars

DATASET = """
sample_type: {__module__: megatron.energon, __class__: CaptioningSample}
field_map: {image: jpg, caption: txt}
"""


class Energon(LoaderAdapter):
    """A prepared dataset, or a metadataset that blends two.

    One pass at a time (`repeat=False`): where passes follow each other, the shuffle buffer holds samples of two of them.
    """

    package = "megatron-energon"
    settings = (
        "`get_savable_loader`, one pass (`repeat=False`), `shuffle_buffer_size` and `max_samples_per_sequence` 10, as the data "
        "are few (100 for the speed); mixture: `blend_epochized`; other ranks: after `energon checkpoint redist`"
    )

    def prepare(self, samples: Sequence[CaptionedPicture], folder: Path, per_shard: int) -> None:
        """Tar files, their index, and the type of their samples."""
        names = [path.name for path in write_tars(samples, folder, per_shard)]
        BaseWebdatasetFactory.prepare_dataset(folder, names, split_parts_ratio=[("train", 1.0)], workers=1)
        (folder / ".nv-meta" / "dataset.yaml").write_text(DATASET)

    def open(self, setting: LoaderSetting) -> LoaderStream:
        """A savable loader."""
        return EnergonStream(setting)

    def shards(self, folder: Path) -> list[Path]:
        """The tar files."""
        return sorted(folder.glob("*.tar"))


class EnergonStream(LoaderStream):
    """One pass of a savable loader."""

    def __init__(self, setting: LoaderSetting) -> None:
        self._setting = setting
        buffer = 10 if setting.crop is None else 100
        dataset = get_train_dataset(
            self._metadataset() if len(setting.folders) > 1 else setting.folders[0],
            worker_config=WorkerConfig(
                rank=setting.rank, world_size=setting.world, num_workers=setting.workers, seed_offset=setting.seed
            ),
            batch_size=setting.batch,
            shuffle_buffer_size=buffer,
            max_samples_per_sequence=buffer,
            repeat=False,
            task_encoder=_Views(setting.crop),
        )
        self._loader = get_savable_loader(dataset)

    def _metadataset(self) -> Path:
        """A blend in which an epoch has each sample as often as the weights ask."""
        setting = self._setting
        counts = [json.loads((folder / ".nv-meta" / ".info.json").read_text()) for folder in setting.folders]
        sizes = [sum(count["shard_counts"].values()) for count in counts]
        parts = [
            {"path": str(folder), "repetitions": round(setting.draws * weight / size)}
            for folder, weight, size in zip(setting.folders, setting.weights, sizes, strict=True)
        ]
        path = setting.scratch / f"blend{setting.rank}.yaml"
        content = {
            "__module__": "megatron.energon",
            "__class__": "MetadatasetV2",
            "splits": {"train": {"blend_epochized": parts}},
        }
        path.write_text(json.dumps(content))  # YAML too
        return path

    def batches(self) -> Iterator[Any]:
        """The rest of the pass."""
        return iter(self._loader)

    def items(self, batch: Mapping[str, Any]) -> list[Item]:
        """Key and digest of each row."""
        rows = zip(batch["__key__"], batch["image"], batch["caption"], strict=True)
        return [(key.rpartition("/")[2], digest(*row)) for key, *row in rows]

    def save(self, path: Path) -> None:
        """The state of this process."""
        torch.save(self._loader.save_state_rank(), path)

    def restore(self, paths: Sequence[Path]) -> None:
        """The state of this process; on another number of processes, as the redistributed checkpoint has it."""
        setting = self._setting
        if len(paths) != setting.world:
            folder = setting.scratch / f"redistributed{setting.rank}"
            folder.mkdir()
            command_redist.callback([EPath(path) for path in paths], EPath(folder), setting.world)
            paths = sorted(folder.iterdir())
        state = torch.load(paths[setting.rank], weights_only=False)  # objects of the library, from a file of this run
        self._loader.restore_state_rank(state)


class _Views(DefaultTaskEncoder):
    """PIL to tensor: whole and uint8, or cropped, as float32."""

    decoder = SampleDecoder(image_decode="pilrgb")

    def __init__(self, crop: int | None) -> None:
        super().__init__(raw_batch_type=dict)
        views = [v2.RandomResizedCrop(crop or 1), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        self._view = v2.PILToTensor() if crop is None else v2.Compose(views)

    def encode_sample(self, sample: CaptioningSample) -> CaptioningSample:
        sample.image = self._view(sample.image)
        return sample


ADAPTER = Energon()
