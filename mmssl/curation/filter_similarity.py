"""Choosing samples by the similarity of their pair under a model: the last criterion of `mmssl shards filter`.

The model comes from outside, as a `PairScorer`: this module imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from mmssl.core.errors import RecipeError
from mmssl.core.sample import Fault
from mmssl.curation.filter_choice import Examined, FilterConfig, LeftOut
from mmssl.data.shards.index import Reader, ShardIndex
from mmssl.data.shards.manifests import Formats
from mmssl.data.shards.remote import Remote, RemoteReader

SIMILARITIES = "similarities.jsonl"
QUANTILES = (0, 0.01, 0.05, *(tenth / 10 for tenth in range(1, 10)), 0.95, 0.99, 1)


@dataclass(frozen=True)
class PairScorer:
    """A model that says how similar the two modalities of a sample are.

    Attributes:
        pair: the modalities.
        cosines: (index, N numbers of its samples, ascending) -> cosines [N] float32, NaN where a sample has none, and number ->
            what is wrong with it, of exactly those.
        probabilities: cosines [N] -> calibrated probabilities [N] of a match, rising with them; None: there is no calibration.
        facts: of the model, for the manifest.
    """

    pair: tuple[str, str]
    cosines: Callable[[ShardIndex, Sequence[int]], tuple[np.ndarray, Mapping[int, Fault]]]
    probabilities: Callable[[np.ndarray], np.ndarray] | None
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class PairScores:
    """The scores of n samples that meet all other criteria, in their order.

    Attributes:
        scorer: that made them.
        index, numbers: the samples.
        cosines: [n] float32. probabilities: [n] float32; None: there is no calibration. kept: [n] bool.
        unscored: number -> what is wrong with a sample that has no score.
    """

    scorer: PairScorer
    index: ShardIndex
    numbers: Sequence[int]
    cosines: np.ndarray
    probabilities: np.ndarray | None
    kept: np.ndarray
    unscored: Mapping[int, Fault]

    def facts(self) -> dict[str, Any]:
        """What the manifest says: the model, counts, and quantiles of the scores."""
        return {
            **self.scorer.facts,
            "pair": list(self.scorer.pair),
            "scored": len(self.numbers),
            "unscored": len(self.unscored),
            "kept": int(self.kept.sum()),
            "quantiles": [
                dict(zip(("share", "similarity", "probability"), row, strict=False)) for row in self._quantiles()
            ],
        }

    def rows(self) -> Iterator[tuple[str, str]]:
        """The distribution, as rows of a text table."""
        yield f"similarity of {' and '.join(self.scorer.pair)}", f"of {len(self.numbers):,} samples"
        for share, cosine, *probability in self._quantiles():
            name = "least" if share == 0 else "most" if share == 1 else f"{100 * share:g} % below"
            match = "".join(f", probability {one:.4f}" for one in probability)
            yield f"  {name}", f"{cosine:.4f}{match}"

    def lines(self) -> Iterator[str]:
        """A line of JSON for each sample with a score."""
        for place, number in enumerate(self.numbers):
            match = {} if self.probabilities is None else {"probability": _short(self.probabilities[place])}
            line = {
                "key": self.index.key(number),
                "shard": self.index.origin(number).shard,
                "similarity": _short(self.cosines[place]),
                **match,
                "kept": bool(self.kept[place]),
            }
            yield json.dumps(line, ensure_ascii=False)

    def _quantiles(self) -> list[tuple[float, ...]]:
        """(Share, cosine below which this share lies, and its probability): values that samples have."""
        if not len(self.cosines):
            return []
        columns = [one for one in (self.cosines, self.probabilities) if one is not None]
        found = [map(_short, np.quantile(column, QUANTILES, method="lower")) for column in columns]
        return list(zip(QUANTILES, *found, strict=True))


def check_criteria(config: FilterConfig, scorer: PairScorer | None, *, dry_run: bool) -> None:
    """Refuse criteria without a model, a model without a criterion, and probabilities without a calibration.

    Raises:
        RecipeError: says which.
    """
    given = config.by_similarity()
    if scorer is None and given:
        raise RecipeError(f"got {' and '.join(given)} without a model, wanted one that compares the pairs (--run)")
    if scorer is not None and not given and not dry_run:
        raise RecipeError(
            "got a model (--run) and no criterion, wanted one of --min-similarity, --min-probability and --keep-share; "
            "to see the distribution first, add --dry-run"
        )
    if scorer is not None and config.min_probability is not None and scorer.probabilities is None:
        a, b = scorer.pair
        raise RecipeError(
            f"--min-probability: got a model without a calibration of {a} and {b}: fit one by "
            f"`mmssl evaluate RUN --calibrate SHARDS --pair {a},{b}` (RUN: a run or checkpoint folder), or choose by "
            "--min-similarity"
        )


def score_pairs(
    scorer: PairScorer,
    config: FilterConfig,
    index: ShardIndex,
    verdicts: Sequence[LeftOut | None],
) -> PairScores:
    """Score the samples that meet all other criteria, and choose among them.

    Args:
        scorer, config: how. Without a criterion all that have a score are kept.
        index: of N samples.
        verdicts: [N], why a sample is left out by the other criteria; None: it is not.
    """
    numbers = [number for number, left in enumerate(verdicts) if left is None]
    cosines, unscored = scorer.cosines(index, numbers) if numbers else (np.empty(0, np.float32), {})
    there = ~np.isnan(cosines)
    numbers, cosines = [number for number in numbers if number not in unscored], cosines[there]
    probabilities = None if scorer.probabilities is None else scorer.probabilities(cosines)
    return PairScores(scorer, index, numbers, cosines, probabilities, _kept(config, cosines, probabilities), unscored)


def _kept(config: FilterConfig, cosines: np.ndarray, probabilities: np.ndarray | None) -> np.ndarray:
    """[n] bool. Of a share s the floor of s n, one at least, with the largest cosines; of equal ones the earlier."""
    if config.keep_share is not None and len(cosines):
        count = max(
            1, math.floor(Fraction(str(config.keep_share)) * len(cosines))
        )  # of 0.29, not of the float below it
        kept = np.zeros(len(cosines), bool)
        kept[np.argsort(-cosines, kind="stable")[:count]] = True
        return kept
    if config.min_probability is not None and probabilities is not None:
        return np.asarray(probabilities >= config.min_probability)
    return np.asarray(cosines >= (-np.inf if config.min_similarity is None else config.min_similarity))


def with_scores(verdicts: Sequence[LeftOut | None], scores: PairScores, config: FilterConfig) -> list[LeftOut | None]:
    """The verdicts [N], with those of the scores."""
    found, pair = list(verdicts), ",".join(scores.scorer.pair)
    for number, fault in scores.unscored.items():
        found[number] = LeftOut(fault.key, fault.origin.shard, fault.reason, fault.field, fault.detail)
    values, reason, wanted = scores.cosines, "similarity", f"wanted at least {config.min_similarity}"
    if config.min_probability is not None and scores.probabilities is not None:
        values, reason, wanted = scores.probabilities, "probability", f"wanted at least {config.min_probability}"
    if config.keep_share is not None:
        wanted = f"wanted one of the {int(scores.kept.sum()):,} largest of {len(scores.kept):,}"
    for place in np.flatnonzero(~scores.kept).tolist():
        number = scores.numbers[place]
        key, shard = scores.index.key(number), scores.index.origin(number).shard
        found[number] = LeftOut(key, shard, reason, pair, f"{_short(values[place])}, {wanted}")
    return found


def index_of(examined: Sequence[Examined], formats: Sequence[Formats], remote: Remote | None) -> ShardIndex:
    """Index of the readable samples of examined shards, in their order.

    Args:
        examined: the shards. formats: of the members of each.
        remote: client, if the shards are URLs.
    """
    tables = [one.table for one in examined if one.table is not None]
    places = [one.place for one in examined if one.table is not None]
    forms = [form for one, form in zip(examined, formats, strict=True) if one.table is not None]
    reader: Reader | None = None
    if remote is not None:
        reader = RemoteReader([remote.shard(str(place)) for place in places], tables, remote)
    return ShardIndex(places, tables, reader=reader, formats=forms)


def _short(value: np.float32) -> float:
    """The shortest decimal that is the same float32."""
    return float(str(value))
