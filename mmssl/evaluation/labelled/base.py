"""What evaluators with labels share: features of training and test samples, and classifiers of them."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mmssl.core import distributed
from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError
from mmssl.core.evaluator import Evaluator, Score
from mmssl.core.seeding import generator
from mmssl.data.modality import Modality
from mmssl.evaluation.answers import Answers
from mmssl.evaluation.class_names import compare_with_stored, one_for_all, stored_class_names
from mmssl.evaluation.collect import Collected, Encode, KeptShards, items_in_both
from mmssl.evaluation.common import (
    broadcast_scores,
    inference,
    require_modalities,
    require_usable,
)
from mmssl.evaluation.corrupted import CorruptedShards, Figure
from mmssl.evaluation.ranking import Predictions
from mmssl.evaluation.robustness import RobustConfig

ScaleKind = Literal["standard", "unit", "none"]
WARMUP = 0.1
"""Share of the steps in which the rate of a training rises to its peak; then it falls to 0 along a cosine."""


class LabelledConfig(RobustConfig, ABC):
    """Settings of every evaluator that classifies the features of test samples by those of training samples.

    Attributes:
        shards: test shards; no setting is chosen on them.
        train_shards: training shards of the classifier.
        modality: modality to classify.
        labels: modality with the class number; samples that lack it, or `modality`, are left out and counted.
        max_train_samples: number of training samples, the first ones; None: all.
    """

    train_shards: tuple[str, ...] = Field(min_length=1)
    modality: str
    labels: str = "label"
    max_train_samples: int | None = Field(default=None, ge=2)


@dataclass(frozen=True)
class Labelled:
    """Features [n, D] float32, labels [n] int64 and keys of samples with both; how many were `excluded` or `skipped` (damaged).

    `names` are those of all class numbers, where the shards have them.
    """

    features: Tensor
    labels: Tensor
    excluded: int = 0
    skipped: int = 0
    keys: Sequence[str] = ()
    names: Sequence[str] = ()


class LabelledShards:
    """The training and test shards of an evaluator, kept open between its runs.

    Attributes:
        test: those with the test samples.
    """

    def __init__(self, config: LabelledConfig, modalities: Mapping[str, Modality]) -> None:
        self.config = config
        self._names: Sequence[str] = ()
        names = (config.modality, config.labels)
        self._train = KeptShards(config, modalities, names, config.train_shards, config.max_train_samples)
        hashed = bool(config.corruptions)
        self.test = KeptShards(config, modalities, names, config.shards, config.max_samples, hashed=hashed)

    @property
    def reads(self) -> tuple[tuple[tuple[str, ...], Mapping[str, Modality]], ...]:
        """The shards of both, and the modalities that are read."""
        return (*self._train.reads, *self.test.reads)

    def features(self, model: EmbeddingModel, encode: Encode) -> tuple[Labelled, Labelled]:
        """Features and labels of the training and of the test samples.

        Args:
            model: in evaluation mode, and with exact products, while samples are encoded.
            encode: views [n, ...] -> features [n, D].

        Raises:
            ValueError: the model has no encoder for the modality.
            NumericError, DataError: see `labelled_samples` and `KeptShards.collect`.
        """
        model.require(self.config.modality, shared_space=False)
        self.open()
        return self.collect(model, self._train, encode), self.collect(model, self.test, encode)

    def samples(self) -> int:
        """Number of training and test samples that are read."""
        self.open()
        pairs = ((self._train, self.config.max_train_samples), (self.test, self.config.max_samples))
        return sum(min(len(shards.index.open()), limit or sys.maxsize) for shards, limit in pairs)

    def open(self) -> None:
        """Open both, see `KeptShards.open`, and compare the class names beside them."""
        self._train.open()
        self.test.open()
        stored = stored_class_names(self.config.train_shards)
        for file, names in stored.items():
            compare_with_stored(names, self.config.shards, str(file))
        self._names = one_for_all(stored)

    def digest(self) -> str:
        """Of the training and the test shards, see `KeptIndex.digest`."""
        return f"{self._train.digest()} {self.test.digest()}"

    def close(self) -> None:
        """Stop the workers and close the shards."""
        self._train.close()
        self.test.close()

    def collect(self, model: EmbeddingModel, shards: KeptShards, encode: Encode) -> Labelled:
        """Features and labels of the samples of some shards; see `features`."""
        modality, labels = self.config.modality, self.config.labels
        with inference(model, self.config.precision):
            data = shards.collect({modality: encode, labels: lambda x: x}, model.device)
        return labelled_samples(data, modality, labels, self._names)


def labelled_samples(data: Collected, modality: str, labels: str, names: Sequence[str] = ()) -> Labelled:
    """Select the samples of a data set that have features and a label.

    Args:
        data: of the data set, with the modalities `modality` and `labels`.
        names: see `Labelled`.

    Raises:
        NumericError: a feature is not finite.
        DataError: no sample has both.
    """
    rows, owner = data[modality].rows, data[modality].owner
    require_usable(rows, owner, data.keys, f"the feature vector of {modality!r}", unit=False)
    with_label, with_row = items_in_both(data, modality, labels)
    if int(with_label.sum()) != int(with_row.sum()):
        raise DataError(
            f"{modality!r} or {labels!r} has several items in one sample, wanted one of each to classify features; "
            f"`modalities.{modality}.captions: whole` reads the lines of a text as one"
        )
    excluded = len(data.keys) - int(with_label.sum())
    keys = [data.keys[number] for number in owner[with_label].tolist()]
    return Labelled(rows[with_label], data[labels].rows[with_row], excluded, data.skipped, keys, names)


def number_classes(train: Labelled) -> tuple[Tensor, Tensor]:
    """The labels that occur in training [K], ascending, and the number [n], 0 ... K-1, of each training sample's.

    Raises:
        DataError: fewer than two classes.
    """
    classes, numbers = torch.unique(train.labels, return_inverse=True)
    if len(classes) < 2:
        raise DataError(
            f"the training samples have {len(classes)} class, wanted at least two to classify; check `train_shards`"
        )
    return classes, numbers


def held_out(n: int, share: float, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
    """Split training samples at random: numbers [m] int64 of those that choose settings, and of the rest, on the CPU.

    Raises:
        DataError: too few samples.
    """
    held = max(1, round(share * n))
    if n - held < 2:
        raise DataError(f"got {n} training samples for the probe, wanted more than {held}, which choose the settings")
    order = torch.from_numpy(generator(seed, purpose).permutation(n))
    return order[:held], order[held:]


Classify = Callable[[Tensor, Tensor], Predictions]
"""Features [n, D] and class numbers [n] -> what a classifier predicts for them, and the ranks of those classes."""


def in_shares(classify: Classify) -> Classify:
    """The same predictions; each process makes those of its share of the samples."""

    def gathered(features: Tensor, wanted: Tensor) -> Predictions:
        world, rank, n = distributed.world_size(), distributed.rank(), len(features)
        share = slice(rank * n // world, (rank + 1) * n // world)
        return classify(features[share], wanted[share]).each(distributed.gather_uneven)

    return gathered


Classifier = Callable[[Labelled], tuple[Answers, dict[str, Score]]]
"""Samples -> the answers of a fitted classifier, and what else there is to say of it or of them."""


class LabelledEvaluator(Evaluator):
    """Base of evaluators that fit a classifier on the features of training samples, and measure it on test samples.

    Scores: see `classifier_scores`, `CorruptedShards.measure` (of acc1), and what the classifier says.
    """

    config: LabelledConfig
    headlines: tuple[str, ...] = ("acc1",)

    def __init__(self, config: LabelledConfig, modalities: Mapping[str, Modality]) -> None:
        require_modalities(modalities, (config.modality, config.labels))
        self.config = config
        self.modality = config.modality
        changed = config.viewed(modalities, (config.modality,))
        self._shards = LabelledShards(config, changed)
        self._corrupted = CorruptedShards(config, changed, (config.modality, config.labels), (config.modality,))
        self.kept = (self._shards,)

    def encode(self, model: EmbeddingModel) -> Encode:
        """Function from views [n, ...] to features [n, D]: by default pooled encoder features, before heads.

        Raises:
            ValueError: the model has no such features.
        """
        return lambda x: model.features(self.modality, x)

    @abstractmethod
    def fit(self, train: Labelled) -> Classifier:
        """Fit a classifier on training samples; may set `fitted`.

        Raises:
            DataError: fewer than two classes, or too few samples.
        """

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        model = self.config.averaged(model)
        encode = self.encode(model)
        train, test = self._shards.features(model, encode)
        classify = self.fit(train)
        answers, said = classify(test)

        def figures(shards: KeptShards) -> dict[str, Figure]:
            return {"acc1": accuracy_figure(classify(self._shards.collect(model, shards, encode))[0])}

        scores = classifier_scores(train, test, answers) | said
        robust, tables = self._corrupted.measure(figures, {"acc1": accuracy_figure(answers)}, self._shards.test.inputs)
        self.tables = answers.tables() | tables
        yield from broadcast_scores(scores | robust).items()


def accuracy_figure(answers: Answers) -> Figure:
    """acc1, as `CorruptedShards.measure` takes it."""
    return Figure.of(answers.accuracy(), "acc1", answers.keys, answers.hits())


def classifier_answers(test: Labelled, classes: Tensor, classify: Classify) -> Answers:
    """Answers of a classifier for test samples; a label that training lacks counts as an error.

    Args:
        test: the samples.
        classes: [K] training labels, ascending.
        classify: predicts test samples.
    """
    known = torch.isin(test.labels, classes)
    found = torch.searchsorted(classes, test.labels).clamp(max=len(classes) - 1)
    predictions = classify(test.features, found)
    # A label that training lacks gets the last class number + 1, for which the classifier has no row.
    labels = torch.where(known, found, len(classes))
    ranks = predictions.ranks.where(known, len(classes) + 5)
    has_score = torch.stack([torch.ones_like(known), known], 1)
    predictions = predictions.each(lambda x: x.where(has_score, torch.nan) if x.ndim == 2 else x)
    names = _named(classes.tolist(), test.names)
    unseen = [] if known.all() else ["(not in training)"]
    return Answers(test.keys, labels, replace(predictions, ranks=ranks), names + unseen, len(names))


def _named(labels: Sequence[int], names: Sequence[str]) -> list[str]:
    """Names of classes: with the number where several have a name, the number alone where one has none."""
    found = [names[label] if 0 <= label < len(names) else str(label) for label in labels]
    times = Counter(found)
    return [f"{name} ({label})" if times[name] > 1 else name for name, label in zip(found, labels, strict=True)]


def classifier_scores(train: Labelled, test: Labelled, answers: Answers) -> dict[str, Score]:
    """Scores of a classifier, with the counts of both sets.

    Those of `classification_scores` (classes are the training labels; another test label is in n_unseen), n_train, n_excluded and
    n_skipped (of the test samples), n_train_excluded and n_train_skipped.
    """
    return answers.scores() | {
        "n_unseen": sum(answers.counts[answers.answerable :]),
        "n_train": len(train.labels),
        "n_excluded": test.excluded,
        "n_skipped": test.skipped,
        "n_train_excluded": train.excluded,
        "n_train_skipped": train.skipped,
    }


def warm_cosine(step: int, total: int) -> float:
    """Rate of a 0-based step relative to the peak: up in `WARMUP` of the steps, then along a cosine to 0."""
    warm = WARMUP * total
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1.0, total - warm)))
