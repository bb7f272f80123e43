"""What a synchronized operation does to the values of a modality: the kernels that a modality declares.

An operation draws one entry of parameters for a sample, in seconds and fractions of the frame. Every modality of a recipe has a
kernel for every operation of the recipe, or a stated reason why its values stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mmssl.data.timeline import Window

Entry = Mapping[str, Any]
"""What an operation did to a sample, as plain JSON data: "op", "applied", and parameters, or under "skipped" why it did nothing."""

ABSENT = object()
"""What a kernel returns to take its modality out of the sample."""


class Operand(NamedTuple):
    """Where a kernel is at work.

    Attributes:
        name: of the modality in the recipe.
        modality: the one that declares the kernel, for its settings.
        partner: its value in the other sample, where two are mixed.
    """

    name: str
    modality: Any
    partner: Any = None


class Kernel(NamedTuple):
    """What an operation does to a value.

    Attributes:
        run: (value, entry, field) -> new value, or ABSENT. A pure function, which leaves `value` as it is.
        doubt: (value, entry, field) -> why this value cannot follow, or None. One such value and the whole sample stays as it is.
        measure: value -> what the operation must know of it to draw its parameters; the operation says what that is.
        reason: why the values stay as they are; empty where they do not.
    """

    run: Callable[[Any, Entry, Operand], Any]
    doubt: Callable[[Any, Entry, Operand], str | None] = lambda value, entry, field: None
    measure: Callable[[Any], Any] = lambda value: None
    reason: str = ""


def identity(reason: str) -> Kernel:
    """The kernel that leaves values as they are, because of `reason`."""
    return Kernel(unchanged, reason=reason)


def unchanged(value: Any, entry: Entry, field: Operand) -> Any:
    """The value as it is."""
    return value


def drop(value: Any, entry: Entry, field: Operand) -> Any:
    """Kernel of `dropout` for whatever a sample may lack: ABSENT where the entry names the modality."""
    return ABSENT if field.name in entry["dropped"] else value


def window_of(entry: Entry, name: str) -> Window:
    """Start and length in seconds of the part of a modality that an entry of `time_crop` leaves."""
    return max(0.0, entry["start"] + entry["jitter"].get(name, 0.0)), entry["length"]
