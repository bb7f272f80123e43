"""Quality of a representation without labels: ranks, spread and uniformity of features, alignment and LiDAR of augmented views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from mmssl.core.batch import view_names
from mmssl.core.encoder import EmbeddingModel
from mmssl.core.evaluator import Evaluator, Score
from mmssl.data.modality import Modality
from mmssl.evaluation.collect import Collected, KeptShards
from mmssl.evaluation.common import EvaluatorConfig, broadcast_scores, inference, require_modalities, require_usable
from mmssl.evaluation.geometry import alignment, effective_rank, feature_spread, lidar, rankme, uniformity


class RepresentationConfig(EvaluatorConfig):
    """Settings of measures of a representation's quality that need no labels (RankMe, uniformity, alignment, LiDAR).

    Attributes:
        shards: samples to measure on; RankMe wants many more than the features have dimensions.
        modality: modality whose encoder features (before heads) are measured; samples that lack it are left out and counted.
        views: kind of augmented view -> number of them, at least two in all, as `{crop: 2}`: alignment and LiDAR compare them.
            LiDAR wants 10 or more. Empty: neither is measured.
    """

    kind: Literal["representation"] = "representation"
    modality: str
    views: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)

    @field_validator("views")
    @classmethod
    def _comparable(cls, views: dict[str, int]) -> dict[str, int]:
        if views and sum(views.values()) < 2:
            raise ValueError(f"views: got {views}, wanted at least two views in all: one has nothing to agree with")
        if "eval" in views:
            raise ValueError(
                "views: got the view 'eval', wanted augmented ones: it is always the same, and measured anyway"
            )
        return views

    def build(self, modalities: Mapping[str, Modality]) -> Representation:
        require_modalities(modalities, (self.modality,))
        for kind in self.views:
            modalities[self.modality].view(kind)
        return Representation(self, modalities)


class Representation(Evaluator):
    """Label-free quality of one modality's encoder features. Scores: see `representation_scores`."""

    def __init__(self, config: RepresentationConfig, modalities: Mapping[str, Modality]) -> None:
        self.config = config
        name = config.modality
        self._shards = KeptShards(config, modalities, (name,), config.shards, config.max_samples, {name: config.views})
        self.kept = (self._shards,)
        self.headlines = ("rankme", "spread")

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        modality = self.config.modality
        model.require(modality, shared_space=False)
        views = [f"{modality}/{name}" for kind, n in self.config.views.items() for name in view_names(kind, n)]
        with inference(model, self.config.precision):
            encode = {name: lambda x: model.features(modality, x) for name in (modality, *views)}
            data = self._shards.collect(encode, model.device)
            scores = representation_scores(data, modality, views)
        yield from broadcast_scores(scores).items()


def representation_scores(data: Collected, modality: str, views: list[str]) -> dict[str, Score]:
    """Label-free measures of collected features.

    Of the "eval" view: `rankme`, `effective_rank`, `spread`, `uniformity`, dimensions (D), n (items). Of the augmented views,
    if there are any: `alignment` and `lidar`. Of spread, uniformity and alignment, _ci95_low and _high, over samples. Of the
    data: n_excluded (samples without the modality), n_skipped (not decodable).

    Args:
        data: items named `modality`, and those of the views.
        modality: name of the modality.
        views: names of its augmented views in `data`; each has one row a sample.

    Raises:
        NumericError: a feature is not finite.
    """
    items = data[modality]
    for name in (modality, *views):
        require_usable(data[name].rows, data[name].owner, data.keys, f"the feature vector of {name!r}", unit=False)
    scores: dict[str, Score] = {"rankme": rankme(items.rows), "effective_rank": effective_rank(items.rows)}
    estimates = {
        "spread": feature_spread(items.rows, items.owner),
        "uniformity": uniformity(items.rows, owner=items.owner),
    }
    if views:
        together: Tensor = torch.stack([data[name].rows for name in views], 1)
        estimates["alignment"] = alignment(together)
        scores["lidar"] = lidar(together)
    for name, found in estimates.items():
        whole = (None, None, None) if found is None else found
        scores |= dict(zip((name, f"{name}_ci95_low", f"{name}_ci95_high"), whole, strict=True))
    return scores | {
        "dimensions": items.rows.shape[1],
        "n": len(items.rows),
        "n_excluded": len(data.keys) - len(torch.unique(items.owner)),
        "n_skipped": data.skipped,
    }
