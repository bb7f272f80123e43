"""What a modality declares for packing, audits and statistics: its file formats, and the inspection of one member."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Inspection:
    """Contents of one member, for audits and statistics.

    Attributes:
        figures: name -> numbers, whose distribution reports give; several if a member has several items, such as captions.
        counted: name -> value to count, such as {"class": 7}.
        flags: properties to count, such as "silent".
        items: contents to search for duplicates, each (description, bytes).
        channels: [..., C], for the mean and standard deviation of each channel. Integers count in units of the largest value of
            their dtype.
    """

    figures: Mapping[str, Sequence[float]] = field(default_factory=dict)
    counted: Mapping[str, Hashable] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    items: tuple[tuple[str, bytes], ...] = ()
    channels: np.ndarray | None = None


@dataclass(frozen=True)
class FileFormats:
    """File formats of a modality that are packed without re-encoding.

    Attributes:
        what: one such file in words, such as "a picture".
        begins: extension -> regular expression of the first 64 bytes (signature). Files of one of these formats may have the
            extension of another.
        within: extensions of other modalities' files that contain this modality too, as videos contain sound.
        convertible: extensions of files that are accepted only with re-encoding.
        columns: usual names of table columns of such files.
        template: caption of one such file whose class has a name, with {} for the name.
        verify: checks that a file is whole by its header and its end, without decoding; raises DecodeError. None: no check.
    """

    what: str
    begins: Mapping[str, bytes]
    within: tuple[str, ...] = ()
    convertible: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    template: str = "a photo of a {}"
    verify: Callable[[bytes], None] | None = None

    @property
    def extensions(self) -> tuple[str, ...]:
        """All extensions of files that contain the modality."""
        return (*self.begins, *self.convertible, *self.within)
