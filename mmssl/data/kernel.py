"""Kernels: how a synchronized augmentation transforms the values of one modality. Each modality declares its kernels.

An operation draws one entry of parameters for a sample, in seconds and fractions of the frame. Every modality of a recipe has a
kernel for every operation of the recipe, or a stated reason why its values stay unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mmssl.data.timeline import Window

Entry = Mapping[str, Any]
"""Record of an operation on a sample, as JSON data: "op", "applied", and its parameters, or the reason in "skipped"."""

ABSENT = object()
"""Return value of a kernel that removes its modality from the sample."""


class Operand(NamedTuple):
    """The modality that a kernel transforms, and its partner value.

    Attributes:
        name: of the modality in the recipe.
        modality: the one that declares the kernel, for its settings.
        partner: value of the other sample, if two are mixed.
    """

    name: str
    modality: Any
    partner: Any = None


class Margin(NamedTuple):
    """How strongly a value has a relation that counts from a threshold on.

    Attributes:
        what: the quantity, in words.
        found: its value. wanted: the threshold.
    """

    what: str
    found: float
    wanted: float

    def __str__(self) -> str:
        return f"{self.what} is {self.found:.3g}, wanted at least {self.wanted:g}"


class Kernel(NamedTuple):
    """How an operation transforms the values of a modality.

    Attributes:
        run: (value, entry, field) -> new value, or ABSENT. A pure function that does not change `value`.
        doubt: (value, entry, field) -> why this value cannot be transformed, or None. One such value, and the whole sample is
            left unchanged.
        measure: value -> measurement that the operation needs to draw its parameters; the operation defines it.
        reason: why the values stay unchanged; empty if they change.
        margins: value -> margins of the relations that are measured against a threshold, by name.
    """

    run: Callable[[Any, Entry, Operand], Any]
    doubt: Callable[[Any, Entry, Operand], str | None] = lambda value, entry, field: None
    measure: Callable[[Any], Any] = lambda value: None
    reason: str = ""
    margins: Callable[[Any], Mapping[str, Margin]] = lambda value: {}


def identity(reason: str) -> Kernel:
    """A kernel that leaves values unchanged, and says why in `reason`."""
    return Kernel(unchanged, reason=reason)


def unchanged(value: Any, entry: Entry, field: Operand) -> Any:
    """Return the value unchanged."""
    return value


def drop(value: Any, entry: Entry, field: Operand) -> Any:
    """Kernel of `dropout` for modalities that samples may lack: ABSENT if the entry names the modality."""
    return ABSENT if field.name in entry["dropped"] else value


def window_of(entry: Entry, name: str) -> Window:
    """Start and length in seconds of the window of a modality in an entry of `time_crop`."""
    return max(0.0, entry["start"] + entry["jitter"].get(name, 0.0)), entry["length"]
