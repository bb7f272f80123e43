"""A tiny world with known answers: flat pictures of eight colours, captions that name them, labels; and a model that knows them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mmssl.core.config import Config
from mmssl.core.encoder import EmbeddingModel, Encoder, Features
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.modalities.text import TextConfig, TextModality
from mmssl.data.modality import Modality
from mmssl.evaluation.collect import Collected, Items

COLOURS = {
    "black": (0, 0, 0), "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255),
    "yellow": (255, 255, 0), "magenta": (255, 0, 255), "cyan": (0, 255, 255), "white": (255, 255, 255),
}  # fmt: skip
NAMES = tuple(COLOURS)


def configured(kind: type[Any], **values: Any) -> Any:
    """A config as a recipe makes it: through JSON."""
    assert issubclass(kind, Config)
    return kind.model_validate_json(json.dumps(values))


def modalities() -> dict[str, Modality]:
    tokenizer = {"kind": "clip", "context_length": 12}
    return {
        "picture": configured(ImageConfig, size=8).build("picture"),
        "words": configured(TextConfig, captions="lines", tokenizer=tokenizer).build("words"),
        "label": configured(LabelConfig).build("label"),
    }


def png(colour: Sequence[int], seed: int = 0) -> bytes:
    """An 8 x 8 picture of nearly one colour; the seed makes it differ a little from others."""
    noise = torch.randint(0, 4, (8, 8, 3), generator=torch.Generator().manual_seed(seed))
    pixels = (torch.tensor(colour).clamp(4) - noise).byte()
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG")
    return file.getvalue()


def write_shard(path: Path, samples: Iterable[tuple[str, dict[str, bytes]]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, fields in samples:
            for extension, data in fields.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def colour_sample(number: int, captions: int = 2, *, label: bool = True) -> tuple[str, dict[str, bytes]]:
    name = NAMES[number % len(NAMES)]
    lines = [f"a {name} picture", f"{name}", f"something {name}"][:captions]
    fields = {"png": png(COLOURS[name], number), "txt": "\n".join(lines).encode()}
    if label:
        fields["cls"] = str(number % len(NAMES)).encode()
    return f"sample{number:03d}", fields


def colour_shards(folder: Path, n: int) -> list[str]:
    """n samples in two shards; sample i has 1 + i % 3 captions, and every fifth has no label."""
    samples = [colour_sample(i, 1 + i % 3, label=i % 5 != 4) for i in range(n)]
    cut = max(1, n // 3)
    parts = [part for part in (samples[:cut], samples[cut:]) if part]
    return [str(write_shard(folder / f"{i:06d}.tar", part)) for i, part in enumerate(parts)]


class Seer(Encoder):
    """uint8 [B, 3, H, W] -> mean colour, from -1 to 1."""

    width = 3

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def prepare(self, x: Tensor) -> Tensor:
        return x.float() / 127.5 - 1

    def forward(
        self,
        x: Tensor,
        *,
        keep: Tensor | None = None,
        replace: tuple[Tensor, Tensor] | None = None,
        hidden: int = 0,
        pooled_only: bool = False,
    ) -> Features:
        return Features(self.prepare(x).mean((2, 3)) * self.scale)

    def layers(self) -> list[list[nn.Parameter]]:
        return [[self.scale]]


class Reader(Encoder):
    """int64 [B, T] -> the colours of the words that name one, summed."""

    width = 3

    def __init__(self, text: TextModality) -> None:
        super().__init__()
        table = torch.zeros(49408, 3)
        for name, colour in COLOURS.items():
            table[text.tokenize([name])[0, 1]] = torch.tensor(colour) / 127.5 - 1
        self.table = nn.Parameter(table)

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def forward(
        self,
        x: Tensor,
        *,
        keep: Tensor | None = None,
        replace: tuple[Tensor, Tensor] | None = None,
        hidden: int = 0,
        pooled_only: bool = False,
    ) -> Features:
        return Features(self.table[x].sum(1))

    def layers(self) -> list[list[nn.Parameter]]:
        return [[self.table]]


def knowing_model() -> EmbeddingModel:
    text = modalities()["words"]
    assert isinstance(text, TextModality)
    heads = {"picture": nn.Identity(), "words": nn.Identity()}
    return EmbeddingModel({"picture": Seer(), "words": Reader(text)}, heads)


class Formula(Encoder):
    """An encoder that is a formula: raw views [B, ...] -> [B, width], which is its one token, too."""

    capabilities = frozenset({"tokens"})

    def __init__(self, formula: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.formula, self.width, self.one = formula, width, nn.Parameter(torch.ones(()))

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor, **_: Any) -> Features:
        pooled = self.formula(x) * self.one
        return Features(pooled, pooled[:, None])

    def layers(self) -> list[list[nn.Parameter]]:
        return [[self.one]]


def model(width: int, **formulas: Callable[[Tensor], Tensor]) -> EmbeddingModel:
    """A model of formulas by modality, in one space."""
    encoders = {name: Formula(formula, width) for name, formula in formulas.items()}
    return EmbeddingModel(encoders, {name: nn.Identity() for name in encoders})


def items(rows: Tensor, owner: Tensor | None = None, digest: Tensor | None = None) -> Items:
    """Items whose views all differ, one a sample, unless said otherwise."""
    numbers = torch.arange(len(rows))
    return Items(rows, numbers if owner is None else owner, numbers if digest is None else digest)


def collected(n: int, **modality_items: Items) -> Collected:
    return Collected(modality_items, {i: f"key{i}" for i in range(n)})
