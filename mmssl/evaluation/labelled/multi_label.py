"""Zero-shot classification of samples that have several classes (mAP, AUROC), with text prompts of the classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError
from mmssl.core.evaluator import Score, Table
from mmssl.core.seeding import generator
from mmssl.data.modality import Modality
from mmssl.evaluation.collect import Collected
from mmssl.evaluation.common import broadcast_scores, inference
from mmssl.evaluation.curves import PrecisionRecall, area_interval, auroc_influence, mean_area_interval
from mmssl.evaluation.labelled.prompted import PromptedEvaluator, single_embeddings
from mmssl.evaluation.prompts import PromptedConfig
from mmssl.evaluation.robustness import ViewedConfig
from mmssl.evaluation.statistics import random_average_precision, shorten
from mmssl.evaluation.tiles import exact_products


class MultiLabelZeroShotConfig(PromptedConfig, ViewedConfig):
    """Settings of zero-shot classification of samples with several classes (VOC, COCO, FSD50K, AudioSet).

    Attributes:
        modality: modality to classify.
        labels: modality of kind multi_label; samples that lack it, or `modality`, are left out and counted.
        resamples: number of bootstrap draws (over samples) for the interval of mAP.
        seed: seed of the bootstrap.
    """

    kind: Literal["multi_label"] = "multi_label"
    modality: str
    labels: str = "multi_label"
    resamples: int = Field(default=200, ge=100)
    seed: int = 0

    def build(self, modalities: Mapping[str, Modality]) -> MultiLabelZeroShot:
        return MultiLabelZeroShot(self, modalities)


class MultiLabelZeroShot(PromptedEvaluator):
    """Ranks samples for each class by their cosine to the class' prompts. Scores: see `multi_label_scores`."""

    headlines = ("mAP",)

    def __init__(self, config: MultiLabelZeroShotConfig, modalities: Mapping[str, Modality]) -> None:
        super().__init__(config, config.viewed(modalities, (config.modality,)), config.modality)
        self.config = config

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        model = self.config.averaged(model)
        with inference(model, self.config.precision):
            classifier = self.classifier(model)
            data = self.embedded(model, self._shards)
            scores, self.tables = multi_label_scores(data, classifier, self.prompts.names, self.config)
        yield from broadcast_scores(scores).items()


def multi_label_scores(
    data: Collected, classifier: Tensor, names: Sequence[str], config: MultiLabelZeroShotConfig
) -> tuple[dict[str, Score], dict[str, Table]]:
    """mAP, AUROC and label ranking of collected embeddings, with tables of samples and classes.

    Scores:
        mAP: mean over classes of the average precision of the samples, sorted by their cosine to the class; over the classes that
            some sample has (`absent_classes` lists the others), as VOC's and AudioSet's;  mAP_chance: mean share of samples;
        mAP_ci95_low, _high: bootstrap over samples;
        AUROC: mean over classes of the area below the ROC curve, with an interval as of `macro_auroc`;
        LRAP: mean over samples with a class of the average precision of their classes (label ranking average precision), with an
            interval over them, see `mean_area_interval`;  LRAP_chance: the mean over all orders of the classes;
        n, classes, n_labels, n_excluded, n_skipped, bootstrap_seed.

    Raises:
        NumericError: an embedding is not finite, or zero.
        DataError: a sample has another number of labels than there are names; no sample has both.
    """
    rows, labels, keys = _samples(data, classifier, names, config)
    with exact_products():
        scores = classifier @ rows.T  # [K, N]
    curves = PrecisionRecall(scores, labels)
    precision, (area, influence) = curves.average_precision(), auroc_influence(scores, labels)
    n, seen = len(keys), labels.any(1)
    if not seen.any():
        raise DataError(f"no sample has a class: all {n} vectors of {config.labels!r} are zero; check the shards")
    draws = generator(config.seed, "multi_label").multinomial(n, np.full(n, 1 / n), size=config.resamples)
    drawn = torch.from_numpy(draws.T.astype(np.float32)).to(rows.device)
    means = curves.resampled(drawn)[seen].nanmean(0)
    low, high = np.nanquantile(means.cpu(), [0.025, 0.975])  # a draw of few samples may have no label at all
    ranked = PrecisionRecall(scores.T, labels.T).average_precision()
    macro, influences = _macro_area(area, influence, labels)
    absent = [name for name, there in zip(names, seen.tolist(), strict=True) if not there]
    found: dict[str, Score] = {
        "mAP": float(precision[seen].mean()),
        "mAP_ci95_low": float(low),
        "mAP_ci95_high": float(high),
        "mAP_chance": float(labels[seen].double().mean()),
        **macro,
        **_label_ranking(ranked, labels),
        "absent_classes": shorten(absent) or None,
        "classes": len(names),
        "n_labels": int(labels.sum()),
        "n": n,
        "n_excluded": len(data.keys) - n,
        "n_skipped": data.skipped,
        "bootstrap_seed": config.seed,
    }
    tables = _tables(keys, names, scores, labels, ranked, precision, area)
    measures = {"mAP": lambda counts: curves.resampled(counts.to(rows.device))[seen].nanmean(0)}
    return found, tables | {"samples": replace(tables["samples"], measures=measures, influences=influences)}


def _macro_area(
    area: Tensor, influence: Tensor, labels: Tensor
) -> tuple[dict[str, Score], dict[str, tuple[float, Tensor]]]:
    """Mean over classes of the area below the ROC curve, with its interval; None: every class has all samples, or none. And its
    `Table.influences`."""
    both = ~area.isnan()
    if not both.any():
        return {"AUROC": None}, {}
    mean, n = float(area[both].mean()), labels.shape[1]
    right = labels[both].sum(1)
    fewest = min(n, int(torch.minimum(right, n - right).min()) * int(both.sum()))  # of each class at least as many
    owner = torch.arange(n, device=area.device)
    of_mean = influence[both].mean(0)
    low, high = area_interval(mean, of_mean, owner, fewest)
    scores: dict[str, Score] = {"AUROC": mean, "AUROC_ci95_low": low, "AUROC_ci95_high": high, "AUROC_chance": 0.5}
    return scores, {"AUROC": (mean, of_mean.cpu())}


def _label_ranking(ranked: Tensor, labels: Tensor) -> dict[str, Score]:
    """Mean over the samples with a class of `ranked`, their average precision, with interval and chance."""
    has = labels.any(0)
    low, high = mean_area_interval(ranked[has], torch.arange(int(has.sum()), device=ranked.device))
    chance = random_average_precision(labels.sum(0)[has], len(labels))
    return {
        "LRAP": float(ranked[has].mean()),
        "LRAP_ci95_low": low,
        "LRAP_ci95_high": high,
        "LRAP_chance": float(chance.mean()),
    }


def _samples(
    data: Collected, classifier: Tensor, names: Sequence[str], config: MultiLabelZeroShotConfig
) -> tuple[Tensor, Tensor, list[str]]:
    """Embeddings [N, E], labels [K, N] bool and keys of the samples with both."""
    embeddings, owner = single_embeddings(data, config.modality)
    with_labels, counts = torch.unique_consecutive(data[config.labels].owner, return_counts=True)
    other = counts != len(names)
    if other.any():
        first = int(with_labels[other][0])
        raise DataError(
            f"key {data.keys[first]!r} has {int(counts[other][0])} entries in {config.labels!r}, wanted {len(names)}, one for each "
            "class name: check `classnames`"
        )
    labels = data[config.labels].rows.view(len(with_labels), len(names)).bool()
    has, also = torch.isin(owner, with_labels), torch.isin(with_labels, owner)
    if not has.any():
        raise DataError(
            f"no sample has both {config.modality!r} and {config.labels!r}: of {len(data.keys)}, {len(owner)} and "
            f"{len(with_labels)} have them; check the evaluator's `shards`"
        )
    return embeddings[has], labels[also].T, [data.keys[number] for number in owner[has].tolist()]


def _tables(
    keys: Sequence[str],
    names: Sequence[str],
    scores: Tensor,
    labels: Tensor,
    ranked: Tensor,
    precision: Tensor,
    area: Tensor,
) -> dict[str, Table]:
    """Tables "samples", with "scores" (cosines) and "labels" of all classes in the order of the other table, and "classes"."""
    held = [[names[k] for k in row.nonzero()[:, 0].tolist()] for row in labels.T.cpu()]
    samples: dict[str, list[Score]] = {
        "key": [*keys],
        "classes": [", ".join(some) for some in held],
        "LRAP": _defined(ranked),
    }
    classes: dict[str, list[Score]] = {
        "class": [*names],
        "n": labels.sum(1).tolist(),
        "AP": _defined(precision),
        "AUROC": _defined(area),
    }
    vectors = {"scores": scores.T.float().cpu(), "labels": labels.T.cpu()}
    return {"samples": Table(samples, ("LRAP",), vectors=vectors), "classes": Table(classes)}


def _defined(values: Tensor) -> list[Score]:
    return [None if value != value else value for value in values.tolist()]
