"""Averages of the weights of models of one architecture: interpolation (WiSE-FT), uniform and greedy soups."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmssl.core.errors import CheckpointError
from mmssl.core.objective import Learner
from mmssl.recipe.portable import with_tokenizers
from mmssl.recipe.recipe import Recipe
from mmssl.training.checkpoints.manifest import FolderWriter
from mmssl.training.checkpoints.tensors import dump_tensors

State = Mapping[str, Tensor]


def average_states(states: Sequence[State], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Weighted mean of state dicts, tensor by tensor, in float64; integers (counters) are those of the last.

    Running statistics of batch normalisation are averaged like weights.

    Args:
        states: of equal names and shapes.
        weights: one for each, with sum 1; None: equal ones.

    Raises:
        CheckpointError: names or shapes differ.
    """
    shares = [1 / len(states)] * len(states) if weights is None else list(weights)
    first = states[0]
    for number, state in enumerate(states[1:], 1):
        other = [name for name in first.keys() | state.keys() if _shape(first, name) != _shape(state, name)]
        if other:
            raise CheckpointError(
                f"got another architecture in model {number} than in model 0: {', '.join(sorted(other)[:4])}, wanted models of one "
                "recipe (adapters merged)"
            )
    made = {}
    for name, x in first.items():
        if not x.is_floating_point():
            made[name] = states[-1][name].clone()
            continue
        used = [(share, state[name]) for share, state in zip(shares, states, strict=True) if share]
        # A single model stays bit by bit what it is.
        total = used[0][1].double() if len(used) == 1 else sum(share * tensor.double() for share, tensor in used)
        assert isinstance(total, Tensor)
        made[name] = total.to(x.dtype)
    return made


def greedy_soup(states: Sequence[State], score: Callable[[State], float]) -> tuple[dict[str, Tensor], list[int], float]:
    """Greedy soup (Wortsman et al. 2022, arXiv:2203.05482): from the best model on, add each that does not lower the score.

    Args:
        states: of equal names and shapes.
        score: of a state on validation data; larger is better.

    Returns:
        The average, the numbers of the models in it, in the order of the scores of each alone, and its score.
    """
    own = [score(state) for state in states]
    order = sorted(range(len(states)), key=lambda i: -own[i])
    taken, best = [order[0]], own[order[0]]
    for number in order[1:]:
        found = score(average_states([states[i] for i in [*taken, number]]))
        if found >= best:
            taken, best = [*taken, number], found
    return average_states([states[i] for i in taken]), taken, best


def write_model(folder: Path, recipe: Recipe, learner: Learner, facts: Mapping[str, object]) -> None:
    """Write a learner as a checkpoint folder that loads and evaluates, and that no run resumes from; replaces an earlier one.

    Tokenizers of transformers are copied into it, so that the folder can be moved.

    Args:
        folder: made, with its parents.
        recipe: builds the learner; its adapters and initial weights are left out.
        learner: adapters merged.
        facts: how it was made, for state.json.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.unfinished")
    for left in (temporary, folder):
        shutil.rmtree(left, ignore_errors=True)
    writer = FolderWriter(temporary)
    plain = with_tokenizers(
        recipe.model_copy(update={"lora": {}, "keep": None, "weights": None, "partial": False}), temporary
    )
    state = {name: x.detach().cpu().contiguous() for name, x in learner.state_dict().items()}
    numbers = {"evaluated": dict(learner.objective.evaluated()), **facts}
    writer.write("model.safetensors", lambda file: dump_tensors(state, file))
    writer.write("state.json", lambda file: file.write(json.dumps(numbers, indent=1).encode()))
    writer.write("recipe.yaml", lambda file: file.write(plain.to_yaml().encode()))
    writer.finish()
    temporary.rename(folder)


def snapshot(learner: Learner) -> dict[str, Tensor]:
    """A copy of a learner's tensors on the CPU."""
    return {name: x.detach().to("cpu", copy=True) for name, x in learner.state_dict().items()}


@torch.no_grad()
def load_tensors(learner: Learner, state: State) -> None:
    """Load a state of the same architecture."""
    learner.load_state_dict(dict(state))


def _shape(state: State, name: str) -> object:
    return state[name].shape if name in state else None
