"""Modality gap and alignment of two modalities in a shared space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.evaluator import Evaluator, Score
from mmssl.data.modality import Modality
from mmssl.evaluation.collect import Collected, Items, KeptShards, items_in_both
from mmssl.evaluation.common import (
    PairEvaluatorConfig,
    broadcast_scores,
    inference,
    require_modalities,
    require_usable,
)
from mmssl.evaluation.labelled.knn import nearest_rows
from mmssl.evaluation.statistics import mean_interval
from mmssl.evaluation.tiles import TILE


class ModalityGapConfig(PairEvaluatorConfig):
    """Settings of the modality gap: how far apart two modalities lie in their shared space, and how near the items of a sample.

    Attributes:
        pair: two different modalities of one shared space; samples that lack one of them are left out and counted.
    """

    kind: Literal["modality_gap"] = "modality_gap"

    def build(self, modalities: Mapping[str, Modality]) -> ModalityGap:
        require_modalities(modalities, self.pair)
        return ModalityGap(self, modalities)


class ModalityGap(Evaluator):
    """Modality gap and cross-modal alignment. Scores: see `gap_scores`."""

    headlines = ("gap", "alignment")

    def __init__(self, config: ModalityGapConfig, modalities: Mapping[str, Modality]) -> None:
        self.config = config
        self._shards = KeptShards(config, modalities, config.pair, config.shards, config.max_samples)
        self.kept = (self._shards,)

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        for name in self.config.pair:
            model.require(name, shared_space=True)
        with inference(model, self.config.precision):
            encode = {name: lambda x, name=name: model.embed(name, x) for name in self.config.pair}
            data = self._shards.collect(encode, model.device)
            scores = gap_scores(data, self.config.pair)
        yield from broadcast_scores(scores).items()


def gap_scores(data: Collected, pair: tuple[str, str]) -> dict[str, Score]:
    """Modality gap and alignment of unit-norm embeddings; a sample with several items counts once, by their mean distances.

    gap: distance of the two modalities' means (Liang et al. 2022, arXiv:2203.02053), 0 to 2;  gap_chance: its root mean square
        where the two of each sample are swapped at random, as if they were of one modality;
    alignment: mean squared distance of the two modalities of a sample (Wang and Isola 2020, arXiv:2005.10242), 0 to 4;
        alignment_chance: the same of different samples; None: there is one sample;
    of both, _ci95_low and _high: Student's interval over samples (of the gap: of the distances in its direction);
    for each direction, e.g. `a_to_b_`: hubness@10 and unreached@10, see `hubness`, with chance;
    n; n_excluded (samples without one of the modalities), n_skipped (samples that could not be decoded).

    Raises:
        NumericError: an embedding is not finite, or zero.
        DataError: no sample has both.
    """
    for name in pair:
        require_usable(data[name].rows, data[name].owner, data.keys, f"the embedding of {name!r}", unit=True)
    masks = items_in_both(data, *pair)
    a, b = (_sample_means(data[name], mask) for name, mask in zip(pair, masks, strict=True))
    n = len(a)
    scores: dict[str, Score] = {}
    items = [data[name].rows[mask] for name, mask in zip(pair, masks, strict=True)]
    for (query, found), (queries, candidates) in ((pair, items), (pair[::-1], items[::-1])):
        names = ("hubness@10", "hubness@10_chance", "unreached@10", "unreached@10_chance")
        values = hubness(queries, candidates)
        scores |= {f"{query}_to_{found}_{name}": value for name, value in zip(names, values, strict=True)}
    # Of unit vectors, |x - y|^2 = 2 - 2 x y, which is linear in the items of each sample, and in the samples.
    own, all_pairs = (a * b).sum(1), a.sum(0) @ b.sum(0)
    apart = a - b
    direction = F.normalize(apart.mean(0), dim=0)
    return scores | {
        **_mean("gap", apart @ direction, 2),
        "gap_chance": float(apart.square().sum().sqrt()) / n,
        **_mean("alignment", 2 - 2 * own, 4),
        "alignment_chance": 2 - 2 * float(all_pairs - own.sum()) / (n * (n - 1)) if n > 1 else None,
        "n": n,
        "n_excluded": len(data.keys) - n,
        "n_skipped": data.skipped,
    }


def _mean(name: str, values: Tensor, most: float) -> dict[str, Score]:
    """Mean of values [n] of samples, from 0 to `most`, and its interval if there are two or more."""
    scores: dict[str, Score] = {name: float(values.mean())}
    if len(values) > 1:
        _, low, high, _ = mean_interval(values.tolist())
        scores |= {f"{name}_ci95_low": max(0.0, low), f"{name}_ci95_high": min(float(most), high)}
    return scores


def hubness(queries: Tensor, candidates: Tensor, k: int = 10) -> tuple[float | None, float | None, float, float]:
    """Hubness: skewness of the number of queries that have a candidate among their k nearest (Radovanovic et al. 2010).

    0 or less: all candidates are found alike often; large: a few hubs are found by most queries, and many candidates by none.

    Args:
        queries: [Q, E] unit norm. candidates: [N, E] unit norm.
        k: number of neighbours, at most N.

    Returns:
        skewness (None: all are found equally often), that of random neighbours (None: all candidates are neighbours), the share of
        candidates that no query finds, and that share of random neighbours.
    """
    k = min(k, len(candidates))
    places = nearest_rows(queries, candidates, k, TILE.get(candidates.device.type, TILE["cpu"])[1])[1]
    counts = torch.bincount(places.flatten(), minlength=len(candidates)).double()
    around = counts - counts.mean()
    deviation = around.square().mean().sqrt()
    skewness = float((around**3).mean() / deviation**3) if deviation > 0 else None
    p = k / len(candidates)
    chance = (1 - 2 * p) / (len(queries) * p * (1 - p)) ** 0.5 if p < 1 else None
    return skewness, chance, float((counts == 0).double().mean()), (1 - p) ** len(queries)


def _sample_means(items: Items, mask: Tensor) -> Tensor:
    """Mean of each sample's items, [samples, E] float64, in ascending order of the samples."""
    place, counts = torch.unique(items.owner[mask], return_inverse=True, return_counts=True)[1:]
    sums: Tensor = torch.zeros(len(counts), items.rows.shape[1], dtype=torch.float64, device=items.rows.device)
    sums.index_add_(0, place, items.rows[mask].double())
    return sums.div_(counts[:, None])
