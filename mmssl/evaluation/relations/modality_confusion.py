"""Modality confusion: how often another modality breaks, or mends, a class decision; accuracy with every set of modalities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError
from mmssl.core.evaluator import Evaluator, Score, Table
from mmssl.data.modality import Modality
from mmssl.evaluation.class_names import compare_with_labels, compare_with_stored, require_class_numbers
from mmssl.evaluation.collect import Collected, Items, KeptShards, items_in_all
from mmssl.evaluation.common import broadcast_scores, inference, require_modalities, require_usable, warn_of_ties
from mmssl.evaluation.comparison import mcnemar
from mmssl.evaluation.prompts import PromptedConfig, Prompts
from mmssl.evaluation.ranking import Predictions, class_ranks
from mmssl.evaluation.statistics import wilson

Subset = tuple[str, ...]


class ModalityConfusionConfig(PromptedConfig):
    """Settings of modality confusion: what another modality does to the class of a sample.

    Attributes:
        modalities: two to four modalities of one space. The class is decided by each of them, and by the mean embedding of every
            set of them, all on the same samples: those that lack one of them, or a label, are left out and counted. Several
            captions of a sample count as their mean embedding.
        labels: modality with the class number of each sample.
        train_shards: labelled training samples, for models without text: the class is that of the nearest class mean of their
            embeddings, a mean for each set of modalities; then `prompts` and `templates` are not used. None: text prompts.
        max_train_samples: number of training samples, the first ones; None: all.
    """

    kind: Literal["modality_confusion"] = "modality_confusion"
    modalities: tuple[str, ...] = Field(min_length=2, max_length=4)
    labels: str = "label"
    train_shards: tuple[str, ...] | None = None
    max_train_samples: int | None = Field(default=None, ge=2)

    @field_validator("modalities")
    @classmethod
    def _different(cls, modalities: tuple[str, ...]) -> tuple[str, ...]:
        return require_different(modalities)

    def build(self, modalities: Mapping[str, Modality]) -> ModalityConfusion:
        require_modalities(modalities, (*self.modalities, self.labels))
        return ModalityConfusion(self, modalities, None if self.train_shards else self.read_prompts(modalities))


class ModalityConfusion(Evaluator):
    """Classes by every set of modalities, from text prompts or class means. Scores: see `confusion_scores`.

    With class means also n_train and n_unseen (samples of classes that training lacks, which are among n_excluded).
    """

    def __init__(
        self, config: ModalityConfusionConfig, modalities: Mapping[str, Modality], prompts: Prompts | None
    ) -> None:
        self.config = config
        self.prompts = prompts
        self._labels = modalities[config.labels]
        names = (*config.modalities, config.labels)
        self._shards = KeptShards(config, modalities, names, config.shards, config.max_samples)
        self._train = (
            KeptShards(config, modalities, names, config.train_shards, config.max_train_samples)
            if config.train_shards
            else None
        )
        self.kept = (self._shards, *((self._train,) if self._train is not None else ()))
        changes = (f"{change}_by_{name}" for name in config.modalities for change in ("broken", "mended"))
        self.headlines = (*(f"acc1_{set_name(some)}" for some in subsets(config.modalities)), *changes)

    def facts(self) -> dict[str, Any]:
        if self.prompts is None:
            return super().facts()
        return super().facts() | {"classnames": self.prompts.names, "templates": self.prompts.templates}

    def open(self) -> None:
        """Open the shards, and compare `classnames` with the names beside them and with some of their labels."""
        super().open()
        if self.prompts is None:
            return
        compare_with_stored(self.prompts.names, self.config.shards, "`classnames`")
        compare_with_labels(self.prompts.names, self._shards.index.open(), self._labels, self.config.max_samples)

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        config = self.config
        for name in (*config.modalities, *((config.prompts,) if self.prompts is not None else ())):
            model.require(name, shared_space=True)
        self.open()
        with inference(model, self.config.precision):
            scores = self.scores(self._collect(self._shards, model), model)
        warn_of_ties(f"class by {set_name(config.modalities)}", float(scores["tie_rate"] or 0))
        yield from broadcast_scores(scores).items()

    def scores(self, data: Collected, model: EmbeddingModel) -> dict[str, Score]:
        """Scores of collected embeddings and labels; sets `tables`."""
        modalities, labels = self.config.modalities, self.config.labels
        more: dict[str, Score] = {}
        if self.prompts is not None:
            classifiers = dict.fromkeys(subsets(modalities), self.prompts.classifier(model))
            names: Sequence[str] = self.prompts.names
        else:
            assert self._train is not None
            train = self._collect(self._train, model)
            classes, classifiers, n_train = class_mean_weights(train, modalities, labels)
            data, unseen = _with_classes(data, labels, classes)
            names = [str(number) for number in classes.tolist()]
            more = {"n_train": n_train, "n_unseen": unseen, "n_train_skipped": train.skipped}
        scores, self.tables = confusion_scores(data, modalities, labels, classifiers, names)
        return scores | more

    def _collect(self, shards: KeptShards, model: EmbeddingModel) -> Collected:
        encode = {name: lambda x, name=name: model.embed(name, x) for name in self.config.modalities}
        return shards.collect({**encode, self.config.labels: lambda x: x}, model.device)


def confusion_scores(
    data: Collected,
    modalities: Sequence[str],
    labels: str,
    classifiers: Mapping[Subset, Tensor],
    classnames: Sequence[str],
) -> tuple[dict[str, Score], dict[str, Table]]:
    """Accuracy of the class with every set of modalities, and what each one changes, of unit-norm embeddings.

    The class of a set is the one nearest to the mean of its embeddings. Scores, each with a Wilson interval:
        acc1_<set>, e.g. acc1_video+audio: share of samples of the right class, with _chance 1 / K;
        broken_by_<modality>: share of the samples that the other modalities together decide rightly, and with it wrongly (the
            modality confusion of VGGSounder, Zverev et al. 2025, arXiv:2508.08237);  broken_by_<modality>_chance: of answers drawn
            at random, (K - 1) / K^2;  mended_by_<modality>: wrongly without and rightly with it;
        tie_rate: of all modalities together, samples whose true class ties with another;
        n (samples with all modalities and a label), n_excluded, n_skipped, classes.
    Tables: "samples" (the predicted class and acc1 of every set) and "additions": each modality added to each set without it.

    Args:
        data: embeddings of the modalities, and class numbers. Of several items of a sample, such as captions, their mean counts.
        modalities: at least two.
        labels: name of the class numbers in `data`.
        classifiers: set of modalities -> its class weights [K, E], unit norm.
        classnames: K names.

    Raises:
        NumericError: an embedding is not finite, or zero.
        DataError: a label is no class number, or no sample has all.
    """
    embedded, true, owner = _samples_with_all(data, modalities, labels)
    require_class_numbers(true, owner, data.keys, classnames)
    # The sum has the nearest class of the mean: scaling it changes no rank.
    found = {some: class_ranks(rows, classifiers[some], true) for some, rows in embedded.items()}
    right = {some: predictions.ranks == 1 for some, predictions in found.items()}
    n, classes, whole = len(true), len(classnames), tuple(modalities)
    scores: dict[str, Score] = {}
    for some, hits in right.items():
        scores |= _share(f"acc1_{set_name(some)}", hits, 1 / classes)
    random = (classes - 1) / classes**2
    for name in modalities:
        without = right[tuple(one for one in whole if one != name)]
        for change, hits in _changes(without, right[whole]).items():
            scores |= _share(f"{change}_by_{name}", hits, random)
    scores |= {
        "classes": classes,
        "tie_rate": int(found[whole].tied.sum()) / n,
        "n": n,
        "n_excluded": len(data.keys) - n,
        "n_skipped": data.skipped,
    }
    keys = [data.keys[number] for number in owner.tolist()]
    return scores, {"samples": _samples(keys, true, found, classnames), "additions": _additions(whole, right)}


def class_mean_weights(
    train: Collected, modalities: Sequence[str], labels: str
) -> tuple[Tensor, dict[Subset, Tensor], int]:
    """Class weights of every set of modalities: the unit-norm mean of each class' embeddings in training (nearest class mean).

    Returns:
        the labels that occur [K], ascending; set -> [K, E]; number of training samples with all modalities and a label.

    Raises:
        NumericError, DataError: see `confusion_scores`; fewer than two classes.
    """
    embedded, true, _ = _samples_with_all(train, modalities, labels)
    classes, numbers = torch.unique(true, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"the training samples have {len(classes)} class, wanted at least two; check `train_shards`")
    means = {}
    for some, rows in embedded.items():
        sums = torch.zeros(len(classes), rows.shape[1], dtype=torch.float64, device=rows.device)
        means[some] = F.normalize(sums.index_add_(0, numbers, rows.double()), dim=1).float()
    return classes, means, len(true)


def _with_classes(data: Collected, labels: str, classes: Tensor) -> tuple[Collected, int]:
    """The data set with class numbers 0 ... K-1 in place of labels, and the number of labels that are none of the K classes."""
    given = data[labels]
    known = torch.isin(given.rows, classes)
    numbered = Items(torch.searchsorted(classes, given.rows[known]), given.owner[known])
    return replace(data, items={**data.items, labels: numbered}), int((~known).sum())


def _samples_with_all(
    data: Collected, modalities: Sequence[str], labels: str
) -> tuple[dict[Subset, Tensor], Tensor, Tensor]:
    """Set of modalities -> sum of embeddings [n, E], labels [n] and numbers [n] of the samples that have all of them."""
    names = (*modalities, labels)
    for name in modalities:
        require_usable(data[name].rows, data[name].owner, data.keys, f"the embedding of {name!r}", unit=True)
    data = replace(data, items={**data.items, **{name: one_a_sample(data[name]) for name in modalities}})
    masks = dict(zip(names, items_in_all(data, names), strict=True))
    rows = {name: data[name].rows[masks[name]] for name in modalities}
    embedded = {some: torch.stack([rows[name] for name in some]).sum(0) for some in subsets(modalities)}
    return embedded, data[labels].rows[masks[labels]], data[labels].owner[masks[labels]]


def one_a_sample(items: Items) -> Items:
    """Items with one row a sample: the mean of the unit-norm rows of a sample with several, such as captions, of norm 1 again."""
    owner, numbers = torch.unique(items.owner, return_inverse=True)
    if len(owner) == len(items.owner):
        return items
    sums = torch.zeros(len(owner), items.rows.shape[1], dtype=torch.float64, device=items.rows.device)
    return Items(F.normalize(sums.index_add_(0, numbers, items.rows.double()), dim=1).float(), owner)


def subsets(modalities: Sequence[str]) -> list[Subset]:
    """All sets of one or more modalities, small ones first, each in the order given."""
    return [some for size in range(1, len(modalities) + 1) for some in combinations(modalities, size)]


def set_name(modalities: Sequence[str]) -> str:
    """Name of a set in scores, e.g. "video+audio"."""
    return "+".join(modalities)


def require_different(modalities: tuple[str, ...]) -> tuple[str, ...]:
    """The modalities.

    Raises:
        ValueError: one stands there twice.
    """
    if len(set(modalities)) < len(modalities):
        raise ValueError(f"modalities: got {list(modalities)}, wanted different ones; name each once")
    return modalities


def _changes(before: Tensor, after: Tensor) -> dict[str, Tensor]:
    return {"broken": before & ~after, "mended": ~before & after}


def _share(name: str, hits: Tensor, chance: float) -> dict[str, Score]:
    count, n = int(hits.sum()), len(hits)
    low, high = wilson(count, n)
    return {name: count / n, f"{name}_ci95_low": low, f"{name}_ci95_high": high, f"{name}_chance": chance}


def _samples(
    keys: Sequence[str], true: Tensor, found: Mapping[Subset, Predictions], classnames: Sequence[str]
) -> Table:
    columns: dict[str, Sequence[Score]] = {
        "key": list(keys),
        "class": [classnames[label] for label in true.tolist()],
    }
    for some, predictions in found.items():
        name = set_name(some)
        columns[f"predicted_{name}"] = [classnames[label] for label in predictions.predicted.tolist()]
        columns[f"acc1_{name}"] = (predictions.ranks == 1).int().tolist()
    return Table(columns, tuple(f"acc1_{set_name(some)}" for some in found))


def _additions(modalities: Subset, right: Mapping[Subset, Tensor]) -> Table:
    """Each modality added to each set without it: accuracies, shares broken and mended, and McNemar's exact test of the two."""
    rows: list[tuple[Score, ...]] = []
    for some, before in right.items():
        for name in modalities:
            if name in some:
                continue
            after = right[tuple(one for one in modalities if one in (*some, name))]
            shares = [int(hits.sum()) / len(hits) for hits in (before, after, *_changes(before, after).values())]
            rows.append((set_name(some), name, *shares, mcnemar(before, after), len(before)))
    columns = ("modalities", "added", "acc1_without", "acc1_with", "broken", "mended", "mcnemar_p", "n")
    return Table({column: [row[i] for row in rows] for i, column in enumerate(columns)})
