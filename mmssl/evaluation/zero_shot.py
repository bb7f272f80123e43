"""Zero-shot classification with text prompts: the class weights are the mean embeddings of each class' prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import field_validator
from torch import Tensor

from mmssl.core import distributed
from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError, RecipeError
from mmssl.core.evaluator import Evaluator, Score
from mmssl.core.sample import Sample
from mmssl.data.modalities.class_names import check_class_names, read_class_names
from mmssl.data.modality import Modality
from mmssl.data.samples import iterate
from mmssl.data.stream.formats import numbers_to_look_at
from mmssl.evaluation.class_names import compare_with_stored
from mmssl.evaluation.collect import Collected, KeptShards, items_in_both
from mmssl.evaluation.common import (
    EvaluatorConfig,
    broadcast_scores,
    inference,
    require_modalities,
    require_usable,
    warn_of_ties,
)
from mmssl.evaluation.ranking import class_ranks
from mmssl.evaluation.statistics import classification_scores

PLACEHOLDERS = ("{}", "{c}")

SORTED_TOGETHER = 65536
"""Number of prompts that are sorted by length and kept as embeddings at a time."""

LABELS = 2000
"""Number of labels that are compared with the number of class names before a run."""

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "plain": ("{}",),
    "simple": (
        "a photo of a {}.",
        "a picture of a {}.",
        "a close-up of a {}.",
        "a drawing of a {}.",
        "a small {}.",
        "a large {}.",
        "one {} seen from the side.",
    ),
}
"""Prompt template lists by name, for `templates` of a recipe."""


class ZeroShotConfig(EvaluatorConfig):
    """Settings of zero-shot classification with text prompts.

    Attributes:
        modality: modality to classify.
        prompts: modality of the prompts; must be text.
        labels: modality with the class number of each sample; samples that lack it, or `modality`, are left out and counted.
        classnames: class names in the order of their numbers, or a file of them: one on each line, a JSON list, a JSON object from
            number to name, or lines `0: 'tench',`. Names beside the shards are compared: a difference is a warning.
        templates: sentences with `{}` (or `{c}`) for the class name; or a file with one on each line; or "simple" or "plain".
    """

    kind: Literal["zero_shot"] = "zero_shot"
    modality: str
    prompts: str = "text"
    labels: str = "label"
    classnames: tuple[str, ...] | str
    templates: tuple[str, ...] | str = "simple"

    @field_validator("classnames")
    @classmethod
    def _check_classnames(cls, value: tuple[str, ...] | str) -> tuple[str, ...] | str:
        if not isinstance(value, str):
            check_class_names(value, [f"classnames[{i}]" for i in range(len(value))])
        return value

    @field_validator("templates")
    @classmethod
    def _check_templates(cls, value: tuple[str, ...] | str) -> tuple[str, ...] | str:
        if not isinstance(value, str):
            check_templates(value, [f"templates[{i}]" for i in range(len(value))])
        return value

    def build(self, modalities: Mapping[str, Modality]) -> ZeroShot:
        require_modalities(modalities, (self.modality, self.prompts, self.labels))
        if not modalities[self.prompts].language:
            raise RecipeError(f"prompts: got modality {self.prompts!r}, wanted one of kind text for zero-shot prompts")
        names, templates = self.classnames, self.templates
        if isinstance(names, str):
            names = _read_class_names(names)
        if isinstance(templates, str):
            templates = TEMPLATES.get(templates) or _read_templates(templates)
        return ZeroShot(self, modalities, names, templates)


class ZeroShot(Evaluator):
    """Zero-shot classification: the predicted class of a sample is the one with the nearest prompt embedding.

    Scores: see `classification_scores`, and tie_rate (samples whose true class ties with another),
    n_excluded (samples without a label, or without `modality`) and n_skipped (samples that could not be decoded).
    """

    def __init__(
        self,
        config: ZeroShotConfig,
        modalities: Mapping[str, Modality],
        classnames: Sequence[str],
        templates: Sequence[str],
    ) -> None:
        self.config = config
        self.modalities = modalities
        names = (config.modality, config.labels)
        self._shards = KeptShards(config, modalities, names, config.shards, config.max_samples)
        self.kept = (self._shards,)
        self.classnames = tuple(classnames)
        self.templates = tuple(templates)
        self.headlines = ("acc1",)

    def open(self) -> None:
        """Open the shards, and compare `classnames` with the names beside them and with some of their labels."""
        super().open()
        compare_with_stored(self.classnames, self.config.shards, "`classnames`")
        index, labels, names = self._shards.index.open(), self.config.labels, self.classnames
        view = self.modalities[labels].view("eval")
        numbers = numbers_to_look_at(index, LABELS, self.config.max_samples)
        for sample in iterate(index, {labels: self.modalities[labels]}, numbers, optional=[labels]):
            if isinstance(sample, Sample) and labels in sample.values:
                true = int(view(sample.values[labels], {}))
                if not 0 <= true < len(names):
                    raise DataError(f"key {sample.key!r} ({sample.origin}) {_outside(true, names)}")
        index.reader.close()

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        config = self.config
        for name in (config.modality, config.prompts):
            model.require(name, shared_space=True)
        self.open()
        with inference(model):
            classifier = self.classifier(model)
            encode = {config.modality: lambda x: model.embed(config.modality, x), config.labels: lambda x: x}
            data = self._shards.collect(encode, model.device)
            scores = zero_shot_scores(data, config.modality, config.labels, classifier, self.classnames)
        warn_of_ties(f"zero-shot of {config.modality!r}", float(scores["tie_rate"] or 0))
        yield from broadcast_scores(scores).items()

    def classifier(self, model: EmbeddingModel) -> Tensor:
        """Class weights [K, E] from prompts, one unit-norm row for each class. Each process embeds its share of the classes."""
        text = self.modalities[self.config.prompts]
        classes, rank, world = len(self.classnames), distributed.rank(), distributed.world_size()
        own = self.classnames[rank * classes // world : (rank + 1) * classes // world]

        def embed(sentences: Sequence[str]) -> Tensor:
            return model.embed(self.config.prompts, text.tokenize(list(sentences)))

        # With fewer classes than processes some have none: they embed one anyway, to learn E, and return no row.
        rows = build_classifier(embed, own or self.classnames[:1], self.templates, self.config.batch_size)
        classifier = distributed.gather_uneven(rows[: len(own)])
        names = dict(enumerate(self.classnames))
        require_usable(classifier, torch.arange(len(classifier)), names, "the prompt embedding", unit=True)
        return classifier


def build_classifier(
    embed: Callable[[Sequence[str]], Tensor], classnames: Sequence[str], templates: Sequence[str], batch_size: int = 256
) -> Tensor:
    """Zero-shot class weights [K, E]: normalise each prompt embedding, average over a class, normalise again (as in CLIP).

    Args:
        embed: n sentences -> [n, E].
        classnames: K names.
        templates: sentences with a placeholder.
        batch_size: number of sentences embedded at a time. They have similar lengths, so that a batch has little padding, and may
            be of different classes.
    """
    at_once = max(1, SORTED_TOGETHER // len(templates))
    rows = []
    for start in range(0, len(classnames), at_once):
        names = classnames[start : start + at_once]
        prompts = _embed_by_length(embed, [fill_template(t, name) for name in names for t in templates], batch_size)
        rows.append(F.normalize(prompts.reshape(len(names), len(templates), -1).mean(1), dim=-1))
    return torch.cat(rows)


def _embed_by_length(embed: Callable[[Sequence[str]], Tensor], sentences: Sequence[str], batch_size: int) -> Tensor:
    # Unit-norm rows in the order of the sentences. The number of characters is a good enough estimate of the tokens.
    order = sorted(range(len(sentences)), key=lambda number: len(sentences[number]))
    parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    rows = torch.cat([F.normalize(embed([sentences[i] for i in part]).float(), dim=-1) for part in parts])
    return torch.empty_like(rows).index_copy_(0, torch.tensor(order, device=rows.device), rows)


def zero_shot_scores(
    data: Collected, modality: str, labels: str, classifier: Tensor, classnames: Sequence[str]
) -> dict[str, Score]:
    """Zero-shot accuracy of collected embeddings and labels; see `classification_scores`.

    Raises:
        NumericError: an embedding is not finite, or zero.
        DataError: a label is no class number, or no sample has both.
    """
    embeddings, owner = data[modality].rows, data[modality].owner
    require_usable(embeddings, owner, data.keys, f"the embedding of {modality!r}", unit=True)
    if len(torch.unique(owner)) < len(owner):
        raise DataError(f"{modality!r} has several items in one sample, wanted one for zero-shot classification")
    labelled, has_row = items_in_both(data, modality, labels)
    true, true_owner = data[labels].rows[has_row], data[labels].owner[has_row]
    wrong = (true < 0) | (true >= len(classnames))
    if wrong.any():
        first = int(true_owner[wrong][0])
        raise DataError(
            f"key {data.keys[first]!r} (sample {first}) {_outside(int(true[wrong][0]), classnames)}; "
            f"{int(wrong.sum())} of {len(true)} labels are outside"
        )
    ranks, tied = class_ranks(embeddings[labelled], classifier, true)
    scores = classification_scores(ranks, true, classnames)
    return scores | {
        "n_excluded": len(data.keys) - len(true),
        "n_skipped": data.skipped,
        "tie_rate": int(tied.sum()) / len(tied),
    }


def _outside(label: int, classnames: Sequence[str]) -> str:
    last = len(classnames) - 1
    return f"has the label {label}, wanted 0 ... {last} for {len(classnames)} class names: check `classnames`"


def fill_template(template: str, name: str) -> str:
    """Fill the class name into every placeholder of a template; other braces stay as they are."""
    for placeholder in PLACEHOLDERS:
        template = template.replace(placeholder, name)
    return template


def check_templates(templates: Sequence[str], where: Sequence[str]) -> None:
    """Check that there are prompt templates and that each has a placeholder for the class name.

    Raises:
        ValueError: names each bad template and its place.
    """
    if not templates:
        raise ValueError("got no template, wanted at least one sentence with {} for the class name")
    lacking = [
        f"{place}: {template!r}"
        for place, template in zip(where, templates, strict=True)
        if not any(placeholder in template for placeholder in PLACEHOLDERS)
    ]
    if lacking:
        raise ValueError(
            "got templates without a placeholder, wanted {} or {c} for the class name: " + "; ".join(lacking[:5])
        )


def _read_class_names(path: str) -> tuple[str, ...]:
    """Read a file of class names and check them.

    Raises:
        RecipeError: there is no such file, or it is refused; names file and place.
    """
    try:
        names, places = read_class_names(path)
        check_class_names(names, places)
    except (OSError, ValueError) as error:
        raise RecipeError(f"`classnames`: {error}") from error
    return names


def _read_templates(path: str) -> tuple[str, ...]:
    """Read the lines of a text file as templates and check them; blank lines at its end are ignored.

    Raises:
        RecipeError: the file cannot be read, or a line is refused; names file and line.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").rstrip().splitlines()
        check_templates(lines, [f"{path}, line {number}" for number in range(1, len(lines) + 1)])
    except (OSError, ValueError) as error:
        hint = f"; built-in lists: {sorted(TEMPLATES)}" if isinstance(error, OSError) else ""
        raise RecipeError(f"`templates`: {error}{hint}") from error
    return tuple(line.strip() for line in lines)
