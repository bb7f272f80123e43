"""Part of a report: statistics of the shards that a run trained on, and of those that it was evaluated on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmssl.core.evaluator import Evaluator
    from mmssl.data.modality import Modality
    from mmssl.evaluation.common import EvaluatorConfig
    from mmssl.recipe.recipe import Recipe
    from mmssl.reporting.measures import Grid, ReportPart

SAMPLE = 200
"""Samples of each data set that are decoded."""
NOTE = (
    f"What `mmssl shards stats` measures: sizes in bytes of all members; everything else of at most {SAMPLE} samples of a set, "
    "evenly spaced."
)
Wanted = dict[tuple[str, ...], tuple[list[str], dict[str, "Modality"]]]
"""Shards -> what they are for, and the modalities that are read."""


def data_statistics(recipe: Recipe, measured: Mapping[str, EvaluatorConfig] | None = None) -> ReportPart:
    """Number of samples, members, and their lengths, sizes, durations and classes, for each set of shards.

    Sets that are remote or cannot be read have a sentence instead.

    Args:
        recipe: of the run.
        measured: further evaluators by name, such as those of results.
    """
    from mmssl.recipe.suite import LABEL, evaluation_modalities
    from mmssl.reporting.measures import ReportPart
    from pipelines.check_recipe import sources_of

    available = evaluation_modalities(recipe.build_modalities())
    read = {name: modality for name, modality in available.items() if name in recipe.modalities or name == LABEL}
    wanted: Wanted = {}
    for name, shards in sources_of(recipe).items():
        _add(wanted, shards, f"training, source {name}" if recipe.data.sources else "training", read)
    for name, evaluator in _evaluators(recipe, measured or {}, available):
        for shards, used in (one for kept in evaluator.kept for one in kept.reads):
            _add(wanted, shards, name, used)
    return ReportPart("Data", NOTE, [_grid(recipe, shards, *use) for shards, use in wanted.items()])


def _add(wanted: Wanted, shards: Sequence[str], purpose: str, used: Mapping[str, Modality]) -> None:
    purposes, modalities = wanted.setdefault(tuple(shards), ([], {}))
    if purpose not in purposes:
        purposes.append(purpose)
    modalities |= used


def _evaluators(
    recipe: Recipe, measured: Mapping[str, EvaluatorConfig], modalities: Mapping[str, Modality]
) -> Iterable[tuple[str, Evaluator]]:
    """Those that can be built: a file of class names may have moved."""
    from mmssl.core.errors import MmsslError

    for name, config in {**recipe.evaluators, **measured}.items():
        try:
            yield name, config.build(modalities)
        except MmsslError:
            continue


def _grid(recipe: Recipe, shards: tuple[str, ...], purposes: Sequence[str], used: Mapping[str, Modality]) -> Grid:
    from mmssl.data.shards.patience import without_secrets
    from mmssl.reporting.measures import Grid

    where = " ".join(map(without_secrets, shards))
    return Grid(f"{', '.join(purposes)}: {where}", ("", ""), list(_rows(recipe, shards, used)))


def _rows(recipe: Recipe, shards: tuple[str, ...], used: Mapping[str, Modality]) -> Iterator[tuple[str, str]]:
    from mmssl.core.errors import MmsslError
    from mmssl.curation.stats import measure_shards
    from mmssl.data.shards.storage import is_remote

    if any(map(is_remote, shards)):
        yield "not measured", "they are remote; `mmssl shards stats` reads them"
        return
    try:
        yield from measure_shards(shards, used, sample=SAMPLE).rows()
    except MmsslError as error:
        yield "not measured", str(error)
