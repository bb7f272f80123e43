"""Base class of synchronized operations: settings, and the draw of one record entry of parameters for a sample.

The kernels of each modality (`Modality.kernels`) apply an entry to its values.
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
"""Entries of all operations of the recipe for a sample, in their order."""
Values = Mapping[str, Any]
"""Modality -> decoded value."""


def unapplied(record: Record) -> tuple[str, ...]:
    """Notes on operations that were not applied to a sample, such as "flip not applied: ambiguous_caption"."""
    return tuple(f"{entry['op']} not applied: {entry['skipped']}" for entry in record if "skipped" in entry)


class Skip(Exception):
    """Raised by `draw` if the operation cannot be applied to a sample.

    Attributes:
        reason: a short name to count by.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Operation(Config, ABC):
    """A synchronized operation: a config with a `draw` method.

    Attributes:
        kind: its name in recipes and records.
        probability: probability of the operation for a sample.
    """

    kind: str
    probability: Probability

    @abstractmethod
    def draw(self, values: Values, modalities: Mapping[str, Modality], rng: np.random.Generator) -> dict[str, Any]:
        """Draw parameters for a sample: numbers, strings, lists and dicts.

        Raises:
            Skip: the operation cannot be applied to these values.
        """

    def mistakes(self, modalities: Mapping[str, Modality]) -> Iterator[str]:
        """Error messages for settings that do not fit the modalities."""
        yield from ()


def kernel_of(kind: str, modality: Modality) -> Kernel:
    """The kernel of an operation for a modality.

    Raises:
        ValueError: the modality declares none.
    """
    if kind not in modality.kernels:
        raise ValueError(
            f"the synchronized operation {kind!r} has no kernel for modality {modality.name!r} ({type(modality).__name__}): "
            "unchanged, its values would no longer match the others. Declare a kernel in the `kernels` of the modality, or "
            "`identity` with a reason, or remove the operation from `data.synchronized`"
        )
    return modality.kernels[kind]


def transform(
    entry: Entry, values: Values, modalities: Mapping[str, Modality], partner: Values | None = None
) -> dict[str, Any]:
    """Apply one operation to all values.

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
    """Why the operation cannot be applied to some value, or None."""
    for name, value in values.items():
        reason = kernel_of(entry["op"], modalities[name]).doubt(value, entry, Operand(name, modalities[name]))
        if reason:
            return reason
    return None


def measured(kind: str, values: Values, modalities: Mapping[str, Modality]) -> dict[str, Any]:
    """Measurements of the values by the kernels of an operation; only modalities whose kernel has `measure`."""
    found = {name: kernel_of(kind, modalities[name]).measure(value) for name, value in values.items()}
    return {name: one for name, one in found.items() if one is not None}
