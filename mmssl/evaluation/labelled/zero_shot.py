"""Zero-shot classification with text prompts: the class weights are the mean embeddings of each class' prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.evaluator import Score, Table
from mmssl.data.modality import Modality
from mmssl.evaluation.answers import Answers
from mmssl.evaluation.class_names import compare_with_labels, require_class_numbers
from mmssl.evaluation.collect import Collected, KeptShards, items_in_both
from mmssl.evaluation.common import broadcast_scores, inference, require_modalities, warn_of_ties
from mmssl.evaluation.corrupted import CorruptedShards, Figure
from mmssl.evaluation.curves import area_interval, auroc_influence
from mmssl.evaluation.labelled.base import accuracy_figure
from mmssl.evaluation.labelled.prompted import PromptedEvaluator, single_embeddings
from mmssl.evaluation.labelled.temperature import class_calibration
from mmssl.evaluation.prompts import PromptedConfig
from mmssl.evaluation.ranking import class_ranks
from mmssl.evaluation.robustness import RobustConfig
from mmssl.evaluation.tiles import exact_products


class ZeroShotConfig(PromptedConfig, RobustConfig):
    """Settings of zero-shot classification with text prompts.

    Attributes:
        modality: modality to classify.
        labels: modality with the class number of each sample; samples that lack it, or `modality`, are left out and counted.
        calibration: measure how far the probabilities of classes can be trusted (expected calibration error, likelihood, Brier
            score), before and after a temperature that a random half of the samples chooses; the other half is measured.
    """

    kind: Literal["zero_shot"] = "zero_shot"
    modality: str
    labels: str = "label"
    calibration: bool = False

    def build(self, modalities: Mapping[str, Modality]) -> ZeroShot:
        require_modalities(modalities, (self.modality,))
        return ZeroShot(self, modalities)


class ZeroShot(PromptedEvaluator):
    """Zero-shot classification: the predicted class of a sample is the one with the nearest prompt embedding.

    Scores: see `classification_scores`, and tie_rate (samples whose true class ties with another),
    AUROC (see `macro_auroc`), n_excluded (samples without a label, or without `modality`) and
    n_skipped (samples that could not be decoded); with corruptions, those of `CorruptedShards.measure` (of acc1); with
    calibration, those of `class_calibration`.
    """

    def __init__(self, config: ZeroShotConfig, modalities: Mapping[str, Modality]) -> None:
        viewed = config.viewed(modalities, (config.modality,))
        super().__init__(config, viewed, config.modality, hashed=bool(config.corruptions))
        self.config = config
        self.headlines = ("acc1", "ece", "ece_calibrated") if config.calibration else ("acc1",)
        names = (config.modality, config.labels)
        self._corrupted = CorruptedShards(config, self.modalities, names, (config.modality,))

    def open(self) -> None:
        """Open the shards, and compare `classnames` with the names beside them and with some of their labels."""
        super().open()
        labels = self.modalities[self.config.labels]
        compare_with_labels(self.prompts.names, self._shards.index.open(), labels, self.config.max_samples)

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        config = self.config
        model = config.averaged(model)
        with inference(model, config.precision):
            classifier = self.classifier(model)
            data = self.embedded(model, self._shards)
            scale = model.logit_scale(config.modality, config.prompts)
            answers = zero_shot_answers(data, config.modality, config.labels, classifier, self.prompts.names, scale)
            tied = int(answers.predictions.tied.sum()) / len(answers.labels)
            areas, influences = macro_auroc(data, config.modality, config.labels, classifier)
            trusted: dict[str, Score] = {}
            curves: dict[str, Table] = {}
            if config.calibration:
                labelled, _ = items_in_both(data, config.modality, config.labels)
                rows = data[config.modality].rows[labelled]
                trusted, curves["reliability"] = class_calibration(rows, classifier, answers.labels, scale)

            def figures(shards: KeptShards) -> dict[str, Figure]:
                found = self.embedded(model, shards)
                under = zero_shot_answers(found, config.modality, config.labels, classifier, self.prompts.names)
                return {"acc1": accuracy_figure(under)}

            robust, tables = self._corrupted.measure(figures, {"acc1": accuracy_figure(answers)}, self._shards.inputs)
            own = answers.tables()
            self.tables = {**own, "samples": replace(own["samples"], influences=influences), **curves, **tables}
        warn_of_ties(f"zero-shot of {config.modality!r}", tied)
        counts = {
            "n_excluded": len(data.keys) - len(answers.labels),
            "n_skipped": data.skipped,
            "tie_rate": tied,
            **areas,
            **trusted,
        }
        yield from broadcast_scores(answers.scores() | counts | robust).items()


def zero_shot_answers(
    data: Collected,
    modality: str,
    labels: str,
    classifier: Tensor,
    classnames: Sequence[str],
    scale: float | None = None,
) -> Answers:
    """Zero-shot classes of collected embeddings, with their labels. Scores are cosines.

    Args:
        data: with `modality` and `labels`.
        modality, labels: names.
        classifier: [K, E], class weights.
        classnames: K.
        scale: the model's logit scale, which makes probabilities of cosines; None: it has none.

    Raises:
        NumericError: an embedding is not finite, or zero.
        DataError: a label is no class number, or no sample has both.
    """
    embeddings, _ = single_embeddings(data, modality)
    labelled, has_row = items_in_both(data, modality, labels)
    true, true_owner = data[labels].rows[has_row], data[labels].owner[has_row]
    require_class_numbers(true, true_owner, data.keys, classnames)
    keys = [data.keys[number] for number in true_owner.tolist()]
    predictions = class_ranks(embeddings[labelled], classifier, true, scale)
    return Answers(keys, true, predictions, classnames, len(classnames))


def macro_auroc(
    data: Collected, modality: str, labels: str, classifier: Tensor
) -> tuple[dict[str, Score], dict[str, tuple[float, Tensor]]]:
    """AUROC: mean over classes of the area below the ROC curve of one class against the others, with its interval (DeLong's, of
    the mean, as all classes are of the same samples); None: samples of one class only. And its `Table.influences`."""
    labelled, has_row = items_in_both(data, modality, labels)
    rows, true = data[modality].rows[labelled], data[labels].rows[has_row]
    size = max(1, 2**24 // len(rows))
    areas: list[Tensor] = []
    influence = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for first in range(0, len(classifier), size):
        some = classifier[first : first + size]
        with exact_products():
            scores = some @ rows.T
        right = true == torch.arange(first, first + len(some), device=true.device)[:, None]
        found, owed = auroc_influence(scores, right)
        areas.append(found[~found.isnan()])
        influence += owed[~found.isnan()].sum(0)
    every = torch.cat(areas)
    if not len(every):
        return {"AUROC": None}, {}
    area, counts = float(every.mean()), torch.bincount(true)
    fewest = int(counts[counts > 0].min()) * int((counts > 0).sum())  # of each class at least as many
    influence /= len(every)
    low, high = area_interval(area, influence, torch.arange(len(rows), device=rows.device), fewest)
    figures: dict[str, Score] = {"AUROC": area, "AUROC_ci95_low": low, "AUROC_ci95_high": high, "AUROC_chance": 0.5}
    return figures, {"AUROC": (area, influence.cpu())}
