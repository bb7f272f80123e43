"""kNN classification: training samples with the most similar encoder features vote for the class of a test sample."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmssl.core.errors import DataError
from mmssl.core.evaluator import Score
from mmssl.data.modality import Modality
from mmssl.evaluation.answers import Answers
from mmssl.evaluation.common import DistinctCounts
from mmssl.evaluation.labelled.base import (
    Classifier,
    Classify,
    Labelled,
    LabelledConfig,
    LabelledEvaluator,
    classifier_answers,
    in_shares,
    number_classes,
)
from mmssl.evaluation.ranking import Predictions, ranks_of_classes
from mmssl.evaluation.tiles import TILE, exact_products, pad_rows


class KnnConfig(LabelledConfig):
    """Settings of kNN classification.

    Attributes:
        ks: numbers of neighbours that vote. All scores are of the first; others have an accuracy each, because choosing the best
            of them on test samples would flatter.
        temperature: tau; a neighbour's vote is exp(cosine / tau). DINO: 0.07, with 10, 20, 100 and 200 neighbours.
    """

    kind: Literal["knn"] = "knn"
    ks: DistinctCounts = (20,)
    temperature: float = Field(default=0.07, gt=0)

    def build(self, modalities: Mapping[str, Modality]) -> Knn:
        return Knn(self, modalities)


class Knn(LabelledEvaluator):
    """kNN classification of test samples by training samples, without anything to fit. Scores: see `neighbours`."""

    config: KnnConfig

    def fit(self, train: Labelled) -> Classifier:
        return neighbours(train, self.config.ks, self.config.temperature)


def neighbours(train: Labelled, ks: tuple[int, ...] = (20,), temperature: float = 0.07) -> Classifier:
    """Weighted kNN by training samples; each process classifies its share of the samples.

    Wu et al. 2018 (arXiv:1805.01978), section 3.4, as DINO weighs it: of the k training samples with the largest cosines s, each
    votes exp(s / temperature) for its class. Of equal cosines the earlier training samples count, of equal votes the lower class.

    The answers are those of the first k. It says k, and acc1_k<k> with its interval and chance for each further k.

    Raises:
        DataError: fewer than two classes, or fewer training samples than neighbours.
    """
    classes, numbers = number_classes(train)
    if max(ks) > len(numbers):
        raise DataError(
            f"ks: got {max(ks)} neighbours for {len(numbers)} training samples with a label, wanted at most as many; "
            "lower `ks`, or check `train_shards`"
        )
    bank = F.normalize(train.features, dim=1)

    def classify(test: Labelled) -> tuple[Answers, dict[str, Score]]:
        found: dict[int, Predictions] = {}

        def voted(features: Tensor, wanted: Tensor) -> Predictions:
            return votes(F.normalize(features, dim=1), wanted, bank, numbers, len(classes), ks, temperature)

        def classify_all(features: Tensor, wanted: Tensor) -> Predictions:
            each = in_shares(voted)(features, wanted)
            for i, k in enumerate(ks):
                found[k] = each.each(itemgetter((slice(None), i)))
            return found[ks[0]]

        def classified_with(k: int) -> Classify:
            return lambda features, wanted: found[k]

        answers = classifier_answers(test, classes, classify_all)
        said: dict[str, Score] = {"k": ks[0]}
        for k in ks[1:]:
            further = classifier_answers(test, classes, classified_with(k)).accuracy()
            said |= {f"acc1_k{k}{part}": further[f"acc1{part}"] for part in ("", "_ci95_low", "_ci95_high")}
            said[f"acc1_k{k}_chance"] = further["chance"]
        return answers, said

    return classify


@torch.no_grad()
def votes(
    queries: Tensor,
    wanted: Tensor,
    bank: Tensor,
    numbers: Tensor,
    classes: int,
    ks: tuple[int, ...],
    temperature: float,
) -> Predictions:
    """Predictions of the vote of each query's k nearest rows of the bank, for each k: tensors [Q, number of ks, ...].

    Scores are shares of the votes.

    Args:
        queries: [Q, D] unit norm. wanted: [Q] int64, their classes.
        bank: [N, D] unit norm. numbers: [N] int64, in 0 ... K-1, their classes.
        classes: K.
        ks: numbers of neighbours, at most N.
        temperature: tau of the votes exp(cosine / tau).
    """
    columns = TILE.get(bank.device.type, TILE["cpu"])
    rows = max(1, min(columns[0], 2**24 // classes))  # votes of a tile of queries are a matrix, too
    ranks = torch.empty(len(queries), len(ks), dtype=torch.int64, device=queries.device)
    tied, predicted = torch.empty_like(ranks, dtype=torch.bool), torch.empty_like(ranks)
    shares = torch.empty(*ranks.shape, 2, dtype=torch.float64, device=queries.device)
    for start in range(0, len(queries), rows):
        part = slice(start, start + rows)
        cosines, places = nearest_rows(queries[part], bank, max(ks), columns[1])
        # A common factor of all votes changes no rank and keeps them finite at any temperature.
        weights = ((cosines - cosines[:, :1]).double() / temperature).exp()
        for column, k in enumerate(ks):
            sums = weights.new_zeros(len(weights), classes)
            sums.scatter_add_(1, numbers[places[:, :k]], weights[:, :k])
            one = ranks_of_classes(sums, wanted[part])
            ranks[part, column], tied[part, column], predicted[part, column] = one.ranks, one.tied, one.predicted
            shares[part, column] = one.scores / sums.sum(1, keepdim=True)
    return Predictions(ranks, tied, predicted, shares)


def nearest_rows(queries: Tensor, bank: Tensor, k: int, tile: int) -> tuple[Tensor, Tensor]:
    """The k rows of a bank with the largest products with each query, in memory of `tile` rows at a time.

    Args:
        queries: [Q, D]. bank: [N, D], N >= k.
        k: number of rows.
        tile: rows of the bank compared at a time.

    Returns:
        products [Q, k], descending, and rows [Q, k] int64; of equal products the earlier rows.
    """
    best = queries.new_empty(len(queries), 0)
    places = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(bank), tile):
        with exact_products():
            padded, real = pad_rows(bank[start : start + tile], 64)
            products = (queries @ padded.T)[:, :real]
        values, columns = _largest(products, min(k, real))
        best, places = torch.cat([best, values], 1), torch.cat([places, columns + start], 1)
        # Earlier rows stand first, and a stable sort leaves them there.
        best, order = best.sort(dim=1, descending=True, stable=True)
        best, places = best[:, :k], places.gather(1, order)[:, :k]
    return best, places


def _largest(products: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, descending, and their columns; of equal ones the earlier columns."""
    columns = products.topk(k, dim=1).indices
    # topk takes any of those that equal the k-th: there, and only there, the whole row is sorted.
    least = products.gather(1, columns[:, -1:])
    tied = (products >= least).sum(1) > k
    if tied.any():
        columns[tied] = products[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    columns = columns.sort(dim=1).values
    values, order = products.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)
