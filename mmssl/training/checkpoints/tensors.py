"""Read and write safetensors files, and load them into modules, with errors that list missing, unexpected and misshapen tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from mmssl.core.errors import CheckpointError, os_words
from mmssl.training.runtime.sharding import shard_like

_ALIASES = "aliases"
_SHOWN = 8


def dump_tensors(tensors: Mapping[str, Tensor], file: BinaryIO) -> None:
    """Write tensors, also 0-dimensional ones. A tensor with two names is written once; the metadata keep the second name."""
    first: dict[tuple[object, ...], str] = {}
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in first:
            aliases[name] = first[key]
            continue
        first[key] = name
        stored[name] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    # The library writes entries of the metadata in random order: with one, equal tensors are equal files.
    file.write(safetensors.torch.save(stored, {"format": "pt"} | ({_ALIASES: json.dumps(aliases)} if aliases else {})))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read what `dump_tensors` wrote, on the CPU.

    Raises:
        CheckpointError: not a safetensors file, or a damaged one.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            aliases = json.loads((file.metadata() or {}).get(_ALIASES, "{}"))
        return {**tensors, **{name: tensors[target] for name, target in aliases.items()}}
    except (OSError, safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {os_words(error)}") from error


RESUME = "resume with the recipe.yaml of the checkpoint, or start in another run folder"


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], where: Path, advice: str = RESUME) -> None:
    """Load tensors into a module strictly: names and shapes must match; `advice` ends the error message.

    A tensor without elements in the module stays so: in a model that is not trained, a bank of training samples has no rows.

    Raises:
        CheckpointError: lists names that are missing or unexpected, and shapes that differ, with both sides.
    """
    wanted = module.state_dict()
    tensors = {**tensors, **{name: own for name, own in wanted.items() if own.numel() == 0 and name in tensors}}
    missing = [name for name in wanted if name not in tensors]
    unexpected = [name for name in tensors if name not in wanted]
    differing = [
        f"{name} is {list(tensors[name].shape)} in the checkpoint and {list(wanted[name].shape)} in the recipe"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    if missing or unexpected or differing:
        raise CheckpointError(
            f"{where}: tensors do not match this recipe:"
            + _listed("missing in the checkpoint", missing)
            + _listed("unexpected in the checkpoint", unexpected)
            + _listed("of another shape", differing)
            + f"\n  {advice}"
        )
    module.load_state_dict({name: shard_like(tensors[name], own) for name, own in wanted.items()})


def _listed(title: str, entries: list[str]) -> str:
    if not entries:
        return ""
    more = f", and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
    return f"\n  {len(entries)} {title}: {', '.join(entries[:_SHOWN])}{more}"
