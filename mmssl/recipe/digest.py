"""The hash of a model: equal ones give equal answers, so that what was measured or fitted of one holds for the other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from mmssl.core.encoder import EmbeddingModel
from mmssl.recipe.recipe import Recipe

ELSEWHERE = {"weights", "place", "partial", "frozen", "unlocked_layers", "checkpointing", "path"}
"""Settings of encoders that change no answer, or say where the tensors came from, which are hashed themselves."""


def model_digest(recipe: Recipe, model: EmbeddingModel, logit_biases: Mapping[tuple[str, str], float]) -> str:
    """SHA-256 of all that embeddings, features, logits and probabilities depend on.

    It is how inputs are read, the settings of the encoders, all parameters and buffers (those too that no file holds, such as the
    mean and deviation of pictures), and the logit scales and biases.

    Args:
        recipe: of the model.
        model: encoders, heads and logit scales.
        logit_biases: pair of modalities -> bias of its logits.
    """
    settings = {
        "modalities": {name: config.model_dump(mode="json") for name, config in recipe.modalities.items()},
        "encoders": {name: _without(config.model_dump(mode="json")) for name, config in recipe.encoders.items()},
        "scales": sorted([*pair, scale] for pair, scale in model.logit_scales.items()),
        "biases": sorted([*pair, bias] for pair, bias in logit_biases.items()),
    }
    found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers()), **model.state_dict()}
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _without(settings: Any) -> Any:
    """Settings without the keys `ELSEWHERE`, of nested encoders too."""
    if isinstance(settings, dict):
        return {key: _without(value) for key, value in settings.items() if key not in ELSEWHERE}
    return [_without(value) for value in settings] if isinstance(settings, list) else settings
