"""Retrieval at the level of classes: a candidate is right when it is of the query's class, whichever sample it is from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError
from mmssl.core.evaluator import Evaluator, Score
from mmssl.data.modality import Modality
from mmssl.evaluation.common import (
    Collected,
    PairConfig,
    agreed,
    collect_shards,
    inference,
    require_modalities,
    require_usable,
)
from mmssl.evaluation.ranking import exact_products
from mmssl.evaluation.statistics import clustered_bootstrap

_SCORES_AT_ONCE = 2**24


class ClassRetrievalConfig(PairConfig):
    """Configures retrieval at the level of classes.

    Attributes:
        pair: the two modalities; each is searched with the other.
        labels: modality with the number of the class of each sample; samples without one are left out and counted.
        ks: cut-offs of the recalls.
        resamples, seed: bootstrap draws of the intervals, over samples.
    """

    kind: Literal["class_retrieval"] = "class_retrieval"
    labels: str = "label"
    ks: tuple[int, ...] = (1, 5, 10)
    resamples: int = Field(default=2000, ge=100)
    seed: int = 0

    @field_validator("ks")
    @classmethod
    def _positive(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if not ks or min(ks) < 1 or len(set(ks)) < len(ks):
            raise ValueError(f"got the cut-offs {list(ks)}, wanted different numbers from 1 up")
        return ks

    def build(self, modalities: Mapping[str, Modality]) -> ClassRetrieval:
        require_modalities(modalities, (*self.pair, self.labels))
        return ClassRetrieval(self, modalities)


class ClassRetrieval(Evaluator):
    """Looks for items of a query's class in the other modality. Scores: see `class_retrieval_scores`."""

    def __init__(self, config: ClassRetrievalConfig, modalities: Mapping[str, Modality]) -> None:
        self.config = config
        self.modalities = modalities
        a, b = config.pair
        self.headlines = (f"{a}_to_{b}_mAP", f"{b}_to_{a}_mAP")

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        config = self.config
        for name in config.pair:
            model.require(name, shared_space=True)
        with inference(model):
            encode = {name: lambda x, name=name: model.embed(name, x) for name in config.pair}
            data = collect_shards(
                config,
                self.modalities,
                {**encode, config.labels: lambda x: x},
                model.device,
                optional=(*config.pair, config.labels),
                shards=config.shards,
                limit=config.max_samples,
            )
            scores = class_retrieval_scores(
                data, config.pair, config.labels, ks=config.ks, resamples=config.resamples, seed=config.seed
            )
        yield from agreed(scores).items()


def class_retrieval_scores(
    data: Collected,
    pair: tuple[str, str],
    labels: str,
    *,
    ks: tuple[int, ...] = (1, 5, 10),
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Score]:
    """Scores of both directions; every labelled item is a query, and a candidate of the other direction.

    For each direction, e.g. `a_to_b_`:
        mAP: mean over queries of the average precision of the whole ranking (the precision at each right candidate's rank,
            averaged over the right candidates); the query's own partner counts like every other item of its class;
        mAP_chance: its expectation under a random order;  R@k: share of queries with a right candidate among the k best;
        R@1_chance;  R@1_ci95_low, _high: bootstrap over the samples of the queries (candidates are held fixed);
        n_queries (a query of whose class there is no candidate is left out).
    Of the data: n_classes, n_<modality>, n_excluded (samples without a label), n_skipped (could not be decoded).
    Candidates of equal score stand in the order of the data.

    Raises:
        NumericError: an embedding is not finite, or zero.
        DataError: no item has a label, or no class is in both modalities.
    """
    known = dict(zip(data[labels].owner.tolist(), data[labels].rows.tolist(), strict=True))
    scores: dict[str, Score] = {"n_excluded": len(data.keys) - len(known), "n_skipped": data.skipped}
    sides = []
    for name in pair:
        items = data[name]
        require_usable(items.rows, items.owner, data.keys, f"the embedding of {name!r}", unit=True)
        has = torch.isin(items.owner, data[labels].owner)
        owner = items.owner[has]
        classes = torch.tensor([known[i] for i in owner.tolist()], dtype=torch.int64, device=owner.device)
        sides.append((items.rows[has], classes, owner))
        scores[f"n_{name}"] = len(owner)
    shared = torch.isin(torch.unique(sides[0][1]), torch.unique(sides[1][1]))
    if not shared.any():
        raise DataError(
            f"no class has both {pair[0]!r} and {pair[1]!r}: check the evaluator's `shards`, and `labels` ({labels!r})"
        )
    scores["n_classes"] = int(shared.sum())
    for (query, found), (a, b) in ((pair, sides), (pair[::-1], sides[::-1])):
        for name, value in _direction(*a, b[0], b[1], ks, resamples, seed).items():
            scores[f"{query}_to_{found}_{name}"] = value
    return scores


def _direction(
    queries: Tensor,
    wanted: Tensor,
    owner: Tensor,
    candidates: Tensor,
    classes: Tensor,
    ks: tuple[int, ...],
    resamples: int,
    seed: int,
) -> dict[str, Score]:
    can = torch.isin(wanted, classes)
    precision, first = average_precision(queries[can], wanted[can], candidates, classes)
    right = (wanted[can][:, None] == torch.unique(classes)).double() @ torch.bincount(
        torch.unique(classes, return_inverse=True)[1]
    ).double()
    cluster = torch.unique_consecutive(owner[can], return_inverse=True)[1]
    hits = torch.zeros(int(cluster[-1]) + 1, dtype=torch.long, device=first.device)
    hits.index_add_(0, cluster, (first == 1).long())
    low, high = clustered_bootstrap(hits, torch.bincount(cluster), resamples=resamples, seed=seed)
    return {
        "mAP": float(precision.mean()),
        "mAP_chance": float(_chance(right, len(classes)).mean()),
        **{f"R@{k}": int((first <= k).sum()) / len(first) for k in ks},
        "R@1_ci95_low": low,
        "R@1_ci95_high": high,
        "R@1_chance": float(right.mean()) / len(classes),
        "n_queries": len(first),
    }


@torch.no_grad()
def average_precision(queries: Tensor, wanted: Tensor, candidates: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Average precision of each query's ranking, and the rank of its best right candidate.

    The slow form, for one query: sort the candidates by score, descending; at the rank r of the i-th right one precision is
    i / r; average over the right ones.

    Args:
        queries: [Q, E] float32. wanted: [Q] int64, class of each; some candidate has it.
        candidates: [N, E] float32. classes: [N] int64.

    Returns:
        precision [Q] float64, first [Q] int64.
    """
    precision, first = [], []
    rank = torch.arange(1, len(classes) + 1, device=classes.device)
    size = max(1, _SCORES_AT_ONCE // len(classes))
    for rows, own in zip(torch.split(queries, size), torch.split(wanted, size), strict=True):
        with exact_products():
            order = (rows @ candidates.T).sort(dim=1, descending=True, stable=True).indices
        right = classes[order] == own[:, None]
        share = right.cumsum(1).double() / rank
        precision.append((share * right).sum(1) / right.sum(1))
        first.append(right.int().argmax(1) + 1)
    return torch.cat(precision), torch.cat(first)


def _chance(right: Tensor, n: int) -> Tensor:
    """Expected average precision when `right` of n candidates are right and their order is random.

    At rank r, given that it is right, 1 + (r - 1)(R - 1) / (n - 1) right ones are expected up to there; the mean over ranks of
    that over r is (H + (n - H)(R - 1) / (n - 1)) / n, with H the n-th harmonic number.
    """
    harmonic = float((1 / torch.arange(1, n + 1, dtype=torch.double)).sum())
    return (harmonic + (n - harmonic) * (right - 1) / max(1, n - 1)) / n
