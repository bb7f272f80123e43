"""Class weights from text prompts: class names, templates, and the mean embedding of each class' sentences."""

from __future__ import annotations

import logging
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import field_validator
from torch import Tensor

from mmssl.core import distributed
from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError, RecipeError, did_you_mean, os_words
from mmssl.data.modalities.class_names import (
    CLASS_NAMES_FILE,
    check_class_names,
    read_class_names,
    repeated_names,
)
from mmssl.data.modalities.imagenet import imagenet_class_names, openai_templates
from mmssl.data.modality import Modality
from mmssl.data.shards.patience import without_secrets
from mmssl.data.shards.storage import is_remote
from mmssl.evaluation.class_names import beside, stored_class_names
from mmssl.evaluation.common import EvaluatorConfig, require_modalities, require_usable

log = logging.getLogger(__name__)

PLACEHOLDERS = ("{}", "{c}")
TEMPLATES_FILE = "zeroshot_classification_templates.txt"
"""File beside shards, or in the folder above: one template a line, as CLIP_benchmark writes it."""

SORTED_TOGETHER = 65536
"""Number of prompts that are sorted by length and kept as embeddings at a time."""

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
NAMED_TEMPLATES = [*sorted(TEMPLATES), "openai"]
"""All names; "openai" are the 80 of open_clip's package."""


class PromptedConfig(EvaluatorConfig, ABC):
    """Settings of every evaluator that compares samples with text prompts of classes.

    Attributes:
        prompts: modality of the prompts; must be text.
        labels: modality with the classes of each sample; samples that lack it are left out and counted.
        classnames: class names in the order of their numbers, or a file of them: one on each line, a JSON list, a JSON object from
            number to name, or lines `0: 'tench',`; or "imagenet" (the 1000 that CLIP uses). None: `classnames.txt` beside the
            shards, or in the folder above, of local ones. Names that are given are compared with those: a difference is a warning.
        templates: sentences with `{}` (or `{c}`) for the class name; or a file with one on each line; or "simple", "plain" or
            "openai" (CLIP's 80). None: `zeroshot_classification_templates.txt` beside the shards, or "simple" without it.
    """

    prompts: str = "text"
    labels: str
    classnames: tuple[str, ...] | str | None = None
    templates: tuple[str, ...] | str | None = None

    @field_validator("classnames")
    @classmethod
    def _check_classnames(cls, value: tuple[str, ...] | str | None) -> tuple[str, ...] | str | None:
        if isinstance(value, tuple):
            check_class_names(value, [f"classnames[{i}]" for i in range(len(value))])
        return value

    @field_validator("templates")
    @classmethod
    def _check_templates(cls, value: tuple[str, ...] | str | None) -> tuple[str, ...] | str | None:
        if isinstance(value, tuple):
            check_templates(value, [f"templates[{i}]" for i in range(len(value))])
        return value

    def read_prompts(self, modalities: Mapping[str, Modality]) -> Prompts:
        """The class names and templates, read from their files.

        Raises:
            RecipeError: a modality is missing or no text, or a file is missing or refused. DataError: shards are missing.
        """
        require_modalities(modalities, (self.prompts, self.labels))
        if not modalities[self.prompts].language:
            raise RecipeError(f"prompts: got modality {self.prompts!r}, wanted one of kind text for zero-shot prompts")
        return Prompts(self.prompts, modalities[self.prompts], self._names(), self._templates(), self.batch_size)

    def _names(self) -> tuple[str, ...]:
        if isinstance(self.classnames, tuple):
            return self.classnames
        if self.classnames is not None:
            return imagenet_class_names() if self.classnames == "imagenet" else _read_class_names(self.classnames)
        found = stored_class_names(self.shards)
        if not found:
            shards = list(map(without_secrets, self.shards))
            looked = (
                f"beside remote shards, such as {shards[0]}, no {CLASS_NAMES_FILE} is looked for"
                if any(map(is_remote, self.shards))
                else f"there is no {CLASS_NAMES_FILE} beside the shards {shards} or in the folder above"
            )
            raise RecipeError(f"`classnames`: got none, and {looked}; wanted a file or a list of names")
        if len({tuple(names) for names in found.values()}) > 1:
            raise RecipeError(
                f"`classnames`: {' and '.join(map(str, found))} differ; give `classnames`, one list for all"
            )
        return _read_class_names(str(next(iter(found))), repeats=True)

    def _templates(self) -> tuple[str, ...]:
        if isinstance(self.templates, tuple):
            return self.templates
        if self.templates is not None:
            return named_templates(self.templates) or _read_templates(self.templates)
        try:
            files = beside(self.shards, TEMPLATES_FILE)
        except DataError:  # shards that are missing are told when they are opened
            files = []
        found = {_read_templates(str(file)) for file in files}
        if len(found) > 1:
            raise RecipeError(f"`templates`: the files {TEMPLATES_FILE} beside the shards differ; give `templates`")
        return next(iter(found), TEMPLATES["simple"])


@dataclass(frozen=True)
class Prompts:
    """K class names and the templates of their sentences.

    Attributes:
        modality: name of the text modality. text: it.
        names: K class names. templates: sentences with a placeholder.
        batch_size: number of sentences embedded at a time.
    """

    modality: str
    text: Modality
    names: tuple[str, ...]
    templates: tuple[str, ...]
    batch_size: int

    def classifier(self, model: EmbeddingModel) -> Tensor:
        """Class weights [K, E] from prompts, one unit-norm row for each class. Each process embeds its share of the classes.

        Raises:
            NumericError: an embedding is not finite, or zero; names the class.
        """
        classes, rank, world = len(self.names), distributed.rank(), distributed.world_size()
        own = self.names[rank * classes // world : (rank + 1) * classes // world]

        def embed(sentences: Sequence[str]) -> Tensor:
            return model.embed(self.modality, self.text.tokenize(list(sentences)))

        # With fewer classes than processes some have none: they embed one anyway, to learn E, and return no row.
        rows = build_classifier(embed, own or self.names[:1], self.templates, self.batch_size)
        classifier = distributed.gather_uneven(rows[: len(own)])
        names = dict(enumerate(self.names))
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


def named_templates(name: str) -> tuple[str, ...]:
    """The templates of a name; empty: there is no such list."""
    return openai_templates() if name == "openai" else TEMPLATES.get(name, ())


def _read_class_names(path: str, *, repeats: bool = False) -> tuple[str, ...]:
    """Read a file of class names and check them.

    Args:
        path: the file.
        repeats: whether a name that stands twice is a warning, as in published sets, which have such; else it is refused.

    Raises:
        RecipeError: there is no such file, or it is refused; names file and place.
    """
    try:
        names, places = read_class_names(path)
        twice = repeated_names(names) if repeats else {}
        check_class_names(names, places, repeats=repeats)
    except ValueError as error:
        raise RecipeError(f"`classnames`: {error}") from error
    for name, numbers in twice.items():
        log.warning("%s: classes %s are all %r: only the first of them can be predicted", path, numbers, name)
    return names


def _read_templates(path: str) -> tuple[str, ...]:
    """Read the lines of a text file as templates and check them; blank lines at its end are ignored.

    Raises:
        RecipeError: the file cannot be read, or a line is refused; names file and line.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").rstrip().splitlines()
        check_templates(lines, [f"{path}, line {number}" for number in range(1, len(lines) + 1)])
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"`templates`: got {path!r}, which is no file of templates ({os_words(error)}); wanted a file of sentences, one a "
            f"line, each with {{}} for the class name; a list of such sentences; or {', '.join(NAMED_TEMPLATES[:-1])} or "
            f"{NAMED_TEMPLATES[-1]}{did_you_mean(path, NAMED_TEMPLATES)}"
        ) from error
    except ValueError as error:
        raise RecipeError(f"`templates`: {error}") from error
    return tuple(line.strip() for line in lines)
