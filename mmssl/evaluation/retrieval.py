"""Cross-modal retrieval (R@k) in both directions; a sample may have several items of a modality (captions)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.evaluator import Evaluator, Score, Table
from mmssl.data.modality import Modality
from mmssl.evaluation.collect import Collected, Items, KeptShards, item_numbers, items_in_both
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
from mmssl.evaluation.corrupted import CorruptedShards, Figure
from mmssl.evaluation.curves import mean_area_interval
from mmssl.evaluation.ranking import Ranks, log_sums, pair_ranks
from mmssl.evaluation.repeated_items import duplicate_count, recall_ceiling
from mmssl.evaluation.robustness import RobustConfig
from mmssl.evaluation.statistics import (
    counted_mean,
    counted_median,
    random_misses,
    rank_intervals,
    share_by_cluster,
)
from mmssl.evaluation.texts import sample_texts, shorten_text


class RetrievalConfig(PairEvaluatorConfig, RobustConfig):
    """Settings of cross-modal retrieval (R@k).

    Attributes:
        pair: the two modalities, in both directions: each is query and candidate.
        ks: cut-offs of the recalls; those above the number of candidates are not measured.
        dual_softmax: temperature of scores that are softmaxes over candidates times softmaxes over queries; their recalls are
            reported apart (`R@1_dual_softmax`), because each answer then depends on all other queries. None: not measured.
        resamples: number of bootstrap draws (over samples) for the intervals of recalls and ranks.
        seed: seed of the bootstrap.
    """

    kind: Literal["retrieval"] = "retrieval"
    ks: DistinctCounts = (1, 5, 10)
    dual_softmax: float | None = Field(default=None, gt=0)
    resamples: int = Field(default=2000, ge=100)
    seed: int = 0

    def build(self, modalities: Mapping[str, Modality]) -> Retrieval:
        require_modalities(modalities, self.pair)
        return Retrieval(self, modalities)


class Retrieval(Evaluator):
    """Cross-modal retrieval: the right candidates of an item are those of its sample. Scores: see `retrieval_scores`."""

    def __init__(self, config: RetrievalConfig, modalities: Mapping[str, Modality]) -> None:
        self.config = config
        self.modalities = modalities = config.viewed(modalities, config.pair)
        self._corrupted = CorruptedShards(config, modalities, config.pair, config.pair)
        self.shards = KeptShards(config, modalities, config.pair, config.shards, config.max_samples, hashed=True)
        self.kept = (self.shards,)
        a, b = config.pair
        k = min(config.ks, default=1)
        self.headlines = (f"{a}_to_{b}_R@{k}", f"{b}_to_{a}_R@{k}")

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        config = self.config
        data = self.collect(model)
        with inference(model, self.config.precision):
            scores, tables = retrieval_scores(
                data,
                config.pair,
                ks=config.ks,
                resamples=config.resamples,
                seed=config.seed,
                dual_softmax=config.dual_softmax,
            )
        ways = {f"{a}_to_{b}": (a, b) for a, b in (config.pair, config.pair[::-1])}
        for way, (query, found) in ways.items():
            owner = data[query].owner[items_in_both(data, query, found)[0]].cpu()
            tables[way] = replace(tables[way], texts=partial(self._texts, owner, query, found))
        self.tables = tables

        def figures(shards: KeptShards) -> dict[str, Figure]:
            data = self.collect(model, shards)
            with inference(model):
                found = retrieval_scores(data, config.pair, ks=(1,), resamples=config.resamples, seed=config.seed)
            return _recall_figures(*found)

        # Without R@1 among the cut-offs there is nothing to compare with.
        clean = _recall_figures(scores, self.tables) if 1 in config.ks else {}
        robust, more = self._corrupted.measure(figures, clean, self.shards.inputs)
        self.tables = {**self.tables, **more}
        for a, b in (config.pair, config.pair[::-1]):
            warn_of_ties(f"retrieval {a!r} to {b!r}", float(scores[f"{a}_to_{b}_tie_rate"] or 0))
        warn_of_note("retrieval", scores)
        yield from broadcast_scores(scores | robust).items()

    def _texts(self, owner: Tensor, query: str, found: str) -> dict[str, list[str]]:
        """Columns of the table of one direction, of queries [n] of samples `owner`: of sentences their "text"; where sentences are
        found, the "right_texts" of the query's sample, one a line."""
        items = item_numbers(owner).tolist()
        columns: dict[str, list[str]] = {}
        for name, column in ((query, "text"), (found, "right_texts")):
            if self.modalities[name].language:
                index, share = self.shards.index.open(), self.config.lengths.get(name, 1.0)
                texts = sample_texts(index, name, self.modalities[name], owner.tolist(), share)
                lines = {number: shorten_text("\n".join(some)) for number, some in texts.items()}
                pairs = zip(owner.tolist(), items, strict=True)
                columns[column] = [texts[n][item] if column == "text" else lines[n] for n, item in pairs]
        return columns

    def collect(self, model: EmbeddingModel, shards: KeptShards | None = None) -> Collected:
        """Embed both modalities of all samples, on every process; the report's gallery uses this too.

        Args:
            model: to measure.
            shards: None: those of the settings.
        """
        config = self.config
        model = config.averaged(model)
        for name in config.pair:
            model.require(name, shared_space=True)
        with inference(model, self.config.precision):
            encode = {name: lambda x, name=name: model.embed(name, x) for name in config.pair}
            return (shards or self.shards).collect(encode, model.device)


def retrieval_scores(
    data: Collected,
    pair: tuple[str, str],
    *,
    ks: tuple[int, ...] = (1, 5, 10),
    resamples: int = 2000,
    seed: int = 0,
    dual_softmax: float | None = None,
) -> tuple[dict[str, Score], dict[str, Table]]:
    """R@k, recall@k, mAP@k, MRR and ranks in both directions, facts about the data, and a table of the queries of each direction.

    For each direction, e.g. `a_to_b_`:
        R@k: share of queries with at least one right candidate among the k best (called recall in papers on CLIP);
        recall@k: mean share of a query's right candidates that are among the k best (equal to R@k if there is one);
        mAP@k, of the largest k: mean average precision of the k best, divided by min(k, right candidates);
        MRR: mean of 1 / rank of the best right candidate; mean_rank; median_rank (a half is rounded down, as in open_clip);
        R@k_dual_softmax: see `RetrievalConfig`;
        of all these, _chance: that of random scores;  _ci95_low, _high: over samples, so that the items of one sample count as one
            draw, against the same candidates: of mAP@k and MRR see `mean_area_interval`, of the others by bootstrap;
        R@1_ceiling: R@1 of the best possible model, below 1 if items repeat between samples;
        tie_rate: share of queries whose best right candidate ties with a wrong one;  n_queries.
    Of the data: n (samples with both), n_excluded (samples with one or none: no queries, but candidates), n_skipped (could not be
    decoded), n_<modality> (items), n_duplicate_<modality> (items that another sample has too), bootstrap_seed, and note: which k
    are above the number of candidates; their scores are None.

    Raises:
        NumericError: an embedding is not finite, or zero.
        DataError: no sample has both modalities.
    """
    a, b = (data[name] for name in pair)
    for name in pair:
        require_usable(data[name].rows, data[name].owner, data.keys, f"the embedding of {name!r}", unit=True)
    n = len(torch.unique(a.owner[items_in_both(data, *pair)[0]]))
    scores: dict[str, Score] = {"n": n, "n_excluded": len(data.keys) - n, "n_skipped": data.skipped}
    for name, items in zip(pair, (a, b), strict=True):
        scores[f"n_{name}"] = len(items.owner)
        scores[f"n_duplicate_{name}"] = duplicate_count(items)
    forward, backward = pair_ranks(a.rows, a.owner, b.rows, b.owner, depth=max(ks))
    again = (None, None) if dual_softmax is None else _dual_softmax_ranks(a, b, dual_softmax)
    tables: dict[str, Table] = {}
    for (query, found), ranks, dual, queries, candidates in (
        (pair, forward, again[0], a, b),
        (pair[::-1], backward, again[1], b, a),
    ):
        prefix = f"{query}_to_{found}_"
        within = tuple(k for k in ks if k <= len(candidates.owner))
        tables[prefix[:-1]] = _queries(ranks, queries.owner, candidates.owner, data.keys, ks)
        own = direction_scores(ranks, queries.owner, len(candidates.owner), ks, resamples, seed)
        if dual is not None:
            can = dual.positives > 0
            for k in within:
                figure = share_by_cluster(dual.ranks[can, 0] <= k, queries.owner[can], resamples=resamples, seed=seed)
                names = (f"R@{k}_dual_softmax{part}" for part in ("", "_ci95_low", "_ci95_high"))
                # Both softmaxes treat all candidates alike: random scores stay in random order.
                own |= {**dict(zip(names, figure, strict=True)), f"R@{k}_dual_softmax_chance": own[f"R@{k}_chance"]}
        scores |= {prefix + name: value for name, value in own.items()}
        scores[prefix + "R@1_ceiling"] = recall_ceiling(queries, candidates)
    counts = {f"{pair[0]}_to_{pair[1]}": len(b.owner), f"{pair[1]}_to_{pair[0]}": len(a.owner)}
    note = cut_off_note(counts, ks)
    scores |= {} if note is None else {"note": note}
    return scores | {"bootstrap_seed": seed}, tables


def _queries(ranks: Ranks, owner: Tensor, candidates: Tensor, keys: Mapping[int, str], ks: tuple[int, ...]) -> Table:
    """The queries with a right candidate: key, number of the item in its sample, rank and score of the best right candidate; and
    key, number and score of the candidate of rank 1, which was found first."""
    can = ranks.positives > 0
    found, outcomes = ranks.found[can], query_outcomes(ranks, len(candidates), ks)
    if int(ranks.positives.max()) == 1:  # recall@k equals R@k
        outcomes = {name: values for name, values in outcomes.items() if not name.startswith("recall")}
    whole = [name for name in outcomes if name.startswith("R@")]
    columns: dict[str, Sequence[Score]] = {
        "key": [keys[number] for number in owner[can].tolist()],
        "item": item_numbers(owner)[can].tolist(),
        "rank": ranks.ranks[can, 0].tolist(),
        "score": ranks.best[can].tolist(),
        "found_key": [keys[number] for number in candidates[found].tolist()],
        "found_item": item_numbers(candidates)[found].tolist(),
        "found_score": ranks.found_score[can].tolist(),
        **{name: (values.int() if name in whole else values).tolist() for name, values in outcomes.items()},
    }
    best = ranks.ranks[can, 0].cpu()
    measures = {"mean_rank": partial(counted_mean, best), "median_rank": partial(counted_median, best)}
    return Table(columns, tuple(outcomes), measures=measures)


def query_outcomes(ranks: Ranks, candidates: int, ks: tuple[int, ...]) -> dict[str, Tensor]:
    """R@k, recall@k, mAP@k of the largest k, and MRR of each query that has a right candidate, [n] float64 each.

    Their means are the scores of `retrieval_scores`. Those of k above the number of candidates are left out.
    """
    can, most = ranks.positives > 0, max(ks)
    positives, every = ranks.positives[can], ranks.ranks[can]
    within = [k for k in ks if k <= candidates]
    found = {f"R@{k}": (every[:, 0] <= k).double() for k in within}
    found |= {f"recall@{k}": (every <= k).sum(1).double() / positives for k in within}
    if most <= candidates:
        precision = torch.arange(1, every.shape[1] + 1, device=every.device) / every.double() * (every <= most)
        found[f"mAP@{most}"] = precision.sum(1) / positives.clamp(max=most)
    return found | {"MRR": 1 / every[:, 0].double()}


def _recall_figures(scores: Mapping[str, Score], tables: Mapping[str, Table]) -> dict[str, Figure]:
    """R@1 of each direction, from its table of queries."""
    figures = {}
    for way, table in tables.items():
        outcomes = torch.tensor(table.columns["R@1"], dtype=torch.float64)
        figures[f"{way}_R@1"] = Figure.of(scores, f"{way}_R@1", table.columns["key"], outcomes)
    return figures


def _dual_softmax_ranks(a: Items, b: Items, temperature: float) -> tuple[Ranks, Ranks]:
    """Ranks of both directions by the product of the softmaxes over the rows and over the columns of the scores.

    Its logarithm is 2 s / temperature - the log-sum-exp of the row - that of the column, so that two more dimensions of the
    embeddings make it a product again.
    """
    row, column = log_sums(a.rows, b.rows, temperature)
    half = temperature / 2
    ones = (torch.ones_like(row)[:, None], torch.ones_like(column)[:, None])
    wide_a = torch.cat([a.rows, -half * row[:, None], ones[0]], 1)
    wide_b = torch.cat([b.rows, ones[1], -half * column[:, None]], 1)
    return pair_ranks(wide_a, a.owner, wide_b, b.owner, depth=1)


def direction_scores(
    ranks: Ranks, owner: Tensor, candidates: int, ks: tuple[int, ...], resamples: int, seed: int
) -> dict[str, Score]:
    """Scores of one direction; queries without a right candidate are left out; None of k above the number of candidates. See
    `retrieval_scores`."""
    can, most = ranks.positives > 0, max(ks)
    best, owner, n = ranks.ranks[can, 0], owner[can], int(can.sum())
    outcomes = query_outcomes(ranks, candidates, ks)
    scores: dict[str, Score] = {name: float(values.mean()) for name, values in outcomes.items()}
    for name, values in outcomes.items():
        if name.startswith(("mAP", "MRR")):
            low, high = mean_area_interval(values, owner)
        else:
            _, low, high = share_by_cluster(values, owner, resamples=resamples, seed=seed)
        scores |= {f"{name}_ci95_low": low, f"{name}_ci95_high": high}
    scores |= {"mean_rank": float(best.double().mean()), "median_rank": math.floor(best.double().quantile(0.5))}
    intervals = rank_intervals(best, owner, resamples=resamples, seed=seed)
    for name, (low, high) in zip(("mean_rank", "median_rank"), intervals, strict=True):
        scores |= {f"{name}_ci95_low": low, f"{name}_ci95_high": high}
    chance = random_scores(ranks.positives[can], candidates, ks)
    scores |= {name: value for name, value in chance.items() if name.removesuffix("_chance") in scores}
    scores |= {f"{name}@{k}": None for k in ks if k > candidates for name in ("R", "recall")}
    scores |= {f"mAP@{most}": None} if most > candidates else {}
    return scores | {"tie_rate": int(ranks.tied[can].sum()) / n, "n_queries": n}


def random_scores(positives: Tensor, candidates: int, ks: tuple[int, ...]) -> dict[str, Score]:
    """What a random order of the candidates gives in place of each score, as `<score>_chance`; of the median, that of its ranks.

    Args:
        positives: [n] int64, right candidates of each query.
        candidates: N, of each query.
        ks: cut-offs.
    """
    kinds, counts = torch.unique(positives, return_counts=True)
    share = counts.double() / counts.sum()
    misses = random_misses(kinds, candidates, candidates)  # [N, kinds]
    rank = torch.arange(1, candidates + 1, dtype=torch.float64, device=positives.device)[:, None]
    first = torch.cat([torch.ones_like(misses[:1]), misses[:-1]]) - misses  # the best right candidate has this rank
    # If rank r is right, 1 + (r - 1)(R - 1) / (N - 1) right ones are expected up to it.
    precision = kinds / candidates * (1 + (rank - 1) * (kinds - 1) / max(1, candidates - 1)) / rank
    most = max(ks)
    chance = {
        f"mAP@{most}": precision[:most].sum(0) / kinds.clamp(max=most),
        "MRR": (first / rank).sum(0),
        "mean_rank": (candidates + 1) / (kinds + 1).double(),
    }
    chance |= {f"R@{k}": 1 - misses[min(k, candidates) - 1] for k in ks}
    chance |= {f"recall@{k}": torch.full_like(share, min(1.0, k / candidates)) for k in ks}
    median = 1 + int((((1 - misses) @ share) < 0.5 - 1e-9).sum())  # the first rank that half of the queries reach
    means: dict[str, Score] = {f"{name}_chance": float((values * share).sum()) for name, values in chance.items()}
    return means | {"median_rank_chance": median}
