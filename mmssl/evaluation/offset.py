"""Retrieval when sound and picture are apart in time: a model that was trained on sounds cut anywhere cannot tell moments."""

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
from mmssl.evaluation.ranking import choices, pair_ranks
from mmssl.evaluation.relations import Pieces, RelationConfig, RelationEvaluator
from mmssl.evaluation.statistics import wilson


class OffsetConfig(RelationConfig):
    """Configures retrieval against the offset between two modalities with a time axis.

    Attributes:
        pair: the modality that stays, and the one that is taken from elsewhere in time, as in [video, audio].
        seconds: length of the window of each; as long as the model was trained for.
        offsets: seconds by which the second window begins later; 0 is in sync. Samples that are shorter than `seconds` and the
            largest offset together are excluded, so that all points of the curve are of the same samples.
    """

    kind: Literal["offset"] = "offset"
    seconds: float = Field(gt=0)
    offsets: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)

    @field_validator("offsets")
    @classmethod
    def _rising(cls, offsets: tuple[float, ...]) -> tuple[float, ...]:
        if len(offsets) < 2 or offsets[0] != 0 or list(offsets) != sorted(set(offsets)):
            raise ValueError(f"got the offsets {list(offsets)}, wanted 0 and then larger ones, rising")
        return offsets

    def build(self, modalities: Mapping[str, Modality]) -> Offset:
        require_modalities(modalities, self.pair)
        return Offset(self, modalities)


class Offset(RelationEvaluator):
    """R@1 from the first modality to the second at each offset, among the same samples, and the choice of the true moment.

    Scores: R@1_at_<offset> (R@1 when every candidate is late by so much); in_sync_acc: share of samples whose own candidate without
    offset is nearer than each of its own candidates with one (ties: see `choices`; chance is in_sync_chance), and its Wilson
    interval; tie_rate: share of samples whose own candidate without offset scores exactly like one of its own with an offset; n.
    """

    headlines = ("R@1_at_0", "in_sync_acc")

    def __init__(self, config: OffsetConfig, modalities: Mapping[str, Modality]) -> None:
        moved = config.pair[1]
        remedy = f"{moved!r} is the same at all offsets (silence, or a still picture), or its encoder has collapsed"
        super().__init__(config, modalities, remedy)
        self.seconds, self.offsets = config.seconds, config.offsets

    def pieces(self, sample: EncodedSample) -> Pieces | None:
        extents = sample.extents
        anchor, moved = self.config.pair
        for name in self.config.pair:
            if name not in extents:
                raise RecipeError(f"offset: modality {name!r} has no time axis, and both of the pair need one")
        first = max(extent.start for extent in extents.values())
        room = min(extent.seconds for extent in extents.values()) - first - self.seconds - self.offsets[-1]
        if room < -1e-3:  # containers round their lengths to milliseconds
            return None
        start = first + max(0.0, room) / 2

        def window(name: str, offset: float) -> Tensor:
            windows = {name: (start + offset, self.seconds)}
            return self._views(name, sample.decode(windows, [name]).values[name])

        return {"anchor": window(anchor, 0.0)} | {label(offset): window(moved, offset) for offset in self.offsets}

    def scores(self, embedded: Mapping[str, Tensor]) -> dict[str, Score]:
        anchor = embedded["anchor"]
        n = len(anchor)
        own = torch.arange(n, device=anchor.device)
        scores: dict[str, Score] = {"n": n}
        near = []
        for offset in self.offsets:
            rows = embedded[label(offset)]
            ranks, _ = pair_ranks(anchor, own, rows, own, depth=1)
            scores[f"R@1_at_{offset:g}"] = int((ranks.ranks[:, 0] == 1).sum()) / n
            near.append((anchor * rows).sum(1))
        earned, tied = choices(torch.stack(near, 1))
        low, high = wilson(round(float(earned.sum())), n)
        return scores | {
            "R@1_chance": 1 / n,
            "in_sync_acc": float(earned.mean()),
            "in_sync_acc_ci95_low": low,
            "in_sync_acc_ci95_high": high,
            "in_sync_chance": 1 / len(self.offsets),
            "tie_rate": int(tied.sum()) / n,
        }


def label(offset: float) -> str:
    """Name of the candidates at an offset."""
    return f"{offset:g}"
