"""What all evaluators share: their config, evaluation mode, and what they refuse or warn of."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.core.config import Config, Entries, PositiveDuration
from mmssl.core.errors import NumericError, RecipeError, did_you_mean
from mmssl.core.evaluator import Evaluator, Score
from mmssl.data.modality import Modality
from mmssl.evaluation.ranking import exact_products

log = logging.getLogger(__name__)

TIE_WARNING = 0.01
"""Share of tied queries above which scores depend on the tie rule, and a warning says so."""


class EvaluatorConfig(Config):
    """What every evaluator's config has.

    Attributes:
        shards: shards to measure on: paths, braces or globs.
        every: how often it runs during training; None: at the end only.
        batch_size: samples of one process encoded at a time; changes speed and memory, not scores.
        workers: processes that decode; 0: none but this one.
        max_samples: measure on the first so many samples only; None: on all.
        on_error: what a sample that cannot be decoded does: "raise" ends the evaluation; "skip" leaves it out and
            counts it in n_skipped.
    """

    shards: tuple[str, ...] = Field(min_length=1)
    every: PositiveDuration | None = None
    batch_size: int = Field(default=256, ge=1)
    workers: int = Field(default=0, ge=0)
    max_samples: int | None = Field(default=None, ge=1)
    on_error: Literal["raise", "skip"] = "raise"

    @abstractmethod
    def build(self, modalities: Mapping[str, Modality]) -> Evaluator:
        """The evaluator for the modalities of a recipe.

        Raises:
            RecipeError: it names a modality that the recipe lacks, or a file that cannot be used.
        """


class PairEvaluatorConfig(EvaluatorConfig, ABC):
    """What configs of evaluators that compare two modalities have.

    Attributes:
        pair: two different modalities.
    """

    pair: Annotated[tuple[str, str], Entries(("modality", "other modality"))]

    @field_validator("pair")
    @classmethod
    def _two(cls, pair: tuple[str, str]) -> tuple[str, str]:
        if pair[0] == pair[1]:
            raise ValueError(
                f"got the pair {list(pair)}, wanted two different modalities: everything would find itself"
            )
        return pair


def require_usable(rows: Tensor, owner: Tensor, keys: Mapping[int, str], what: str, *, unit: bool) -> None:
    """Refuse rows that are not finite, and with `unit` rows without a direction, by the key of their sample.

    Raises:
        NumericError: names the first such sample, and says how many there are.
    """
    bad = ~torch.isfinite(rows).all(1)
    problem = "not finite"
    if unit and not bad.any():
        bad, problem = rows.norm(dim=1) == 0, "zero: it has no direction"
    if bad.any():
        first = int(owner[bad.to(owner.device)][0])
        raise NumericError(
            f"{what} of key {keys[first]!r} (sample {first}) is {problem}; such are {int(bad.sum())} of {len(rows)}, and no score "
            "can be given. One: check that sample. Many: the weights are damaged, go back to an earlier checkpoint"
        )


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradient, float32 throughout; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), exact_products():
            yield
    finally:
        for module, training in modes:
            module.training = training


def require_modalities(modalities: Mapping[str, Modality], names: Iterable[str]) -> None:
    """Refuse names that the recipe does not list.

    Raises:
        RecipeError: says which, and what there is.
    """
    for name in names:
        if name not in modalities:
            raise RecipeError(
                f"an evaluator names the modality {name!r}{did_you_mean(name, modalities)}: the recipe has {sorted(modalities)}"
            )


def agreed(scores: Mapping[str, Score]) -> dict[str, Score]:
    """The main process' scores, on every process: rounding may differ between devices."""
    return dict(distributed.gather_objects(dict(scores))[0])


def warn_of_ties(name: str, share: float) -> None:
    """Say that scores hang on the tie rule: the model has collapsed, or the data repeat themselves."""
    if share > TIE_WARNING and distributed.is_main():
        log.warning(
            "%s: %.1f %% of the queries tie with a wrong candidate; ties go to the one that stands earlier in the data, so that "
            "a collapsed model scores chance. Many ties mean a collapsed model, or samples that repeat each other.",
            name,
            100 * share,
        )
