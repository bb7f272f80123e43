"""Target-modality accuracy: search in one pool of all modalities; is the nearest item of the wanted modality, and of its sample?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.evaluator import Evaluator, Score, Table
from mmssl.data.modality import Modality
from mmssl.evaluation.collect import Collected, Items, KeptShards, items_in_all
from mmssl.evaluation.common import (
    EvaluatorConfig,
    broadcast_scores,
    inference,
    require_modalities,
    require_usable,
    warn_of_choices,
)
from mmssl.evaluation.relations.modality_confusion import require_different
from mmssl.evaluation.statistics import share_by_cluster
from mmssl.evaluation.tiles import TILE, exact_products, pad_rows


class TargetModalityConfig(EvaluatorConfig):
    """Settings of target-modality accuracy: cross-modal retrieval from a pool that holds the items of all modalities.

    Attributes:
        modalities: two or more of one space: each is the query of all others. Samples that lack one are left out and counted.
        resamples: number of bootstrap draws (over samples) for the intervals.
        seed: seed of the bootstrap.
    """

    kind: Literal["target_modality"] = "target_modality"
    modalities: tuple[str, ...] = Field(min_length=2)
    resamples: int = Field(default=2000, ge=100)
    seed: int = 0

    @field_validator("modalities")
    @classmethod
    def _different(cls, modalities: tuple[str, ...]) -> tuple[str, ...]:
        return require_different(modalities)

    def build(self, modalities: Mapping[str, Modality]) -> TargetModality:
        require_modalities(modalities, self.modalities)
        return TargetModality(self, modalities)


class TargetModality(Evaluator):
    """Retrieval from a pool of all modalities. Scores: see `target_scores`."""

    def __init__(self, config: TargetModalityConfig, modalities: Mapping[str, Modality]) -> None:
        self.config = config
        self._shards = KeptShards(config, modalities, config.modalities, config.shards, config.max_samples)
        self.kept = (self._shards,)
        self.headlines = target_headlines(config.modalities)

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        config = self.config
        for name in config.modalities:
            model.require(name, shared_space=True)
        with inference(model, self.config.precision):
            encode = {name: lambda x, name=name: model.embed(name, x) for name in config.modalities}
            data = self._shards.collect(encode, model.device)
            scores, self.tables = target_scores(data, config.modalities, resamples=config.resamples, seed=config.seed)
        for a, b in permutations(config.modalities, 2):
            warn_of_choices(
                f"search of {b!r} by {a!r}", float(scores[f"{a}_to_{b}_tie_rate"] or 0), "the encoders have collapsed"
            )
        yield from broadcast_scores(scores).items()


def target_headlines(modalities: Sequence[str]) -> tuple[str, ...]:
    """Names of the main scores."""
    return tuple(
        f"{query}_to_{target}_{score}"
        for query, target in permutations(modalities, 2)
        for score in ("modality@1", "R@1_mixed", "R@1")
    )


def target_scores(
    data: Collected, modalities: Sequence[str], *, resamples: int = 2000, seed: int = 0
) -> tuple[dict[str, Score], dict[str, Table]]:
    """Retrieval of each modality by each other from one pool of the items of all (as in MMEB-V3, arXiv:2604.23321).

    The pool of a query are the items of all modalities, except those of its own modality in its own sample. Of t items that are
    equally near each is the nearest with 1 / t, so a collapsed model scores chance. For each direction, e.g. `a_to_b_`:
        modality@1: target-modality accuracy, the share of queries whose nearest item in the pool is of b;
        R@1_mixed: share of queries whose nearest item in the pool is one of b and of their sample;
        R@1: the same of a pool of b alone: what is lost against it, the other modalities cost;
        each with _chance (of random scores) and an interval by bootstrap over samples;
        tie_rate: share of queries of which a tie in the pool decides;  n_queries.
    Of each query modality, `a_own_modality@1`: share of queries whose nearest item is of their own modality.
    n (samples with all modalities), n_excluded, n_skipped, bootstrap_seed. Tables: the queries of each direction.

    Args:
        data: unit-norm embeddings of the modalities; a sample may have several items of one.
        modalities: at least two.
        resamples, seed: of the bootstrap.

    Raises:
        NumericError: an embedding is not finite, or zero.
        DataError: no sample has all modalities.
    """
    for name in modalities:
        require_usable(data[name].rows, data[name].owner, data.keys, f"the embedding of {name!r}", unit=True)
    masks = items_in_all(data, modalities)
    pool = {
        name: Items(data[name].rows[mask], data[name].owner[mask]) for name, mask in zip(modalities, masks, strict=True)
    }
    scores: dict[str, Score] = {}
    tables: dict[str, Table] = {}
    for query, queries in pool.items():
        owner = queries.owner
        found = {name: nearest_in(queries, items, own=name == query) for name, items in pool.items()}
        pooled = torch.stack([near.best for near in found.values()]).amax(0)
        ties = torch.stack([near.count * (near.best == pooled) for near in found.values()]).sum(0)
        sizes = {name: near.size.double() for name, near in found.items()}
        everything = torch.stack([*sizes.values()]).sum(0)
        for target, near in found.items():
            there = near.best == pooled
            of_target = (near.count * there).double() / ties
            chance = float((sizes[target] / everything).mean())
            if target == query:
                name = f"{query}_own_modality@1"
                mean, low, high = share_by_cluster(of_target, owner, resamples=resamples, seed=seed)
                scores |= {name: mean, f"{name}_ci95_low": low, f"{name}_ci95_high": high, f"{name}_chance": chance}
                continue
            prefix = f"{query}_to_{target}"
            outcomes = {
                "modality@1": (of_target, chance),
                "R@1_mixed": ((near.right * there).double() / ties, float((near.positives / everything).mean())),
                "R@1": (near.right.double() / near.count, float((near.positives / sizes[target]).mean())),
            }
            for name, (earned, random) in outcomes.items():
                mean, low, high = share_by_cluster(earned, owner, resamples=resamples, seed=seed)
                scores |= {f"{prefix}_{name}": mean, f"{prefix}_{name}_chance": random}
                scores |= {f"{prefix}_{name}_ci95_low": low, f"{prefix}_{name}_ci95_high": high}
            tied = torch.stack([(earned > 0) & (earned < 1) for earned, _ in [*outcomes.values()][:2]]).any(0)
            scores |= {f"{prefix}_tie_rate": int(tied.sum()) / len(owner), f"{prefix}_n_queries": len(owner)}
            tables[prefix] = _queries(owner, data.keys, {name: earned for name, (earned, _) in outcomes.items()})
    n = len(torch.unique(pool[modalities[0]].owner))
    return scores | {
        "n": n, "n_excluded": len(data.keys) - n, "n_skipped": data.skipped, "bootstrap_seed": seed
    }, tables  # fmt: skip


class NearestScores:
    """The nearest of the candidates of one modality to each of Q queries.

    Attributes:
        best: [Q] float32, the largest score; -inf without candidates.
        count: [Q] int64, number of candidates with that score; right: [Q] int64, of those the ones of the query's sample.
        size: [Q] int64, number of candidates; positives: [Q] int64, of those the ones of the query's sample.
    """

    def __init__(self, queries: int, device: torch.device) -> None:
        self.best = torch.full((queries,), -torch.inf, device=device)
        self.count, self.right, self.size, self.positives = torch.zeros(
            4, queries, dtype=torch.int64, device=device
        ).unbind()


@torch.no_grad()
def nearest_in(queries: Items, candidates: Items, *, own: bool) -> NearestScores:
    """Find the best score of each query, and how many candidates have it, from tiles of the score matrix.

    All products have one shape, so that equal embeddings score equally wherever they stand.

    Args:
        queries: rows [Q, E], unit norm. candidates: rows [N, E], unit norm.
        own: leave candidates of the query's sample out: they are of the query's modality.
    """
    found = NearestScores(len(queries.rows), queries.rows.device)
    height, width = TILE.get(queries.rows.device.type, TILE["cpu"])
    a, b = pad_rows(queries.rows, height)[0], pad_rows(candidates.rows, width)[0]
    for top in range(0, len(queries.owner), height):
        rows = slice(top, min(top + height, len(queries.owner)))
        for left in range(0, len(candidates.owner), width):
            columns = slice(left, min(left + width, len(candidates.owner)))
            with exact_products():
                scores = a[top : top + height] @ b[left : left + width].T
            scores = scores[: rows.stop - top, : columns.stop - left]
            same = queries.owner[rows, None] == candidates.owner[None, columns]
            _add_tile(found, rows, scores, same, own=own)
    return found


def _add_tile(found: NearestScores, rows: slice, scores: Tensor, same: Tensor, *, own: bool) -> None:
    """Count the candidates of a tile: those that are better than all before start the count anew."""
    if own:
        scores = scores.masked_fill(same, -torch.inf)
        same, others = torch.zeros_like(same), (~same).sum(1)
    else:
        others = same.new_full((len(same),), same.shape[1], dtype=torch.int64)
    before, best = found.best[rows], torch.maximum(found.best[rows], scores.amax(1))
    kept = (before == best).long()
    equal = (scores == best[:, None]) & (best > -torch.inf)[:, None]
    found.count[rows] = found.count[rows] * kept + equal.sum(1)
    found.right[rows] = found.right[rows] * kept + (equal & same).sum(1)
    found.size[rows] += others
    found.positives[rows] += same.sum(1)
    found.best[rows] = best


def _queries(owner: Tensor, keys: Mapping[int, str], outcomes: Mapping[str, Tensor]) -> Table:
    """The queries of a direction: key, number of the item in its sample, and what each earned."""
    item = torch.arange(len(owner), device=owner.device) - torch.searchsorted(owner, owner)
    columns: dict[str, Sequence[Score]] = {
        "key": [keys[number] for number in owner.tolist()],
        "item": item.tolist(),
        **{name: earned.tolist() for name, earned in outcomes.items()},
    }
    return Table(columns, tuple(outcomes))
