"""What the second objective of a sum costs: `python3 tools/run.py python tools/bench_sums.py RECIPE ... --json FILE`.

For each recipe of a weighted sum, one full optimizer step of the sum and one of its first part alone (CLIP), with the same weights,
on the same real batch: scenes of digits with captions, made and augmented as the recipe says. Both take turns, and medians are
compared. The cost is the sum's seconds over those of its first part; `ratio` is the reverse, so that above 1 would be cheaper.

Published, of the same first part: SLIP 2.67, MaskCLIP 1.56, A-CLIP 1.16 (Yang et al. 2023, arXiv:2212.08653, YFCC15M, ViT-B/16).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mmssl.core.batch import Batch
from mmssl.core.plan import Plan
from mmssl.datasets import digit_scenes
from mmssl.recipe.recipe import Recipe
from mmssl.recipe.shipped import find_recipe
from mmssl.training.runtime.launch import Launch
from mmssl.training.steps.state import TrainState

Step = Callable[[], float]
"""One optimizer step; returns its loss."""


def real_batch(recipe: Recipe) -> Batch:
    """The first training batch of a recipe."""
    modalities = recipe.build_modalities()
    learner = recipe.build_learner(modalities, Plan.unknown())
    stream = recipe.data.build(modalities, learner.objective.needs(), batch_size=recipe.batch_size, seed=recipe.seed)
    try:
        return next(iter(stream))
    finally:
        stream.close()


def make_step(recipe: Recipe, batch: Batch, launch: Launch) -> Step:
    """The step that `mmssl pretrain` would run, on one batch again and again."""
    modalities = recipe.build_modalities()
    learner = recipe.build_learner(modalities, Plan.unknown())
    launch.place(learner)
    training = recipe.training
    state = TrainState(learner.train(), training.optimizer.build(learner), None, 10**6)  # type: ignore[arg-type]
    step = training.step.build(learner, launch.wrap(learner), launch, recipe.seed, training.clip_norm)
    return lambda: float(step(state, batch).output.total)


def measure(name: str, overrides: list[str], repeats: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Median seconds of a step of the sum and of its first part."""
    whole = find_recipe(name, overrides)
    parts = getattr(whole.objective, "objectives", None)
    if not parts:
        raise SystemExit(f"{name}: got an objective of kind {whole.objective.kind!r}, wanted a weighted sum")  # type: ignore[attr-defined]
    first, part = next(iter(parts.items()))
    launch = whole.training.launch()
    batch = real_batch(whole)
    alone = whole.model_copy(update={"objective": part.objective, "modalities": _used(whole, part.objective)})
    steps = {"sum": make_step(whole, batch, launch), "first": make_step(alone, batch, launch)}
    for step in steps.values():
        step()  # unmeasured: memory and moments come into being
    times: dict[str, list[float]] = {side: [] for side in steps}
    for turn in range(repeats):
        for side in list(steps) if turn % 2 == 0 else list(steps)[::-1]:
            start = clock()
            steps[side]()
            times[side].append(clock() - start)
    ours, peer = (statistics.median(times[side]) for side in ("sum", "first"))
    cost = ours / peer
    return {"recipe": name, "first": first, "ours": ours, "peer": peer, "ratio": peer / ours, "cost": cost}


def _used(recipe: Recipe, objective: Any) -> dict[str, Any]:
    """The modalities with the views of one part only: others would be refused as without effect."""
    used = objective.views
    return {
        name: config.model_copy(update={"views": {k: v for k, v in config.views.items() if k == used.get(name)}})
        if getattr(config, "views", None)
        else config
        for name, config in recipe.modalities.items()
    }


def main() -> None:
    """Read arguments, measure, print, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("recipes", nargs="+", help="shipped recipes of weighted sums, or files")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: all threads together")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of all recipes")
    parser.add_argument("--json", type=Path, help="write the result here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        digit_scenes.write(folder, train=max(64, arguments.batch), validation=1, test=1, shards=1, size=128)
        shared = [
            f"data.shards=[{folder}/train]", "data.workers=0", f"batch_size={arguments.batch}", "precision=fp32",
            "log.trackers=[]", *arguments.set,
        ]  # fmt: skip
        for name in arguments.recipes:
            row = measure(name, shared, arguments.repeats, clock)
            rows.append(row)
            print(
                f"{name}, batch {arguments.batch}: {row['ours']:.3f} s a step, {row['first']} alone {row['peer']:.3f} s: "
                f"{row['cost']:.2f} times the cost",
                flush=True,
            )
    if arguments.json:
        unit = f"{arguments.clock} seconds a step, {arguments.threads} threads"
        arguments.json.write_text(json.dumps(rows[-1] | {"unit": unit, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
