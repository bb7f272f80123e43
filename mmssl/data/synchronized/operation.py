"""What a synchronized operation is: its settings, and how it draws one entry of parameters for a sample.

What an entry means for a value, the kernel says that its modality declares (`Modality.kernels`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mmssl.core.config import Config, Probability
from mmssl.data.kernel import ABSENT, Entry, Kernel, Operand
from mmssl.data.modality import Modality

Record = tuple[Entry, ...]
"""What all operations of the recipe did to a sample, in their order."""
Values = Mapping[str, Any]
"""Modality -> decoded value."""


def unapplied(record: Record) -> tuple[str, ...]:
    """Notes on the operations that had no meaning for a sample, such as "flip not applied: ambiguous_caption"."""
    return tuple(f"{entry['op']} not applied: {entry['skipped']}" for entry in record if "skipped" in entry)


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

    def mistakes(self, modalities: Mapping[str, Modality]) -> Iterator[str]:
        """Sentences on settings that do not fit the modalities."""
        yield from ()


def kernel_of(kind: str, modality: Modality) -> Kernel:
    """What an operation does to the values of a modality.

    Raises:
        ValueError: the modality does not say.
    """
    if kind not in modality.kernels:
        raise ValueError(
            f"the synchronized operation {kind!r} has no kernel for modality {modality.name!r} ({type(modality).__name__}): passed "
            "on as it is, its values would no longer belong to the others. Declare a kernel in the `kernels` of the modality, or "
            "`identity` with a reason, or take the operation out of `data.synchronized`"
        )
    return modality.kernels[kind]


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
        field = Operand(name, modalities[name], None if partner is None else partner.get(name))
        new = kernel_of(entry["op"], modalities[name]).run(value, entry, field)
        if new is not ABSENT:
            made[name] = new
    return made


def doubt(entry: Entry, values: Values, modalities: Mapping[str, Modality]) -> str | None:
    """Why some value cannot follow the operation, or None."""
    for name, value in values.items():
        reason = kernel_of(entry["op"], modalities[name]).doubt(value, entry, Operand(name, modalities[name]))
        if reason:
            return reason
    return None


def measured(kind: str, values: Values, modalities: Mapping[str, Modality]) -> dict[str, Any]:
    """What the kernels of an operation measure of the values; modalities whose kernel measures nothing are left out."""
    found = {name: kernel_of(kind, modalities[name]).measure(value) for name, value in values.items()}
    return {name: one for name, one in found.items() if one is not None}
