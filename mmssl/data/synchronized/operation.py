"""What a synchronized operation is, and the registry of its kernels: what it means for each kind of modality.

An operation draws one entry of parameters for a sample, in seconds and fractions of the frame. Every modality has a kernel for
every operation that a recipe names, or a stated reason why its values stay as they are; without either the recipe is refused.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field as Setting

from mmssl.core.config import Config
from mmssl.data.modality import Modality

Probability = Annotated[float, Setting(ge=0, le=1)]
Entry = Mapping[str, Any]
"""What an operation did to a sample, as plain JSON data: "op", "applied", and parameters, or under "skipped" why it did nothing."""
Record = tuple[Entry, ...]
"""What all operations of the recipe did to a sample, in their order."""
Values = Mapping[str, Any]
"""Modality -> decoded value."""

ABSENT = object()
"""What a kernel returns to take its modality out of the sample."""


class Field(NamedTuple):
    """Where a kernel is at work: name of the modality, the modality, and the partner's value where two samples are mixed."""

    name: str
    modality: Modality
    partner: Any = None


class Kernel(NamedTuple):
    """What an operation means for one kind of modality.

    Attributes:
        run: (value, entry, field) -> new value, or ABSENT. A pure function, which leaves `value` as it is.
        doubt: (value, entry, field) -> why this value cannot follow, or None. One such value and the whole sample stays as it is.
        reason: why the values stay as they are; empty where they do not.
    """

    run: Callable[[Any, Entry, Field], Any]
    doubt: Callable[[Any, Entry, Field], str | None] = lambda value, entry, field: None
    reason: str = ""


def identity(reason: str) -> Kernel:
    """Values stay as they are, because of `reason`."""
    return Kernel(lambda value, entry, field: value, reason=reason)


KERNELS: dict[str, dict[type[Modality], Kernel]] = {}
"""Kind of operation -> class of modality -> kernel."""


Check = Callable[[Any, Mapping[str, Modality]], Iterator[str]]
"""(operation, modalities) -> sentences on settings that do not fit the modalities."""
CHECKS: dict[str, Check] = {}


def register(kind: str, kernels: Mapping[type[Modality], Kernel], check: Check | None = None) -> None:
    """Say what an operation means for some classes of modalities.

    Args:
        kind: of the operation. kernels: by class of modality. check: what else is looked at when a recipe is built.

    Raises:
        ValueError: it was said before.
    """
    if check is not None:
        CHECKS[kind] = check
    known = KERNELS.setdefault(kind, {})
    for modality, kernel in kernels.items():
        if known.setdefault(modality, kernel) is not kernel:
            raise ValueError(f"{kind!r} has a kernel for {modality.__name__} already")


class Skip(Exception):
    """An operation that has no meaning for a sample.

    Attributes:
        reason: a short name to count by.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Operation(Config, ABC):
    """A synchronized operation: its settings are all that it is.

    Attributes:
        kind: its name in recipes and records.
        probability: how often a sample has it.
    """

    kind: str
    probability: Probability

    @abstractmethod
    def draw(self, values: Values, modalities: Mapping[str, Modality], rng: np.random.Generator) -> dict[str, Any]:
        """Parameters for a sample: plain numbers, strings, lists and dicts.

        Raises:
            Skip: the operation has no meaning for these values.
        """


def kernel_of(kind: str, modality: Modality) -> Kernel:
    """What the operation means for a modality.

    Raises:
        ValueError: nobody has said.
    """
    kernel = KERNELS.get(kind, {}).get(type(modality))
    if kernel is None:
        raise ValueError(no_kernel(kind, modality))
    return kernel


def no_kernel(kind: str, modality: Modality) -> str:
    """The sentence on a modality that an operation does not know."""
    return (
        f"the synchronized operation {kind!r} has no kernel for modality {modality.name!r} ({type(modality).__name__}): passed "
        "on as it is, its values would no longer belong to the others. Register a kernel, or an identity with its reason "
        "(`mmssl.data.synchronized.operation.register`), or take the operation out of `data.synchronized`"
    )


def transform(
    entry: Entry, values: Values, modalities: Mapping[str, Modality], partner: Values | None = None
) -> dict[str, Any]:
    """The values after one operation.

    Raises:
        ValueError: a modality without a kernel.
    """
    if not entry["applied"]:
        return dict(values)
    made: dict[str, Any] = {}
    for name, value in values.items():
        field = Field(name, modalities[name], None if partner is None else partner.get(name))
        new = kernel_of(entry["op"], modalities[name]).run(value, entry, field)
        if new is not ABSENT:
            made[name] = new
    return made


def doubt(entry: Entry, values: Values, modalities: Mapping[str, Modality]) -> str | None:
    """Why some value cannot follow the operation, or None."""
    for name, value in values.items():
        reason = kernel_of(entry["op"], modalities[name]).doubt(value, entry, Field(name, modalities[name]))
        if reason:
            return reason
    return None
