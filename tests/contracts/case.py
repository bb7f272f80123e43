"""A case of the contract of objectives; the test file of an objective lists its own as CASES."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mmssl.core.objective import Reduction
from mmssl.core.plan import Plan

SIZE = 8
"""Samples of a batch."""
FIVE = {"picture": (1, 4, 6)}
"""Absent: 5 of 8 samples have a picture, 3 of the first half and 2 of the second."""


@dataclass(frozen=True)
class Case:
    """A config, its declared reduction, and the terms of a collapsed model on SIZE samples.

    Attributes:
        config: JSON of the objective, of modalities picture, words and sound, see `tests.contracts.toys`.
        reduction: as it must be declared.
        collapsed: term -> value if all samples are alike.
        absent: modality -> numbers of the samples that lack it.
        same_words: numbers of samples with the same tokens.
        updates: number of times that `after_update` gets the collapsed samples before their terms are read, e.g. to fill a queue.
        plan: of a run, for objectives that are refreshed or hold something of each training sample.
    """

    config: str
    reduction: Reduction
    collapsed: Mapping[str, float]
    absent: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    same_words: tuple[int, ...] = ()
    updates: int = 0
    plan: Plan = field(default_factory=Plan.unknown)
