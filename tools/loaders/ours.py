"""mmssl: tar shards with sidecars, read through the `data` section of a recipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from loaders.adapter import CaptionedPicture, Item, LoaderAdapter, LoaderSetting, LoaderStream, digest
from loaders.samples import SIDE, write_tars

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmssl.core.batch import Batch
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modalities.text import TextConfig
from mmssl.data.modality import Modality
from mmssl.data.shards.sidecar import write_sidecar
from mmssl.data.stream.config import DataConfig, SourceConfig

NAMES = "abcdefgh"


class Ours(LoaderAdapter):
    """The recipe's `data` section, with the substitution of damaged samples that its README shows."""

    package = "mmssl"
    settings = (
        "`on_error: substitute`, sidecars with checksums, workers by fork; `max_failures` raised, as one shard is 8 %"
    )
    endless = True

    def prepare(self, samples: Sequence[CaptionedPicture], folder: Path, per_shard: int) -> None:
        """Tar files and their sidecars (`mmssl shards index`)."""
        _modalities(SIDE)
        for path in write_tars(samples, folder, per_shard):
            write_sidecar(path)

    def open(self, setting: LoaderSetting) -> LoaderStream:
        """The training stream of a recipe."""
        return OurStream(setting)

    def shards(self, folder: Path) -> list[Path]:
        """The tar files."""
        return sorted(folder.glob("*.tar"))


class OurStream(LoaderStream):
    """A `TrainStream`; rank and world are those of torch.distributed."""

    def __init__(self, setting: LoaderSetting) -> None:
        options: dict[str, Any] = {"workers": setting.workers, "start_method": "fork"}
        options |= {"on_error": "substitute", "max_failures": 0.2}
        if len(setting.folders) == 1:
            config = DataConfig(shards=(str(setting.folders[0]),), **options)
        else:
            sources = {
                name: SourceConfig(shards=(str(folder),), weight=weight)
                for name, folder, weight in zip(NAMES, setting.folders, setting.weights, strict=False)
            }
            config = DataConfig(sources=sources, **options)
        self._view = "crop" if setting.crop else "eval"
        self._stream = config.build(
            _modalities(setting.crop or SIDE),
            {"image": {self._view: 1}, "text": {"tokens": 1}},
            batch_size=setting.batch * setting.world,
            seed=setting.seed,
        )

    def batches(self) -> Iterator[Batch]:
        """Endless batches."""
        return self._stream

    def items(self, batch: Batch) -> list[Item]:
        """Key and digest of each row."""
        pixels, tokens = batch.view("image", f"{self._view}0"), batch.view("text", "tokens0")
        return [(key, digest(*row)) for key, *row in zip(batch.keys, pixels, tokens, strict=True)]

    def state(self) -> dict[str, Any]:
        """The state of the stream."""
        return self._stream.state_dict()

    def load(self, state: Mapping[str, Any]) -> None:
        """Load the state."""
        self._stream.load_state_dict(state)

    def reports(self) -> list[str]:
        """Faults by reason."""
        return [f"{count} x {reason}" for reason, count in self._stream.faults.items()]

    def close(self) -> None:
        """End the workers."""
        self._stream.close()


@cache
def _modalities(size: int) -> dict[str, Modality]:
    """Pictures and captions. The vocabulary, which takes a second, is loaded before the processes are forked."""
    text = TextConfig().build("text")
    tokens, caption = text.views["tokens"], text.decode(b"warm up", "txt")
    tokens(caption, tokens.draw(caption, np.random.default_rng(0)))
    return {"image": ImageConfig(size=size).build("image"), "text": text}


ADAPTER = Ours()
