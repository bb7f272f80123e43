"""Where a tensor pretends to lie: a mark of its storage, which views, parameters and saved tensors share.

All values lie in host memory. A storage without a mark is the host's; those that torch's own code makes on the way are anyone's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

HOST, DEVICE, ANY = "cpu", "cuda:0", "any"


def place_of(x: Tensor) -> str:
    """HOST, DEVICE or ANY."""
    return getattr(x.untyped_storage(), "place", HOST) if _has_storage(x) else ANY


def put(x: Tensor, place: str) -> Tensor:
    """Mark the storage of a tensor; returns the tensor."""
    if _has_storage(x):
        x.untyped_storage().place = place  # type: ignore[attr-defined]
    return x


def is_pinned(x: Tensor) -> bool:
    return getattr(x.untyped_storage(), "pinned", False)


def pin(x: Tensor) -> Tensor:
    x.untyped_storage().pinned = True  # type: ignore[attr-defined]
    return x


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among arguments, also those in lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


def _has_storage(x: Tensor) -> bool:
    return x.layout is torch.strided and not x.is_meta
