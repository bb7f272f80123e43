"""Left-right test: does a model distinguish a sample from its mirror image? Training with image-only flips prevents it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from mmssl.core.errors import RecipeError
from mmssl.core.evaluator import Score
from mmssl.data.modality import Modality
from mmssl.data.samples import EncodedSample
from mmssl.data.synchronized.negatives import Negative, Relation
from mmssl.data.synchronized.operation import Skip, transform
from mmssl.evaluation.common import require_modalities
from mmssl.evaluation.ranking import choice_accuracy
from mmssl.evaluation.relations.base import ANCHOR, Embedded, Pieces, RelationConfig, RelationEvaluator
from mmssl.evaluation.statistics import wilson

REMEDIES: Mapping[Relation, str] = {
    "channels": (
        "its front-end averages the channels; train with `channel: level_difference` (or `both`) in the front-end "
        "of the encoder of {!r}"
    ),
    "caption": "the words are cut off (`context_length` of {!r}), or the encoder has collapsed",
}
"""Relation that is broken to exchange left and right -> advice for the warning of ties."""


class SidesConfig(RelationConfig):
    """Settings of the left-right test: the choice between a sample and its mirror image.

    Attributes:
        pair: the unchanged modality, and the one whose left and right are exchanged: the channels of stereo sound, or the words in
            captions; e.g. [image, audio] or [video, text]. Samples without a side are excluded: no such words, or channels whose
            difference has under a tenth of the power of both.
    """

    kind: Literal["sides"] = "sides"

    def build(self, modalities: Mapping[str, Modality]) -> Sides:
        require_modalities(modalities, self.pair)
        if not modalities[self.pair[1]].relations & REMEDIES.keys():
            raise RecipeError(
                f"pair: got {list(self.pair)} for kind sides, wanted captions or stereo sound (`channels: stereo` or `keep`) as "
                f"the second, and {self.pair[1]!r} has no left and right to exchange"
            )
        return Sides(self, modalities)


class Sides(RelationEvaluator):
    """Left-right accuracy: share of samples whose first modality is nearer to the original second one than to its mirrored version.

    Scores: acc (a tie counts 1/2; chance is 0.5), its Wilson interval, tie_rate, n (of captions, if a sample has several).
    """

    headlines = ("acc",)

    def __init__(self, config: SidesConfig, modalities: Mapping[str, Modality]) -> None:
        changed = config.pair[1]
        relation, remedy = next(item for item in REMEDIES.items() if item[0] in modalities[changed].relations)
        super().__init__(config, modalities, remedy.format(changed))
        self.negative = Negative(probability=1.0, relations=(relation,))

    def pieces(self, sample: EncodedSample) -> Pieces | None:
        values = sample.decode().values
        try:
            entry = self.negative.draw(values, self.modalities, np.random.default_rng(0))
        except Skip:
            self._measure(values)
            return None
        mirrored = transform({"op": "negative", "applied": True, **entry}, values, self.modalities)
        anchor, changed = self.config.pair
        true, false = (self._views(changed, some[changed]) for some in (values, mirrored))
        return {
            ANCHOR: self._views(anchor, values[anchor])[:1],
            "true": true,
            "false": false,
        }

    def _measure(self, values: Mapping[str, Any]) -> None:
        changed = self.config.pair[1]
        margins = self.modalities[changed].kernels[self.negative.kind].margins(values[changed])
        margin = next((margins[name] for name in self.negative.relations if name in margins), None)
        if margin is not None and (self.nearest is None or margin.found > self.nearest.found):
            self.nearest = margin

    def scores(self, embedded: Embedded) -> dict[str, Score]:
        earned, tied = choice_accuracy(embedded.near("true", "false"))
        n = len(earned)
        low, high = wilson(round(float(earned.sum())), n)
        return {
            "acc": float(earned.mean()),
            "acc_ci95_low": low,
            "acc_ci95_high": high,
            "chance": 0.5,
            "tie_rate": int(tied.sum()) / n,
            "n": n,
        }
