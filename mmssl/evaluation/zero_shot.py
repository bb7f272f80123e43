"""Zero-shot classification: the classifier is made of prompts, one bundle of them a class."""

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
from mmssl.data.modality import Modality
from mmssl.evaluation.collect import Collected, KeptShards, paired
from mmssl.evaluation.common import (
    EvaluatorConfig,
    agreed,
    inference,
    require_modalities,
    require_usable,
    warn_of_ties,
)
from mmssl.evaluation.ranking import class_ranks
from mmssl.evaluation.statistics import classification_scores

PLACEHOLDERS = ("{}", "{c}")

SORTED_TOGETHER = 65536
"""How many prompts are sorted by length and held as embeddings at a time."""

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
"""Template lists that a recipe may name."""


class ZeroShotConfig(EvaluatorConfig):
    """Configures zero-shot classification.

    Attributes:
        modality: what is classified.
        prompts: modality of the prompts; it must be text.
        labels: modality with the number of the class of each sample; samples that lack it, or what is classified, are left out and
            counted.
        classnames: class names in the order of their numbers, or a file with one a line.
        templates: sentences with `{}` (or `{c}`) where the class name goes; or a file with one a line; or "simple" or "plain".
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
            check_classnames(value, [f"classnames[{i}]" for i in range(len(value))])
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
            raise RecipeError(
                f"zero-shot prompts are sentences, and modality {self.prompts!r} is not text: set `prompts`"
            )
        names, templates = self.classnames, self.templates
        if isinstance(names, str):
            names = _read(names, "classnames", check_classnames)
        if isinstance(templates, str):
            templates = TEMPLATES.get(templates) or _read(templates, "templates", check_templates)
        return ZeroShot(self, modalities, names, templates)


class ZeroShot(Evaluator):
    """Names each sample by the class whose prompts lie nearest.

    Scores: see `classification_scores`, and tie_rate (samples whose true class ties with another),
    n_excluded (samples without a label, or without what is classified) and n_skipped (samples that could not be decoded).
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
        self.classnames = tuple(classnames)
        self.templates = tuple(templates)
        self.headlines = ("acc1",)

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        config = self.config
        for name in (config.modality, config.prompts):
            model.require(name, shared_space=True)
        with inference(model):
            classifier = self.classifier(model)
            encode = {config.modality: lambda x: model.embed(config.modality, x), config.labels: lambda x: x}
            data = self._shards.collect(encode, model.device)
            scores = score(data, config.modality, config.labels, classifier, self.classnames)
        warn_of_ties(f"zero-shot of {config.modality!r}", float(scores["tie_rate"] or 0))
        yield from agreed(scores).items()

    def close(self) -> None:
        """See the base."""
        self._shards.close()

    def classifier(self, model: EmbeddingModel) -> Tensor:
        """[K, E], one unit-norm row a class. Each process embeds its share of the classes."""
        text = self.modalities[self.config.prompts]
        classes, rank, world = len(self.classnames), distributed.rank(), distributed.world_size()
        own = self.classnames[rank * classes // world : (rank + 1) * classes // world]

        def embed(sentences: Sequence[str]) -> Tensor:
            return model.embed(self.config.prompts, text.tokenize(list(sentences)))

        # With fewer classes than processes some have none: they embed one all the same, to know E, and give no row.
        rows = build_classifier(embed, own or self.classnames[:1], self.templates, self.config.batch_size)
        classifier = distributed.gather_uneven(rows[: len(own)])
        names = dict(enumerate(self.classnames))
        require_usable(classifier, torch.arange(len(classifier)), names, "the prompt embedding", unit=True)
        return classifier


def build_classifier(
    embed: Callable[[Sequence[str]], Tensor], classnames: Sequence[str], templates: Sequence[str], batch_size: int = 256
) -> Tensor:
    """Mean direction of each class' prompts, [K, E]: normalise each prompt, average, normalise again (CLIP's convention).

    Args:
        embed: n sentences -> [n, E].
        classnames: K names.
        templates: sentences with a placeholder.
        batch_size: how many sentences are embedded at a time: sentences of about one length, of whatever class, so that little
            of a batch is padding.
    """
    at_once = max(1, SORTED_TOGETHER // len(templates))
    rows = []
    for start in range(0, len(classnames), at_once):
        names = classnames[start : start + at_once]
        prompts = _embed_by_length(embed, [fill(t, name) for name in names for t in templates], batch_size)
        rows.append(F.normalize(prompts.reshape(len(names), len(templates), -1).mean(1), dim=-1))
    return torch.cat(rows)


def _embed_by_length(embed: Callable[[Sequence[str]], Tensor], sentences: Sequence[str], batch_size: int) -> Tensor:
    # Unit-norm rows in the order of the sentences. Characters tell well enough how many tokens a prompt will have.
    order = sorted(range(len(sentences)), key=lambda number: len(sentences[number]))
    parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    rows = torch.cat([F.normalize(embed([sentences[i] for i in part]).float(), dim=-1) for part in parts])
    return torch.empty_like(rows).index_copy_(0, torch.tensor(order, device=rows.device), rows)


def score(
    data: Collected, modality: str, labels: str, classifier: Tensor, classnames: Sequence[str]
) -> dict[str, Score]:
    """Scores of embeddings and labels that were collected.

    Raises:
        NumericError: an embedding is not finite, or zero.
        DataError: a label is no class number, or no sample has both.
    """
    embeddings, owner = data[modality].rows, data[modality].owner
    require_usable(embeddings, owner, data.keys, f"the embedding of {modality!r}", unit=True)
    if len(torch.unique(owner)) < len(owner):
        raise DataError(
            f"{modality!r} has several items in one sample, and zero-shot needs one: it cannot tell which is meant"
        )
    labelled, has_row = paired(data, modality, labels)
    true, true_owner = data[labels].rows[has_row], data[labels].owner[has_row]
    wrong = (true < 0) | (true >= len(classnames))
    if wrong.any():
        first = int(true_owner[wrong][0])
        raise DataError(
            f"key {data.keys[first]!r} (sample {first}) has the label {int(true[wrong][0])}, wanted 0 ... {len(classnames) - 1}: "
            f"there are {len(classnames)} class names; {int(wrong.sum())} labels of {len(true)} are outside"
        )
    ranks, tied = class_ranks(embeddings[labelled], classifier, true)
    scores = classification_scores(ranks, true, classnames)
    return scores | {
        "n_excluded": len(data.keys) - len(true),
        "n_skipped": data.skipped,
        "tie_rate": int(tied.sum()) / len(tied),
    }


def fill(template: str, name: str) -> str:
    """The sentence with the class name in place of every placeholder; other braces stay as they are."""
    for placeholder in PLACEHOLDERS:
        template = template.replace(placeholder, name)
    return template


def check_templates(templates: Sequence[str], where: Sequence[str]) -> None:
    """Refuse an empty list, and templates that would give the same sentence for every class.

    Raises:
        ValueError: names each of them by its place.
    """
    if not templates:
        raise ValueError("got no template, wanted at least one sentence with {} where the class name goes")
    lacking = [
        f"{place}: {template!r}"
        for place, template in zip(where, templates, strict=True)
        if not any(placeholder in template for placeholder in PLACEHOLDERS)
    ]
    if lacking:
        raise ValueError(
            "templates without a placeholder, wanted {} or {c} where the class name goes: " + "; ".join(lacking[:5])
        )


def check_classnames(names: Sequence[str], where: Sequence[str]) -> None:
    """Refuse fewer than two classes, empty names, and names that occur twice: only the first of them could ever win.

    Raises:
        ValueError: says which, and where.
    """
    if len(names) < 2:
        raise ValueError(f"got {len(names)} class names, wanted at least two")
    seen: dict[str, str] = {}
    for place, name in zip(where, names, strict=True):
        plain = " ".join(name.casefold().split())
        if not plain:
            raise ValueError(
                f"{place}: the class name is empty; names stand in the order of the labels, so it cannot be skipped"
            )
        if plain in seen:
            raise ValueError(
                f"{place}: the class name {name!r} is there already ({seen[plain]}): prompts could not tell the two apart. "
                "Make the names differ, as in 'crane (bird)' and 'crane (machine)'"
            )
        seen[plain] = place


def _read(path: str, what: str, check: Callable[[Sequence[str], Sequence[str]], None]) -> tuple[str, ...]:
    """Lines of a text file, checked; blank lines at its end are ignored.

    Raises:
        RecipeError: the file cannot be read, or a line cannot be used; with file and line.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").rstrip().splitlines()
        check(lines, [f"{path}, line {number}" for number in range(1, len(lines) + 1)])
    except (OSError, ValueError) as error:
        hint = (
            f"; lists that come along: {sorted(TEMPLATES)}"
            if what == "templates" and isinstance(error, OSError)
            else ""
        )
        raise RecipeError(f"`{what}`: {error}{hint}") from error
    return tuple(line.strip() for line in lines)
