"""Where initial weights come from: which tensors a file gave, which were resized, and which keep random values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Start:
    """How the initial tensors of a module (an encoder or an objective) were found in a file.

    Attributes:
        source: path or name of the file or folder.
        exact: names of the module's tensors that were loaded as they are.
        resized: name -> shapes, such as "[50, 768] to [197, 768]".
        fresh: names of tensors that keep their random initial values.
        stored: every name in the file.
        taken: those of them that were used.
    """

    source: str
    exact: tuple[str, ...] = ()
    resized: Mapping[str, str] = field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    stored: frozenset[str] = frozenset()
    taken: frozenset[str] = frozenset()
