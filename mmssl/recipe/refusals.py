"""What a run of a recipe would refuse in its shards at the start: for checks of shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mmssl.core.batch import Needs
from mmssl.core.errors import MmsslError
from mmssl.data.modality import Modality
from mmssl.recipe.recipe import Recipe


def refusals(recipe: Recipe, modalities: Mapping[str, Modality], needs: Needs) -> Iterator[str]:
    """The errors with which a run of one process would end while it opens its sources, its stream and its evaluators.

    Args:
        recipe: of the run.
        modalities: from `recipe.build_modalities`.
        needs: views of the objective, see `all_needs`.
    """
    try:
        recipe.data.build(modalities, needs, batch_size=recipe.batch_size, seed=recipe.seed).close()
    except (MmsslError, ValueError) as error:
        yield f"data: {error}"
    try:
        evaluators = recipe.build_evaluators(modalities)
    except MmsslError as error:
        yield str(error)
        return
    for name, (evaluator, _) in evaluators.items():
        try:
            with evaluator:
                evaluator.open()
        except MmsslError as error:
            yield f"evaluators.{name}: {error}"
