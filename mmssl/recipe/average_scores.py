"""Scores of averaged models: the sweep of the forgetting guard after a run, and soups of checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from mmssl.core.errors import CheckpointError, RecipeError
from mmssl.core.evaluator import Evaluator
from mmssl.core.objective import Learner
from mmssl.recipe.average import State, average_states, greedy_soup, load_tensors, snapshot, write_model
from mmssl.recipe.keep import Point, PointScores, choose_point, points_table, refuse_less_is_better
from mmssl.recipe.load import load_learner, start_learner_of
from mmssl.recipe.recipe import Recipe
from mmssl.recipe.suite import evaluation_modalities
from mmssl.training.checkpoints.manifest import replace_text
from mmssl.training.runtime.console import say

KEPT = "kept"


@dataclass
class Scorer:
    """Measures states of one learner by a suite; a context manager that closes the evaluators' shards.

    Attributes:
        learner: of the architecture; its weights change.
        evaluators: name -> evaluator.
    """

    learner: Learner
    evaluators: Mapping[str, Evaluator]

    @classmethod
    def of(cls, recipe: Recipe, learner: Learner, configs: Mapping[str, Any]) -> Self:
        """Build and open the evaluators."""
        available = evaluation_modalities(recipe.build_modalities())
        built = {name: config.build(available) for name, config in configs.items()}
        for evaluator in built.values():
            evaluator.open()
        return cls(learner, built)

    def __call__(self, state: State) -> PointScores:
        """Scores of a state, by "<evaluator>/<metric>"."""
        load_tensors(self.learner, state)
        model = self.learner.embedding_model().eval()
        return {f"{name}/{k}": x for name, one in self.evaluators.items() for k, x in one.evaluate(model)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with ExitStack() as stack:
            for evaluator in self.evaluators.values():
                stack.callback(evaluator.close)


def choose_share(recipe: Recipe, folder: Path, device: torch.device) -> Point:
    """Measure the weights between start and end of a finished run, write `kept` and `keep.json`, and print the table.

    Args:
        recipe: with `keep`. folder: of the run. device: for the measures.

    Returns:
        The chosen point.
    """
    keep = recipe.keep
    assert keep is not None
    _, learner, checkpoint = load_learner(folder)
    end, begin = snapshot(learner), snapshot(start_learner_of(recipe))
    learner.to(device)
    points = []
    with Scorer.of(recipe, learner, keep.suite(recipe.evaluators)) as scorer:
        for number in range(keep.points):
            share = number / (keep.points - 1)
            points.append(Point(share, scorer(average_states([begin, end], [1 - share, share]))))
            say(f"keep: share {share:.2f}, {number + 1} of {keep.points} points measured")
    chosen = choose_point(points, keep)
    load_tensors(learner, average_states([begin, end], [1 - chosen.share, chosen.share]))
    write_model(folder / KEPT, recipe, learner, {"share": chosen.share, "end": checkpoint.name})
    shown = points_table(points, chosen, keep)
    replace_text(folder / "keep.txt", shown)
    result = {"chosen": chosen.share, "points": [{"share": p.share, "scores": dict(p.scores)} for p in points]}
    replace_text(folder / "keep.json", json.dumps(result, indent=1, allow_nan=False))
    say(f"{shown}\nthe chosen weights are in {folder / KEPT}")
    return chosen


def average_runs(
    sources: Sequence[Path], out: Path, weights: Sequence[float] | None, greedy: str | None, suite: Mapping[str, Any]
) -> str:
    """Average models of one recipe into a checkpoint folder; returns a sentence on what was made.

    Args:
        sources: run folders or checkpoint folders.
        out: folder of the result.
        weights: one for each source, with sum 1; None: equal ones.
        greedy: score of a greedy soup, "<evaluator>/<metric>"; None: all sources are averaged.
        suite: evaluators of the greedy soup; empty: those of the first recipe.

    Raises:
        CheckpointError: the sources differ in architecture, or `out` exists. RecipeError: no such score.
    """
    if out.exists():
        raise CheckpointError(f"{out}: exists already; choose another folder, or remove it")
    recipe, learner, _ = load_learner(sources[0])
    if torch.cuda.is_available():
        learner.cuda()
    states = [snapshot(learner), *(snapshot(load_learner(path)[1]) for path in sources[1:])]
    if greedy is None:
        shares = [1 / len(states)] * len(states) if weights is None else list(weights)
        state, said = average_states(states, shares), ", ".join(f"{share:.3g}" for share in shares)
        taken = [*range(len(states))]
    else:
        try:
            refuse_less_is_better(greedy)
        except ValueError as error:
            raise RecipeError(f"--greedy: {error}") from None
        configs = dict(suite) or dict(recipe.evaluators)
        if greedy.partition("/")[0] not in configs:
            raise RecipeError(
                f"--greedy: got {greedy!r}, wanted '<evaluator>/<metric>' of {sorted(configs) or 'a suite'}"
            )
        average_states(states)  # models that do not fit are found before the first is measured
        with Scorer.of(recipe, learner, {greedy.partition("/")[0]: configs[greedy.partition("/")[0]]}) as scorer:
            state, taken, best = greedy_soup(states, lambda some: Point(0.0, scorer(some)).value(greedy))
        said = f"greedy, {greedy} {best:.4f}"
    load_tensors(learner, state)
    write_model(out, recipe, learner, {"averaged": [str(sources[i].name) for i in taken]})
    return (
        f"{out}: average of {len(taken)} of {len(sources)} models ({said}): {', '.join(str(sources[i]) for i in taken)}"
    )
