"""The hash of a model: equal ones give equal answers, so that what was measured or fitted of one holds for the other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from mmssl.core.config import Config
from mmssl.core.encoder import EmbeddingModel
from mmssl.recipe.portable import tokenizer_files
from mmssl.recipe.recipe import Recipe

ELSEWHERE = {"weights", "place", "partial", "frozen", "unlocked_layers", "checkpointing", "path"}
"""Settings of encoders that change no answer, or say where the tensors came from, which are hashed themselves."""

FOLDER = "local-dir:"
"""Before the folder of an open_clip_config.json, as open_clip has it; of that folder, the file alone is read."""


def model_digest(recipe: Recipe, model: EmbeddingModel, logit_biases: Mapping[tuple[str, str], float]) -> str:
    """SHA-256 of all that embeddings, features, logits and probabilities depend on.

    It is how inputs are read, the settings of the encoders, all parameters and buffers (those too that no file holds, such as the
    mean and deviation of pictures), and the logit scales and biases. Files and folders that settings name, such as a tokenizer's,
    count by what they hold, wherever they lie.

    Args:
        recipe: of the model.
        model: encoders, heads and logit scales.
        logit_biases: pair of modalities -> bias of its logits.

    Raises:
        OSError: a file that settings name cannot be read.
    """
    settings = {
        "modalities": {name: _settings(config) for name, config in recipe.modalities.items()},
        "encoders": {name: _settings(config, ELSEWHERE) for name, config in recipe.encoders.items()},
        "scales": sorted([*pair, scale] for pair, scale in model.logit_scales.items()),
        "biases": sorted([*pair, bias] for pair, bias in logit_biases.items()),
    }
    found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers()), **model.state_dict()}
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _settings(config: Config, left_out: Collection[str] = ()) -> Any:
    """Settings as JSON has them, without some keys, of nested configs too; paths are replaced by what lies there."""

    def settings(dumped: Any, value: Any) -> Any:
        if isinstance(value, Path):
            return _content(value)
        if isinstance(dumped, str) and dumped.startswith(FOLDER):
            return _content(Path(dumped.removeprefix(FOLDER)) / "open_clip_config.json")
        if isinstance(dumped, dict):
            both = zip(dumped.items(), value.values(), strict=True)
            return {key: settings(one, other) for (key, one), other in both if key not in left_out}
        if isinstance(dumped, list):
            return [settings(one, other) for one, other in zip(dumped, value, strict=True)]
        return dumped

    return settings(config.model_dump(mode="json"), config.model_dump())


def _content(path: Path) -> dict[str, str]:
    """Name below the path -> SHA-256, of a file or of those in a folder; weights beside a tokenizer's files are none of them."""
    data = {path.name: path.read_bytes()} if not path.is_dir() else tokenizer_files(path)
    if not data:
        data = {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    return {name: hashlib.sha256(one).hexdigest() for name, one in data.items()}
