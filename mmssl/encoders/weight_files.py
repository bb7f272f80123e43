"""Read the tensors of checkpoint files of any layout, without running code that a file may hold.

A source is a safetensors file, a file that `torch.save` wrote (`.pt`, `.pth`, `.bin`), or a model folder as hubs have them.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmssl.core.errors import CheckpointError, os_words
from mmssl.encoders.adapters.hubs import local_copy

State = dict[str, Tensor]

logger = logging.getLogger(__name__)

FOLDER_FILES = (
    "open_clip_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Weights files of model folders, the preferred first."""

# Keys under which training programs store the weights in a checkpoint; averaged weights are preferred.
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
_WRAPPERS = (*_AVERAGED, "state_dict", "model_state_dict", "model_state", "model", "module", "shadow", "weights")
# What training programs store beside tensors, and what only holds values: (class or function, its names in pickles).
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    type(np.dtype(np.float64)),
    type(np.dtype(np.float32)),
    type(np.dtype(np.int64)),
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def weights_in(folder: Path) -> Path:
    """The weights file of a model folder.

    Raises:
        CheckpointError: it has none.
    """
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(
        f"got weights {str(folder)!r}, a folder without weights: wanted one of {', '.join(FOLDER_FILES)} in it"
    )


def read_state(path: Path) -> State:
    """Read the tensors of a checkpoint by name, on the CPU.

    Nested layouts are unwrapped (`state_dict`, `model`, ...; averaged weights, `state_dict_ema` and the like, are preferred), and
    so are the names that wrappers add (`module.` of data parallelism, `_orig_mod.` of torch.compile). Optimizers, counters and
    settings beside the tensors are skipped. No code in the file is run.

    Args:
        path: a file, a model folder, or a name of a model in a local cache (see `local_copy`).

    Raises:
        CheckpointError: the file is missing, damaged, or holds something else.
    """
    path = local_copy(path)
    if path.is_dir():
        path = weights_in(path)
    if not path.is_file():
        raise CheckpointError(f"got weights {str(path)!r}, wanted a .safetensors or .pt file: there is no such file")
    if path.suffix == ".json":
        return _read_parts(path)
    content, place = _read(path), []
    while isinstance(content, dict) and (key := _wrapper(content)) is not None:
        content = content[key]
        place.append(key)
    if set(place) & {*_AVERAGED}:
        logger.warning("%s: took the averaged weights, under %r", path, ".".join(place))
    if isinstance(content, dict):
        state = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
        if state:
            return without_wrappers(state)
    raise CheckpointError(
        f"got {_kind(content)} in {str(path)!r}, wanted tensors by name: a state dict, or a dict with one under 'state_dict'"
    )


def without_wrappers(state: Mapping[str, Tensor]) -> State:
    """Remove what DataParallel, DDP, AveragedModel and torch.compile add: parts of names, and the count of an average."""
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items() if name != "n_averaged"}
    while (dotted := [name for name in state if "." in name]) and all(name.startswith("module.") for name in dotted):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def short_list(names: Iterable[str], show: int = 5) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = f", and {len(names) - show} more" if len(names) > show else ""
    return ", ".join(names[:show]) + more


def _read(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            beside = path.with_name("frozen.safetensors")  # of our checkpoints, where most weights are not trained
            frozen = load_file(beside) if path.stem in ("model", "ema") and beside.is_file() else {}
            return {**frozen, **load_file(path)}
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files end in exceptions of a dozen kinds
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if "weights_only" in reason:  # torch advises to run the code in the file
            reason = "torch finds no tensors, or other objects beside tensors"
        if isinstance(error, LookupError):  # whose words are a key or number of the pickle
            reason = "it is damaged, or no file of tensors"
        raise CheckpointError(
            f"cannot read weights from {str(path)!r}: {reason}. Wanted a safetensors file or a saved state dict of tensors only. "
            "Files with program code (whole models, TorchScript archives) are refused; save their state_dict() instead"
        ) from error


def _read_parts(index: Path) -> State:
    """The tensors of a model in several files, which an index lists."""
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"cannot read {str(index)!r}: {os_words(error)}; wanted an index with a weight_map"
        ) from error
    if any(not isinstance(name, str) or Path(name).name != name or name == index.name for name in names):
        raise CheckpointError(f"{str(index)!r} names files outside of its folder, which are not read")
    return {name: tensor for part in names for name, tensor in read_state(index.parent / part).items()}


def _wrapper(content: dict[Any, Any]) -> str | None:
    """The key under which the weights lie; None: here."""
    return next((key for key in _WRAPPERS if isinstance(content.get(key), dict) and _has_tensors(content[key])), None)


def _has_tensors(content: dict[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in content.values()) or _wrapper(content) is not None


def _kind(content: object) -> str:
    return (
        f"a dict with {short_list(map(str, content))}" if isinstance(content, dict) else f"a {type(content).__name__}"
    )
