"""Class-level retrieval (mAP): a candidate is right if it has the query's class, from any sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError
from mmssl.core.evaluator import Evaluator, Score, Table
from mmssl.data.modality import Modality
from mmssl.evaluation.collect import Collected, KeptShards, item_numbers
from mmssl.evaluation.common import (
    DistinctCounts,
    PairEvaluatorConfig,
    broadcast_scores,
    cut_off_note,
    inference,
    require_modalities,
    require_usable,
    warn_of_note,
    warn_of_ties,
)
from mmssl.evaluation.curves import mean_area_interval, tie_bounds
from mmssl.evaluation.statistics import random_average_precision, random_misses, share_by_cluster
from mmssl.evaluation.tiles import exact_products, pad_rows

_SCORES_AT_ONCE = 2**22


class ClassRetrievalConfig(PairEvaluatorConfig):
    """Settings of class-level retrieval between two modalities (mAP, R@k).

    Attributes:
        pair: the two modalities, in both directions: each is query and candidate.
        labels: modality with the class number of each sample; samples without a label, or without both of the pair, are left out
            and counted.
        ks: cut-offs of the recalls; those above the number of candidates are not measured.
        resamples: number of bootstrap draws (over samples) for the intervals.
        seed: seed of the bootstrap.
    """

    kind: Literal["class_retrieval"] = "class_retrieval"
    labels: str = "label"
    ks: DistinctCounts = (1, 5, 10)
    resamples: int = Field(default=2000, ge=100)
    seed: int = 0

    def build(self, modalities: Mapping[str, Modality]) -> ClassRetrieval:
        require_modalities(modalities, (*self.pair, self.labels))
        return ClassRetrieval(self, modalities)


class ClassRetrieval(Evaluator):
    """Class-level retrieval in both directions. Scores: see `class_retrieval_scores`."""

    def __init__(self, config: ClassRetrievalConfig, modalities: Mapping[str, Modality]) -> None:
        self.config = config
        names = (*config.pair, config.labels)
        self._shards = KeptShards(config, modalities, names, config.shards, config.max_samples)
        self.kept = (self._shards,)
        a, b = config.pair
        self.headlines = (f"{a}_to_{b}_mAP", f"{b}_to_{a}_mAP")

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        config = self.config
        for name in config.pair:
            model.require(name, shared_space=True)
        with inference(model, self.config.precision):
            encode = {name: lambda x, name=name: model.embed(name, x) for name in config.pair}
            data = self._shards.collect({**encode, config.labels: lambda x: x}, model.device)
            scores, self.tables = class_retrieval_scores(
                data, config.pair, config.labels, ks=config.ks, resamples=config.resamples, seed=config.seed
            )
        for a, b in (config.pair, config.pair[::-1]):
            warn_of_ties(f"class retrieval {a!r} to {b!r}", float(scores[f"{a}_to_{b}_tie_rate"] or 0))
        warn_of_note("class retrieval", scores)
        yield from broadcast_scores(scores).items()


def class_retrieval_scores(
    data: Collected,
    pair: tuple[str, str],
    labels: str,
    *,
    ks: tuple[int, ...] = (1, 5, 10),
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[dict[str, Score], dict[str, Table]]:
    """mAP and R@k of class-level retrieval in both directions, and a table of the queries of each.

    Each labelled item is a query one way and a candidate the other.

    For each direction, e.g. `a_to_b_`:
        mAP: mean over queries of the average precision of the whole ranking (the precision at each right candidate's rank,
            averaged over the right candidates; candidates of equal score are averaged over all their orders); the item of the
            query's sample counts like every other item of its class;
        R@k: share of queries with a right candidate among the k best;
        of both, _chance: that of a random order;  _ci95_low, _high: over the samples of the queries, of fixed candidates: of R@k by
            bootstrap, of mAP see `mean_area_interval`;
        tie_rate: share of queries whose best right candidate ties with a wrong one;
        n_queries (queries without a candidate of their class are left out).
    Of the data: n (samples with a label and one of the pair), n_classes, n_<modality>, n_excluded (other samples), n_skipped
    (samples that could not be decoded), bootstrap_seed, and note: which k are above the number of candidates, so that their scores
    are None.

    Raises:
        NumericError: an embedding is not finite, or zero.
        DataError: no item has a label, or no class is in both modalities.
    """
    known = dict(zip(data[labels].owner.tolist(), data[labels].rows.tolist(), strict=True))
    scores: dict[str, Score] = {}
    sides = []
    for name in pair:
        items = data[name]
        require_usable(items.rows, items.owner, data.keys, f"the embedding of {name!r}", unit=True)
        has = torch.isin(items.owner, data[labels].owner)
        owner = items.owner[has]
        classes = torch.tensor([known[i] for i in owner.tolist()], dtype=torch.int64, device=owner.device)
        sides.append((items.rows[has], classes, owner))
        scores[f"n_{name}"] = len(owner)
    used = torch.unique(torch.cat([owner for _, _, owner in sides]))
    scores |= {"n": len(used), "n_excluded": len(data.keys) - len(used), "n_skipped": data.skipped}
    shared = torch.isin(torch.unique(sides[0][1]), torch.unique(sides[1][1]))
    if not shared.any():
        raise DataError(
            f"no class has both {pair[0]!r} and {pair[1]!r}: of {len(data.keys)} samples {len(known)} have a label; labelled are "
            f"{len(sides[0][2])} of {pair[0]!r} and {len(sides[1][2])} of {pair[1]!r}; check the evaluator's `shards` and "
            f"`labels` ({labels!r})"
        )
    scores["n_classes"] = int(shared.sum())
    tables: dict[str, Table] = {}
    for (query, found), (a, b) in ((pair, sides), (pair[::-1], sides[::-1])):
        own, tables[f"{query}_to_{found}"] = _direction(*a, b[0], b[1], data.keys, ks, resamples, seed)
        scores |= {f"{query}_to_{found}_{name}": value for name, value in own.items()}
    counts = {f"{pair[0]}_to_{pair[1]}": len(sides[1][1]), f"{pair[1]}_to_{pair[0]}": len(sides[0][1])}
    note = cut_off_note(counts, ks)
    return scores | {"bootstrap_seed": seed} | ({} if note is None else {"note": note}), tables


def _direction(
    queries: Tensor,
    wanted: Tensor,
    owner: Tensor,
    candidates: Tensor,
    classes: Tensor,
    keys: Mapping[int, str],
    ks: tuple[int, ...],
    resamples: int,
    seed: int,
) -> tuple[dict[str, Score], Table]:
    """Scores of one direction, and its queries that have a right candidate: key, number of the item in its sample, class, rank of
    the best right candidate, and average precision."""
    can = torch.isin(wanted, classes)
    precision, first, tied = average_precision(queries[can], wanted[can], candidates, classes)
    right = (wanted[can][:, None] == torch.unique(classes)).double() @ torch.bincount(
        torch.unique(classes, return_inverse=True)[1]
    ).double()
    item = item_numbers(owner)[can].tolist()
    n, owner = len(classes), owner[can]
    within = [k for k in ks if k <= n]
    columns: dict[str, Sequence[Score]] = {
        "key": [keys[number] for number in owner.tolist()],
        "item": item,
        "class": wanted[can].tolist(),
        "rank": first.tolist(),
        "mAP": precision.tolist(),
        **{f"R@{k}": (first <= k).int().tolist() for k in within},
    }
    low, high = mean_area_interval(precision, owner)
    scores: dict[str, Score] = {"mAP": float(precision.mean()), "mAP_ci95_low": low, "mAP_ci95_high": high}
    scores["mAP_chance"] = float(random_average_precision(right, n).mean())
    misses = random_misses(right, n, min(max(ks), n)).mean(1).tolist()
    scores |= {f"R@{k}": None for k in ks if k > n}
    for k in within:
        share, low, high = share_by_cluster(first <= k, owner, resamples=resamples, seed=seed)
        scores |= {f"R@{k}": share, f"R@{k}_ci95_low": low, f"R@{k}_ci95_high": high}
        scores[f"R@{k}_chance"] = 1 - misses[k - 1]
    table = Table(columns, ("mAP", *(f"R@{k}" for k in within)))
    return scores | {"tie_rate": int(tied.sum()) / len(tied), "n_queries": len(first)}, table


@torch.no_grad()
def average_precision(
    queries: Tensor, wanted: Tensor, candidates: Tensor, classes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Average precision of each query's ranking, rank of its best right candidate, and whether a wrong one ties with it.

    The slow form, for one query: sort the candidates by score, descending; at the rank r of the i-th right one precision is
    i / r; average over the right ones. Where right and wrong ones have equal scores, average over all orders of these (McSherry
    and Najork 2008): in the order of data sorted by class, a collapsed model would score above chance.

    Args:
        queries: [Q, E] float32. wanted: [Q] int64, class of each; at least one candidate has it.
        candidates: [N, E] float32. classes: [N] int64.

    Returns:
        precision [Q] float64, first [Q] int64 (equal candidates in the order of the data), tied [Q] bool.
    """
    precision, first, tied = [], [], []
    rank = torch.arange(1, len(classes) + 1, device=classes.device)
    size = max(1, _SCORES_AT_ONCE // len(classes))
    columns, n = pad_rows(candidates, 64)
    for rows, own in zip(torch.split(queries, size), torch.split(wanted, size), strict=True):
        with exact_products():
            scores, order = (rows @ columns.T)[:, :n].sort(dim=1, descending=True, stable=True)
        right = classes[order] == own[:, None]
        share = right.cumsum(1).double() / rank
        found, best = (share * right).sum(1), right.int().argmax(1)
        mixed = ((scores[:, 1:] == scores[:, :-1]) & (right[:, 1:] != right[:, :-1])).any(1)
        tie = torch.zeros_like(mixed)
        if mixed.any():
            found[mixed], among_wrong = _over_orders(scores[mixed], right[mixed])
            tie[mixed] = among_wrong.gather(1, best[mixed, None])[:, 0]
        precision.append(found / right.sum(1))
        first.append(best + 1)
        tied.append(tie)
    return torch.cat(precision), torch.cat(first), torch.cat(tied)


def _over_orders(scores: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Expected sum of precisions at right candidates over all orders of ties, and whether a tie includes a wrong candidate.

    Let t candidates tie, r of them right, after R right ones. Each is equally likely to be the j-th of them; given that the j-th is
    right, 1 + (j - 1)(r - 1) / (t - 1) right ones of the t are expected up to it.

    Args:
        scores: [Q, N], descending. right: [Q, N] bool.

    Returns:
        sum [Q] float64, and mask [Q, N] bool, True at ranks in a tie with a wrong candidate.
    """
    place = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    begin, end = tie_bounds(scores)
    count = right.cumsum(1)
    before = (count - right.long()).gather(1, begin)
    good, size = count.gather(1, end) - before, end - begin + 1
    expected = before + 1 + (place - begin) * (good - 1) / (size - 1).clamp_min(1).double()
    return (good / size.double() * expected / (place + 1)).sum(1), good < size
