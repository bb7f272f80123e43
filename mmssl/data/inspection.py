"""What a modality tells those who pack, audit and measure shards: its file formats, and what one member holds."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Inspection:
    """What one member holds.

    Attributes:
        figures: name -> numbers, of which reports give the spread; several where a member has several items, such as captions.
        counted: name -> what is counted by value, such as {"class": 7}.
        flags: what is counted because it holds, such as "silent".
        items: contents of which reports say where they are there twice, each (how to show it, bytes).
        channels: [..., C], whose mean and standard deviation by channel normalisation needs. Whole numbers count in units of the
            largest that their type holds.
    """

    figures: Mapping[str, Sequence[float]] = field(default_factory=dict)
    counted: Mapping[str, Hashable] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    items: tuple[tuple[str, bytes], ...] = ()
    channels: np.ndarray | None = None


@dataclass(frozen=True)
class FileFormats:
    """Files of a modality that are packed as they are.

    Attributes:
        what: one of them in words, such as "a picture".
        begins: extension -> how such files begin, as a regular expression of their first 64 bytes. Files of one of these formats
            may have the extension of another.
        within: extensions of other modalities' files that hold this modality too, as videos hold sound.
        convertible: extensions of files that are taken only if they are re-encoded.
        columns: usual names of a table's column of such files.
    """

    what: str
    begins: Mapping[str, bytes]
    within: tuple[str, ...] = ()
    convertible: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    @property
    def extensions(self) -> tuple[str, ...]:
        """All extensions of files that hold the modality."""
        return (*self.begins, *self.convertible, *self.within)
