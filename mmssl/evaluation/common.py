"""Base of all evaluators: their config, evaluation mode, and shared checks and warnings."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field, field_validator
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.core.config import Config, Entries, PositiveDuration
from mmssl.core.encoder import EmbeddingModel, TowerPrecision
from mmssl.core.errors import NumericError, RecipeError, did_you_mean
from mmssl.core.evaluator import Evaluator, Score
from mmssl.data.modality import Modality
from mmssl.data.shards.remote import CacheConfig, Remote
from mmssl.evaluation.statistics import shorten
from mmssl.evaluation.tiles import exact_products

log = logging.getLogger(__name__)

TIE_WARNING = 0.01
"""Share of tied queries above which an evaluator warns that scores depend on the tie rule."""
MOST_CHOICES = 0.5
"""Share of tied choices, which count as chance, above which an evaluator warns that the score says little about the model."""


def _distinct(counts: tuple[int, ...]) -> tuple[int, ...]:
    if not counts or min(counts) < 1 or len(set(counts)) < len(counts):
        raise ValueError(f"got {list(counts)}, wanted different numbers of at least 1")
    return counts


DistinctCounts = Annotated[tuple[int, ...], AfterValidator(_distinct)]
"""Different numbers of at least 1: cut-offs of recalls, neighbours, training samples of a class."""


class EvaluatorConfig(Config):
    """Settings of every evaluator.

    Attributes:
        shards: shards to evaluate on: paths, braces or globs.
        every: interval between evaluations during training; None: at the end only.
        batch_size: samples that a process encodes at a time; changes speed and memory, not scores.
        workers: number of worker processes that decode, fewer than there are batches; 0: decode in the main process; None: as many
            as `data.workers`.
        precision: in which encoders compute: "float32", or "bf16" (autocast), which moves scores a little and is
            meant for GPUs. Heads, scores and probes stay float32 or better.
        max_samples: number of samples to evaluate on, the first ones; None: all.
        on_error: for a sample that cannot be decoded: "raise" ends the evaluation; "skip" leaves it out and counts it in n_skipped.
        cache, allow_pipe: of remote shards, as in `data`; None: as there.
    """

    shards: tuple[str, ...] = Field(min_length=1)
    every: PositiveDuration | None = None
    batch_size: int = Field(default=256, ge=1)
    workers: int | None = Field(default=None, ge=0)
    precision: TowerPrecision = "float32"
    max_samples: int | None = Field(default=None, ge=1)
    on_error: Literal["raise", "skip"] = "raise"
    cache: CacheConfig | None = None
    allow_pipe: bool | None = None

    def workers_for(self, samples: int) -> int:
        """Number of worker processes for this number of samples of a process: `workers`, but fewer than there are batches."""
        return min(self.workers or 0, max(0, -(-samples // self.batch_size) - 1))

    def remote(self) -> Remote:
        """Client for remote shards."""
        return (self.cache or CacheConfig()).build(self.allow_pipe or False)

    @abstractmethod
    def build(self, modalities: Mapping[str, Modality]) -> Evaluator:
        """Build the evaluator for the modalities of a recipe.

        Raises:
            RecipeError: it names a modality that the recipe lacks, or a file that cannot be read.
        """


class PairEvaluatorConfig(EvaluatorConfig, ABC):
    """Settings of every evaluator that compares two modalities.

    Attributes:
        pair: two different modalities.
    """

    pair: Annotated[tuple[str, str], Entries(("modality", "other modality"))]

    @field_validator("pair")
    @classmethod
    def _two(cls, pair: tuple[str, str]) -> tuple[str, str]:
        if pair[0] == pair[1]:
            raise ValueError(
                f"pair: got {list(pair)}, wanted two different modalities, because each item would find itself"
            )
        return pair


def require_usable(rows: Tensor, owner: Tensor, keys: Mapping[int, str], what: str, *, unit: bool) -> None:
    """Check that rows are finite, and with `unit` that they are not zero; the error names the key of the sample.

    Raises:
        NumericError: names the first such sample, and the number of them.
    """
    bad = ~torch.isfinite(rows).all(1)
    problem = "not finite"
    if unit and not bad.any():
        bad, problem = rows.norm(dim=1) == 0, "zero and has no direction"
    if bad.any():
        first = int(owner[bad.to(owner.device)][0])
        raise NumericError(
            f"{what} of key {keys[first]!r} (sample {first}) is {problem}; so are {int(bad.sum())} of {len(rows)}. If it is one, "
            "check that sample. If there are many, the weights are damaged: go back to an earlier checkpoint"
        )


@contextmanager
def inference(model: nn.Module, precision: TowerPrecision = "float32") -> Iterator[None]:
    """Context of inference: evaluation mode, no gradients, exact float32, but for encoders of another precision.

    The mode of every module is restored at exit.

    Args:
        model: to evaluate.
        precision: in which the encoders of an `EmbeddingModel` compute.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    before = model.precision if isinstance(model, EmbeddingModel) else precision
    try:
        if isinstance(model, EmbeddingModel):
            model.precision = precision
        with torch.no_grad(), exact_products():
            yield
    finally:
        if isinstance(model, EmbeddingModel):
            model.precision = before
        for module, training in modes:
            module.training = training


def require_modalities(modalities: Mapping[str, Modality], names: Iterable[str]) -> None:
    """Check that the recipe lists modalities with these names.

    Raises:
        RecipeError: names the missing one and those of the recipe.
    """
    for name in names:
        if name not in modalities:
            raise RecipeError(
                f"an evaluator got the modality {name!r}{did_you_mean(name, modalities)}, wanted one of the recipe's: "
                f"{sorted(modalities)}"
            )


def broadcast_scores(scores: Mapping[str, Score]) -> dict[str, Score]:
    """Broadcast the main process' scores to all processes, because rounding may differ between devices."""
    return dict(distributed.gather_objects(dict(scores))[0])


def warn_of_ties(name: str, share: float) -> None:
    """Warn that scores depend on the tie rule: the model has collapsed, or samples repeat each other."""
    if share > TIE_WARNING and distributed.is_main():
        log.warning(
            "%s: %.1f %% of the queries tie with a wrong candidate. Ties go to the earlier one in the data, so a collapsed model "
            "scores chance. Many ties mean a collapsed model, or samples that repeat each other.",
            name,
            100 * share,
        )


def cut_off_note(candidates: Mapping[str, int], ks: Sequence[int]) -> str | None:
    """What there is to say of cut-offs above the number of candidates, whose scores are None; None: there are none.

    Args:
        candidates: direction -> its number of candidates.
        ks: cut-offs.
    """
    above = [f"{way} {k} of {n}" for way, n in candidates.items() for k in ks if k > n]
    return f"not measured, because k is above the number of candidates: {shorten(above)}; lower `ks`" if above else None


def warn_of_note(name: str, scores: Mapping[str, Score]) -> None:
    """Warn of what the note among the scores of an evaluator says, if there is one."""
    if scores.get("note") and distributed.is_main():
        log.warning("%s: %s", name, scores["note"])


def warn_of_choices(name: str, share: float, reason: str) -> None:
    """Warn that most choices are ties: the model does not distinguish the candidates.

    Args:
        name: of the measurement. share: of tied choices.
        reason: what makes candidates equal to a model, and what to do.
    """
    if share > MOST_CHOICES and distributed.is_main():
        log.warning(
            "%s: %.1f %% of the choices are ties, which count as chance: the model does not distinguish these candidates. "
            "Likely reason: %s",
            name,
            100 * share,
            reason,
        )


def metric_context(values: Mapping[str, Any], metric: str) -> dict[str, float | None]:
    """Interval, chance and ceiling of a metric, looked up by name."""
    of_whole = {"acc1": "chance", "acc": "chance", "in_sync_acc": "in_sync_chance"}
    chance = values.get(f"{metric}_chance", values.get(of_whole.get(metric, "")))
    return {
        "low": values.get(f"{metric}_ci95_low"),
        "high": values.get(f"{metric}_ci95_high"),
        "chance": chance,
        "ceiling": values.get(f"{metric}_ceiling"),
    }
