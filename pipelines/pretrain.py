"""`mmssl pretrain`: train a recipe from the start, or resume it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmssl.core.errors import RecipeError

if TYPE_CHECKING:
    from mmssl.core.errors import MmsslError
    from mmssl.core.evaluator import Score
    from mmssl.recipe.model import Model
    from mmssl.recipe.recipe import Recipe

log = logging.getLogger(__name__)
RECIPE = "A YAML file, or the name of a shipped recipe such as image_text/vit_b_32."
RESUME = (
    "auto: go on from the newest valid checkpoint of the run folder, or start; never: start, and refuse a folder that holds "
    "checkpoints; or the PATH of a checkpoint or run folder to go on from."
)
DRY_RUN = "Build the run, take one step on one batch, print a summary, write nothing."
SWEEP = "Train once for each value, one run after the other; several --sweep: every combination."
SEEDS = "Train with that many seeds, from the recipe's on."
ELEMENT = "Train this run of the sweep alone, counted from 0, such as $SLURM_ARRAY_TASK_ID."


def pretrain(
    recipe: Annotated[str, typer.Argument(help=RECIPE)],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Changes to the recipe.")
    ] = None,
    resume: Annotated[str, typer.Option(metavar="auto|never|PATH", help=RESUME)] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help=DRY_RUN)] = False,
    sweep: Annotated[list[str] | None, typer.Option(metavar="KEY.PATH=A,B,C", help=SWEEP)] = None,
    seeds: Annotated[int, typer.Option(help=SEEDS)] = 1,
    element: Annotated[int | None, typer.Option(metavar="N", help=ELEMENT)] = None,
) -> None:
    """Pretrain a model on your shards.

    Examples:

    `mmssl pretrain image_text/vit_b_32 data.shards='["shards/{000000..000099}.tar"]' batch_size=256`

    `mmssl pretrain my_recipe.yaml optimizer.lr=3e-4 name=lower_rate --dry-run`

    `mmssl pretrain my_recipe.yaml --sweep objective.temperature=0.03,0.07,0.2 --seeds 3`

    `accelerate launch --num_processes 8 -m pipelines.pretrain my_recipe.yaml`

    `torchrun --nproc-per-node 8 -m pipelines.pretrain my_recipe.yaml`

    `accelerate launch --config_file configs/accelerate/fsdp2.yaml -m pipelines.pretrain my_recipe.yaml`
    """
    from mmssl.recipe.shipped import find_recipe

    wanted = find_recipe(recipe, overrides or [])
    if sweep or seeds != 1:
        run_sweep(recipe, overrides or [], wanted, sweep or [], seeds, element, try_out if dry_run else train_recipe)
    elif element is not None:
        raise RecipeError("--element: names a run of a sweep, and there is none; give --sweep or --seeds")
    elif dry_run:
        try_out(wanted)
    else:
        train_recipe(wanted, resume)


def run_sweep(
    name: str,
    overrides: list[str],
    base: Recipe,
    sweeps: list[str],
    seeds: int,
    element: int | None,
    train: Callable[[Recipe], object],
) -> None:
    """Train the runs of a sweep one after the other, and show a table of them. A run that is finished is not trained again.

    Raises:
        NumericError: a run stopped being finite; the others have been trained.
    """
    from mmssl.core.errors import NumericError
    from mmssl.recipe.shipped import find_recipe
    from mmssl.recipe.sweep import elements
    from mmssl.reporting.runs import read_run, runs_table
    from mmssl.training.runtime.console import say

    parts = elements(base.name, sweeps, seeds, base.seed)
    if element is not None and not 0 <= element < len(parts):
        raise RecipeError(f"--element: got {element}, and the sweep has {len(parts)} runs, from 0 to {len(parts) - 1}")
    chosen = parts if element is None else [parts[element]]
    recipes = [
        find_recipe(name, [*overrides, *part.overrides]) for part in chosen
    ]  # mistakes show before the first run
    failed: NumericError | None = None
    for number, recipe in enumerate(recipes, 1):
        say(f"run {number} of {len(recipes)}: {recipe.name}")
        try:
            train(recipe)
        except NumericError as error:  # a rate that is too high is what a sweep is for
            say(str(error))
            failed = error
    rows = [read_run(recipe.folder) for recipe in recipes if (recipe.folder / "recipe.yaml").exists()]
    if rows and os.environ.get("RANK", "0") == "0":
        print(runs_table(rows))
    if failed is not None:
        raise failed


def train_recipe(recipe: Recipe, resume: str = "auto") -> tuple[dict[str, Score], Model | None]:
    """Train a recipe to its end in this process (one of several under a launcher), and write its report.

    Returns:
        The latest scores, "<evaluator>/<metric>", and the trained model: on the main process, None on others.

    Raises:
        Interrupted: by a signal; says what is saved.
        MmsslError: an evaluator failed; the run and the report are complete without its scores. An error of the report is told.
    """
    from mmssl.core.errors import Interrupted, StopSignal
    from mmssl.core.evaluator import evaluation_error
    from mmssl.recipe.average_scores import choose_share
    from mmssl.recipe.load import trained
    from mmssl.recipe.resume import check_resumable
    from mmssl.reporting.tracked import log_picture
    from mmssl.training.checkpoints.read import FOLDER, checkpoints
    from mmssl.training.runtime.console import say
    from mmssl.training.runtime.lock import on_main

    launch = recipe.training.launch()
    try:
        say(f"run folder {recipe.folder}")
        # Covers the first collective too: shards missing on one machine end its process before the run begins.
        with launch.naming_lost_processes():
            on_main(lambda: check_resumable(recipe, resume))
            built = recipe.build(launch)
            scores = built.train(resume)
    except StopSignal as stop:
        saved = checkpoints(recipe.folder / FOLDER)
        what = f"the newest checkpoint is {saved[0]}" if saved else f"{recipe.folder} holds no checkpoint yet"
        raise Interrupted(f"at once; {what}", stop.number) from None
    finally:
        # Only the main process writes the report: it does not wait for the others from here on.
        launch.close()
    model = None
    if launch.is_main and checkpoints(recipe.folder / FOLDER):
        model = trained(recipe, built)
        figures = recipe.folder / "figures" if recipe.training.log.pictures else None
        say(f"finished; {_write_report(recipe, model, built.state.failures, figures)}")
        if figures is not None:
            step, files = built.state.step, sorted(figures.glob("*.png"))
            launch.reopen_trackers(recipe.folder, step, *(partial(log_picture, file=file, step=step) for file in files))
        if recipe.keep is not None:
            choose_share(recipe, recipe.folder, built.launch.device)
    if built.state.failures:
        raise evaluation_error(built.state.failures)
    return scores, model


def _write_report(recipe: Recipe, model: Model, failures: Mapping[str, MmsslError], figures: Path | None) -> str:
    """Write the report of a finished run, and say where it is; or what is wrong with it, which fails no finished run."""
    from mmssl.core.errors import MmsslError, for_people
    from mmssl.reporting.run_report import report_run
    from pipelines.data_statistics import data_statistics

    try:
        parts = [data_statistics(recipe)]
        return f"report in {report_run(recipe, model=model, failures=failures, parts=parts, figures=figures)}"
    except Exception as error:  # of disks, of decoders, of evaluators of other packages
        if not isinstance(error, MmsslError):
            log.error("the report failed", exc_info=True)
        return f"without a report, which `mmssl report {recipe.folder}` writes: {for_people(error)}"


def try_out(recipe: Recipe) -> None:
    """Dry run: build the run and take one step on one batch, without writing anything."""
    from mmssl.training.runtime.console import say

    # Starting an audit would delete the file of an earlier run.
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"audit": None})})
    launch = recipe.training.launch()
    try:
        built = recipe.build(launch)
        built.open_evaluators()
        state = built.state
        say(f"recipe {recipe.name!r}: {state.total_steps} steps of {recipe.batch_size} samples, {launch.describe()}")
        for name, encoder in state.learner.encoders.items():
            count = sum(p.numel() for p in encoder.parameters())
            trained = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
            say(f"encoder {name}: {type(encoder).__name__}, {count:,} parameters, {trained:,} trained")
        say(built.updates.describe(state.optimizer))
        state.learner.train()
        batch = next(iter(state.stream))
        for modality, views in batch.views.items():
            for name, view in views.items():
                say(f"view {modality}/{name}: {view.dtype} {list(view.shape)}")
        started = time.monotonic()
        scalars = built.step(state, batch).scalars()
        seconds = time.monotonic() - started
        say("  ".join(f"{name} {value:.4g}" for name, value in scalars.items()))
        say(f"one step, the first and slowest: {seconds:.2f} s; nothing was written")
        state.stream.close()
    finally:
        launch.close()


if __name__ == "__main__":
    from pipelines.command import single

    single(pretrain)
