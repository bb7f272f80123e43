"""Part of a report: statistics of the shards that a run trained on, and of those that it was evaluated on."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmssl.core.evaluator import Evaluator
    from mmssl.data.modality import Modality
    from mmssl.evaluation.common import EvaluatorConfig
    from mmssl.recipe.recipe import Recipe
    from mmssl.reporting.measures import Grid, ReportPart

log = logging.getLogger(__name__)
SAMPLE = 200
"""Samples of each data set that are decoded."""
SECONDS = 60.0
"""Time for the samples of all data sets together; of each at least one is decoded."""
NOTE = (
    f"What `mmssl shards stats` measures: sizes in bytes of all members; everything else of at most {SAMPLE} samples of a set, "
    f"evenly spaced, as far as they are decoded in {SECONDS:g} s for all sets."
)
WantedShards = dict[tuple[str, ...], tuple[list[str], dict[str, "Modality"]]]
"""Shards -> what they are for, and the modalities that are read."""


def data_statistics(recipe: Recipe, measured: Mapping[str, EvaluatorConfig] | None = None) -> ReportPart:
    """Number of samples, members, and their lengths, sizes, durations and classes, for each set of shards.

    Sets that are remote or cannot be read have a sentence instead, whatever the error: the report of a finished run needs none.

    Args:
        recipe: of the run.
        measured: further evaluators by name, for example those of results.
    """
    from mmssl.recipe.suite import LABEL, evaluation_modalities
    from mmssl.reporting.measures import ReportPart
    from pipelines.check_recipe import sources_of

    available = evaluation_modalities(recipe.build_modalities())
    read = {name: modality for name, modality in available.items() if name in recipe.modalities or name == LABEL}
    wanted: WantedShards = {}
    for name, shards in sources_of(recipe).items():
        _add(wanted, shards, f"training, source {name}" if recipe.data.sources else "training", read)
    for name, evaluator in _evaluators(recipe, measured or {}, available):
        for shards, used in (one for kept in evaluator.kept for one in kept.reads):
            _add(wanted, shards, name, used)
    grids, end = [], time.monotonic() + SECONDS
    for left, (shards, use) in zip(range(len(wanted), 0, -1), wanted.items(), strict=True):
        grids.append(_grid(shards, *use, max(0.0, end - time.monotonic()) / left))
    return ReportPart("Data", NOTE, grids)


def _add(wanted: WantedShards, shards: Sequence[str], purpose: str, used: Mapping[str, Modality]) -> None:
    purposes, modalities = wanted.setdefault(tuple(shards), ([], {}))
    if purpose not in purposes:
        purposes.append(purpose)
    modalities |= used


def _evaluators(
    recipe: Recipe, measured: Mapping[str, EvaluatorConfig], modalities: Mapping[str, Modality]
) -> Iterable[tuple[str, Evaluator]]:
    """Those that can be built: a file of class names may have moved."""
    for name, config in {**recipe.evaluators, **measured}.items():
        try:
            evaluator = config.build(modalities)
        except Exception as error:  # of evaluators of other packages, too
            log.info("no statistics of the shards of %s: %s", name, error)
            continue
        yield name, evaluator


def _grid(shards: tuple[str, ...], purposes: Sequence[str], used: Mapping[str, Modality], seconds: float) -> Grid:
    from mmssl.data.shards.patience import without_secrets
    from mmssl.reporting.measures import Grid

    where = " ".join(map(without_secrets, shards))
    return Grid(f"{', '.join(purposes)}: {where}", ("", ""), _rows(shards, used, seconds))


def _rows(shards: tuple[str, ...], used: Mapping[str, Modality], seconds: float) -> list[tuple[str, str]]:
    from mmssl.core.errors import for_people
    from mmssl.curation.stats import measure_shards
    from mmssl.data.shards.storage import is_remote

    if any(map(is_remote, shards)):
        return [("not measured", "they are remote; `mmssl shards stats` reads them")]
    try:
        return measure_shards(shards, used, sample=SAMPLE, seconds=seconds).rows()
    except Exception as error:  # of disks, decoders and modalities of other packages
        log.info("no statistics of %s", shards, exc_info=True)
        return [("not measured", str(for_people(error)))]
