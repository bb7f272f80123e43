"""Synchronisation test: retrieval with a time offset between two modalities, e.g. audio later than video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from mmssl.core.errors import RecipeError
from mmssl.core.evaluator import Score
from mmssl.data.modality import Modality
from mmssl.data.samples import EncodedSample
from mmssl.evaluation.common import require_modalities
from mmssl.evaluation.ranking import choice_accuracy, pair_ranks
from mmssl.evaluation.relations.base import ANCHOR, Embedded, Pieces, RelationConfig, RelationEvaluator
from mmssl.evaluation.statistics import wilson


class OffsetConfig(RelationConfig):
    """Settings of retrieval with a time offset between two modalities.

    Attributes:
        pair: the modality that stays, and the one that is shifted in time, e.g. [video, audio].
        seconds: length of the window of each modality; use the length of training.
        offsets: seconds by which the second window starts later; 0 is in sync. Samples shorter than `seconds` plus the largest
            offset are excluded, so that all offsets use the same samples.
    """

    kind: Literal["offset"] = "offset"
    seconds: float = Field(gt=0)
    offsets: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)

    @field_validator("offsets")
    @classmethod
    def _rising(cls, offsets: tuple[float, ...]) -> tuple[float, ...]:
        if len(offsets) < 2 or offsets[0] != 0 or list(offsets) != sorted(set(offsets)):
            raise ValueError(f"offsets: got {list(offsets)}, wanted 0 first and then ascending numbers")
        return offsets

    def build(self, modalities: Mapping[str, Modality]) -> Offset:
        require_modalities(modalities, self.pair)
        return Offset(self, modalities)


class Offset(RelationEvaluator):
    """R@1 from the first modality to the second at each time offset, and accuracy of choosing the offset 0.

    Scores: R@1_at_<offset> (R@1 with every candidate late by this offset), with its Wilson interval and chance; in_sync_acc: share
    of samples for which the sample's window without offset is nearer than all of its windows with an offset (ties: see
    `choice_accuracy`; chance is in_sync_chance), with its Wilson interval; tie_rate: share of samples whose window without offset
    ties with one of its windows with an offset; n.
    """

    headlines = ("R@1_at_0", "in_sync_acc")

    def __init__(self, config: OffsetConfig, modalities: Mapping[str, Modality]) -> None:
        moved = config.pair[1]
        remedy = f"{moved!r} is the same at all offsets (silence, or a still image), or its encoder has collapsed"
        super().__init__(config, modalities, remedy)
        self.seconds, self.offsets = config.seconds, config.offsets

    def pieces(self, sample: EncodedSample) -> Pieces | None:
        extents = sample.extents
        anchor, moved = self.config.pair
        for name in self.config.pair:
            if name not in extents:
                raise RecipeError(
                    f"pair: got modality {name!r} without a time axis, wanted two with one for kind offset"
                )
        first = max(extent.start for extent in extents.values())
        room = min(extent.seconds for extent in extents.values()) - first - self.seconds - self.offsets[-1]
        if room < -1e-3:  # containers round their lengths to milliseconds
            return None
        start = first + max(0.0, room) / 2

        def window(name: str, offset: float) -> Tensor:
            windows = {name: (start + offset, self.seconds)}
            return self._views(name, sample.decode(windows, [name]).values[name])

        return {ANCHOR: window(anchor, 0.0)[:1]} | {
            offset_name(offset): window(moved, offset) for offset in self.offsets
        }

    def scores(self, embedded: Embedded) -> dict[str, Score]:
        anchor = embedded.rows[ANCHOR]
        n = len(anchor)
        own = torch.arange(n, device=anchor.device)
        scores: dict[str, Score] = {"n": n}
        for offset in self.offsets:
            rows = embedded.rows[offset_name(offset)]
            ranks, _ = pair_ranks(anchor, own, rows, own, depth=1)
            right, name = int((ranks.ranks[:, 0] == 1).sum()), f"R@1_at_{offset:g}"
            low, high = wilson(right, n)
            scores |= {name: right / n, f"{name}_ci95_low": low, f"{name}_ci95_high": high, f"{name}_chance": 1 / n}
        earned, tied = choice_accuracy(embedded.near(*map(offset_name, self.offsets)))
        low, high = wilson(round(float(earned.sum())), n)
        return scores | {
            "in_sync_acc": float(earned.mean()),
            "in_sync_acc_ci95_low": low,
            "in_sync_acc_ci95_high": high,
            "in_sync_chance": 1 / len(self.offsets),
            "tie_rate": int(tied.sum()) / n,
        }


def offset_name(offset: float) -> str:
    """Name of the candidates at an offset."""
    return f"{offset:g}"
