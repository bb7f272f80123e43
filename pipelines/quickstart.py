"""`mmssl quickstart`: pretrain and evaluate on built-in data, offline, in minutes on two CPU cores."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.progress import progress_bar

if TYPE_CHECKING:
    from mmssl.recipe.recipe import Recipe

RECIPES = {
    frozenset({"image", "text"}): "quickstart/image_text",
    frozenset({"image", "text", "audio"}): "quickstart/image_text_audio",
    frozenset({"video", "audio"}): "quickstart/video_audio",
    frozenset({"array", "text"}): "quickstart/array_text",
    frozenset({"series", "text"}): "quickstart/series_text",
}
"""Modalities -> shipped recipe. They read `quickstart/shards`, `clips` (moving pictures), `land` (arrays) or `heart` (series)."""

CLIPS: dict[str, Any] = {
    **{"train": 1600, "validation": 100, "test": 200},
    **{"seconds": 3.0, "fps": 8.0, "size": 32, "rate": 8000},
}
"""Size of the clips for two cores in minutes; longer than the views, which are cropped in time."""


def quickstart(
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder for shards, run, results and report. Default: quickstart, or quickstart_A_B..."
        ),
    ] = None,
    modalities: Annotated[
        str,
        typer.Option(
            metavar="A,B,...", help="image,text or image,text,audio or video,audio or array,text or series,text."
        ),
    ] = "image,text",
) -> None:
    """Make shards, pretrain a small model that aligns the modalities, evaluate it on unseen handwriting, write a report.

    Offline, a few minutes on two CPU cores. Run it again to resume.

    Examples:

    `mmssl quickstart --out DIR`

    `mmssl quickstart --modalities image,text,audio`

    `mmssl quickstart --modalities video,audio`
    """
    from mmssl.recipe.shipped import find_recipe
    from mmssl.reporting.report import write_results
    from mmssl.reporting.run_report import report_run
    from mmssl.training.runtime.console import say
    from pipelines.data_statistics import data_statistics
    from pipelines.pretrain import train_recipe

    name = recipe_for(modalities)
    out = out or Path("quickstart" if name == "quickstart/image_text" else name.replace("/", "_"))
    watch = Stopwatch()
    say("1/4 digit scenes: shards made from scanned handwriting")
    with progress_bar("scenes") as progress:
        write_shards(name, out, progress)
    watch.lap("shards")

    say("2/4 the same linear probes on the untrained encoders, for comparison")
    placed = relocated(find_recipe(name), out)
    recipe = find_recipe(name, [f"output={quoted(str(out))}", "name=run", *placed])
    untrained = untrained_probes(recipe)
    watch.lap("untrained_probe")

    say(f"3/4 pretraining and evaluation: what `mmssl pretrain {name}` does")
    scores, model = train_recipe(recipe)
    watch.lap("pretrain")

    say("4/4 report")
    results: dict[str, dict[str, Any]] = {name: {} for name in recipe.evaluators}
    for key, value in scores.items():
        evaluator, _, metric = key.partition("/")
        results[evaluator][metric] = value
    for evaluator, accuracy in untrained.items():
        results[evaluator]["untrained_acc1"] = accuracy
    report_run(recipe, out / "report.html", results, model, parts=[data_statistics(recipe)])
    watch.lap("report")
    write_results(out / "results.json", {**results, "seconds": watch.seconds})
    print_table(recipe, results, watch.seconds["total"])
    say(f"results {out / 'results.json'}, report {out / 'report.html'}, run folder {recipe.folder}")
    say(f"next: mmssl evaluate {recipe.folder}")


def recipe_for(modalities: str) -> str:
    """The shipped recipe for "a,b,c".

    Raises:
        RecipeError: none exists; lists the modalities of those that do.
    """
    from mmssl.core.errors import RecipeError

    wanted = frozenset(name.strip() for name in modalities.split(","))
    if wanted not in RECIPES:
        known = "; ".join(recipe.partition("/")[2].replace("_", ",") for recipe in RECIPES.values())
        raise RecipeError(f"--modalities: got {modalities!r}, wanted one of: {known}")
    return RECIPES[wanted]


def write_shards(name: str, out: Path, progress: Any) -> None:
    """Write the shards that the recipe reads."""
    if "video" in name:
        from mmssl.datasets import moving_scenes

        moving_scenes.write(out / "clips", **CLIPS, progress=progress)
    elif "array" in name:
        from mmssl.datasets import land

        land.write(out / "land", progress=progress)
    elif "series" in name:
        from mmssl.datasets import heart

        heart.write(out / "heart", progress=progress)
    else:
        from mmssl.datasets import digit_scenes

        digit_scenes.write(out / "shards", progress=progress)


def relocated(recipe: Recipe, out: Path) -> list[str]:
    """Overrides that move the shipped recipe's folders `quickstart/...` to `out`."""

    def turned(shards: tuple[str, ...]) -> str:
        return quoted([str(out / Path(path).relative_to("quickstart")) for path in shards])

    overrides = [f"data.shards={turned(recipe.data.shards or ())}"]
    for name, evaluator in recipe.evaluators.items():
        overrides.append(f"evaluators.{name}.shards={turned(evaluator.shards)}")
        if evaluator.kind == "linear_probe":
            overrides.append(f"evaluators.{name}.train_shards={turned(evaluator.train_shards)}")
    return overrides


def quoted(value: Any) -> str:
    """The value as YAML for an override."""
    import json

    return json.dumps(value)


def untrained_probes(recipe: Recipe) -> dict[str, float]:
    """Accuracy of the recipe's linear probes on its untrained encoders, by evaluator."""
    from mmssl.recipe.load import start_of

    model = start_of(recipe)
    built = recipe.build_evaluators(model.modalities)
    accuracies = {}
    for name in (name for name, config in recipe.evaluators.items() if config.kind == "linear_probe"):
        with built[name][0] as probe:
            accuracies[name] = float(str(dict(probe.evaluate(model.embedding))["acc1"]))
    return accuracies


class Stopwatch:
    """Seconds between laps, by name, and in all."""

    def __init__(self) -> None:
        self._last = self._start = time.monotonic()
        self.seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Record the seconds since the last lap as `name`."""
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 2)
        self.seconds["total"] = round(now - self._start, 2)
        self._last = now


def print_table(recipe: Recipe, results: Mapping[str, Mapping[str, Any]], seconds: float) -> None:
    """Print the main scores beside chance."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "on unseen handwriting", "score", "compare", title=f"quickstart, {seconds:.0f} s", title_justify="left"
    )
    for name, evaluator in recipe.evaluators.items():
        for row in table_rows(evaluator, results[name]) if name != "validation" else ():
            table.add_row(*row)
    Console().print(table)


def table_rows(evaluator: Any, scores: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Rows (what, score, what to compare it with) of one evaluator."""
    if evaluator.kind == "zero_shot":
        return [
            (
                f"{evaluator.modality}: zero-shot digit accuracy",
                f"{scores['acc1']:.3f}",
                f"chance {scores['chance']:.3f}",
            )
        ]
    if evaluator.kind == "linear_probe":
        untrained = f"untrained encoder {scores['untrained_acc1']:.3f}"
        return [(f"{evaluator.modality}: linear probe accuracy", f"{scores['acc1']:.3f}", untrained)]
    if evaluator.kind == "offset":
        a, b = evaluator.pair
        late = f"{b} late by {', '.join(f'{offset:g}' for offset in evaluator.offsets[1:])} s"
        curve = ", ".join(f"{scores[f'R@1_at_{offset:g}']:.3f}" for offset in evaluator.offsets[1:])
        return [
            (
                f"{a}: own moment of the {b} found",
                f"{scores['in_sync_acc']:.3f}",
                f"chance {scores['in_sync_chance']:.3f}",
            ),
            (f"{a} to {b} R@1 of {scores['n']}, in sync", f"{scores['R@1_at_0']:.3f}", f"{late}: {curve}"),
        ]
    if evaluator.kind == "sides":
        a, b = evaluator.pair
        return [(f"{a}: {b} told from its mirror image", f"{scores['acc']:.3f}", f"chance {scores['chance']:.3f}")]
    rows = []
    for a, b in (evaluator.pair, evaluator.pair[::-1]):
        ceiling = scores[f"{a}_to_{b}_R@1_ceiling"]
        repeats = (
            f", at most {ceiling:.3f}: {'captions' if 'text' in (a, b) else 'samples'} repeat" if ceiling < 1 else ""
        )
        chance = f"chance {scores[f'{a}_to_{b}_R@1_chance']:.3f}{repeats}"
        rows.append((f"{a} to {b} R@1 of {scores['n']}", f"{scores[f'{a}_to_{b}_R@1']:.3f}", chance))
    return rows


if __name__ == "__main__":
    from pipelines.command import single

    single(quickstart)
