"""`mmssl quickstart`: the main job on embedded data, offline, in a few minutes on two CPU cores."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.progress import progress_bar

if TYPE_CHECKING:
    from mmssl.recipe.recipe import Recipe


def quickstart(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for shards, run, results and report.")] = Path(
        "quickstart"
    ),
) -> None:
    """Make image-text shards, pretrain a small two-tower model on them, evaluate it on unseen handwriting, write a report.

    Offline, a few minutes on two CPU cores. Run again, it goes on where it stopped.

    Example: `mmssl quickstart --out DIR`
    """
    from mmssl.data import digit_scenes
    from mmssl.evaluation.report import write_results
    from mmssl.recipe.run_folder import find_recipe, load
    from mmssl.training.console import say
    from pipelines.pretrain import run
    from pipelines.reporting import report_run

    watch = Stopwatch()
    say("1/4 digit scenes: shards of pictures, captions and sounds, made from scanned handwriting")
    with progress_bar("scenes") as progress:
        digit_scenes.write(out / "shards", progress=progress)
    watch.lap("shards")

    say("2/4 the same linear probe on the untrained encoder, for comparison")
    recipe = find_recipe("quickstart/image_text", overrides(out))
    untrained = untrained_probe(recipe)
    watch.lap("untrained_probe")

    say("3/4 pretraining and evaluation: what `mmssl pretrain quickstart/image_text` does")
    scores = run(recipe)
    watch.lap("pretrain")

    say("4/4 report")
    results: dict[str, dict[str, Any]] = {name: {} for name in recipe.evaluators}
    for name, value in scores.items():
        evaluator, _, metric = name.partition("/")
        results[evaluator][metric] = value
    results["linear_probe"]["untrained_acc1"] = untrained
    report_run(recipe, out / "report.html", results, load(recipe.folder))
    watch.lap("report")
    write_results(out / "results.json", {**results, "seconds": watch.seconds})
    print_table(results, watch.seconds["total"])
    say(f"results {out / 'results.json'}, report {out / 'report.html'}, run folder {recipe.folder}")
    say(f"next: mmssl evaluate {recipe.folder} --retrieval {out / 'shards' / 'validation'}")


def overrides(out: Path) -> list[str]:
    """The shipped recipe, turned to the folder at hand."""
    import json

    def folder(split: str) -> str:
        return json.dumps([str(out / "shards" / split)])

    return [
        f"output={json.dumps(str(out))}",
        "name=run",
        f"data.shards={folder('train')}",
        f"evaluators.validation.shards={folder('validation')}",
        *(f"evaluators.{name}.shards={folder('test')}" for name in ("zero_shot", "retrieval", "linear_probe")),
        f"evaluators.linear_probe.train_shards={folder('train')}",
    ]


def untrained_probe(recipe: Recipe) -> float:
    """Accuracy of the recipe's linear probe on its encoders as they are before training."""
    from mmssl.core.encoder import EmbeddingModel

    modalities = recipe.build_modalities()
    learner = recipe.build_learner(modalities)
    probe, _ = recipe.build_evaluators(modalities)["linear_probe"]
    model = EmbeddingModel(dict(learner.encoders.items()), learner.objective.heads())
    return float(str(dict(probe.evaluate(model))["acc1"]))


class Stopwatch:
    """Seconds between laps, by name, and in all."""

    def __init__(self) -> None:
        self._last = self._start = time.monotonic()
        self.seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Call what went by since the last lap `name`."""
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 2)
        self.seconds["total"] = round(now - self._start, 2)
        self._last = now


def print_table(results: dict[str, dict[str, Any]], seconds: float) -> None:
    """The figures that matter, beside chance."""
    from rich.console import Console
    from rich.table import Table

    zero_shot, retrieval, probe = results["zero_shot"], results["retrieval"], results["linear_probe"]
    table = Table(
        "on unseen handwriting", "score", "compare", title=f"quickstart, {seconds:.0f} s", title_justify="left"
    )
    rows = [
        ("zero-shot digit accuracy", zero_shot["acc1"], f"chance {zero_shot['chance']:.3f}"),
        ("linear probe accuracy", probe["acc1"], f"untrained encoder {probe['untrained_acc1']:.3f}"),
    ]
    for direction in ("image_to_text", "text_to_image"):
        chance, ceiling = retrieval[f"{direction}_R@1_chance"], retrieval[f"{direction}_R@1_ceiling"]
        compare = f"chance {chance:.3f}, at most {ceiling:.3f}: captions repeat"
        rows.append((f"{direction.replace('_', ' ')} R@1", retrieval[f"{direction}_R@1"], compare))
    for name, value, compare in rows:
        table.add_row(name, f"{value:.3f}", compare)
    Console().print(table)


if __name__ == "__main__":
    from pipelines.cli import single

    single(quickstart)
