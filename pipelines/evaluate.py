"""`mmssl evaluate`: measure a checkpoint on shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipelines.outputs import file_to_write

if TYPE_CHECKING:
    from mmssl.core.evaluator import Evaluator, Score
    from mmssl.recipe.model import Model
    from mmssl.training.runtime.launch import Launch

MORE = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SUITE|KEY.PATH=VALUE",
        help="A YAML file with `evaluators:`, as in a recipe; changes to the recipe, as `modalities.text.captions=lines`.",
    ),
]
PROBE = Annotated[
    tuple[str, str] | None,
    typer.Option(metavar="TRAIN TEST", help="Fit a linear classifier on TRAIN, measure it on TEST."),
]
OUT = Annotated[
    Path | None, typer.Option(metavar="FILE", callback=file_to_write, help="Write the scores here, as JSON.")
]
Results = dict[str, dict[str, "Score"]]


def evaluate(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="A run folder or a checkpoint folder; or a recipe: its model as it is before training."),
    ],
    more: MORE = None,
    zero_shot: Annotated[
        str | None, typer.Option(metavar="SHARDS", help="Classify these samples (with .cls) by prompts.")
    ] = None,
    classnames: Annotated[
        str | None, typer.Option(metavar="FILE|A,B,...", help="For --zero-shot: class names, one a line, or listed.")
    ] = None,
    templates: Annotated[
        str, typer.Option(metavar="FILE|simple|plain", help="For --zero-shot: sentences with {} for the name.")
    ] = "simple",
    retrieval: Annotated[str | None, typer.Option(metavar="SHARDS", help="Search these samples both ways.")] = None,
    linear_probe: PROBE = None,
    modality: Annotated[
        str | None, typer.Option(help="What is classified. Default: the first that is not text.")
    ] = None,
    pair: Annotated[
        str | None, typer.Option(metavar="A,B", help="For --retrieval. Default: the first two of the shared space.")
    ] = None,
    which: Annotated[str, typer.Option(metavar="best|last", help="Which checkpoint of a run folder.")] = "best",
    ema: Annotated[bool, typer.Option(help="Take averaged weights where the run kept them.")] = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples encoded at a time.")] = 256,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode.")] = 0,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda")] = "auto",
    out: OUT = None,
) -> None:
    """Measure a trained model: zero-shot classification, retrieval, linear probe.

    SHARDS are a folder, a path or a brace pattern; flags add to what the suite names. With neither, the recipe's own
    evaluators run.

    Examples:

    `mmssl evaluate runs/vit_b_32 suite.yaml --out results.json`

    `mmssl evaluate runs/vit_b_32 --zero-shot 'test/{000000..000007}.tar' --classnames classnames.txt`

    `mmssl evaluate runs/vit_b_32 --retrieval test --linear-probe train test`

    `mmssl evaluate runs/vit_b_32 --retrieval flickr modalities.text.captions=lines` (several captions, one a line)

    `mmssl evaluate image_text/vit_b_32 suite.yaml` (the untrained model, for comparison)

    `accelerate launch --num_processes 8 -m pipelines.evaluate runs/vit_b_32 suite.yaml`
    """
    from mmssl.core.distributed import is_main
    from mmssl.recipe.suite import evaluation_modalities
    from mmssl.reporting.report import write_results
    from mmssl.training.runtime.launch import Launch
    from pipelines.command import one_of

    choice: Literal["best", "last"] = one_of("--which", which, ("best", "last"))
    launch = Launch("fp32", one_of("--device", device, ("auto", "cpu", "cuda")))
    try:
        suite, overrides = _suite_and_overrides(more or [])
        model = _model(checkpoint, choice, launch, ema, overrides)
        wanted = _from_flags(model, zero_shot, classnames, templates, retrieval, linear_probe, modality, pair)
        for values in wanted.values():
            values |= {"batch_size": batch_size, "workers": workers}
        evaluators = _evaluators(model, suite, wanted)
        modalities = evaluation_modalities(model.modalities)
        results = measure(model, {name: config.build(modalities) for name, config in evaluators.items()})
        if is_main() and out is not None:
            write_results(out, {"checkpoint": _origin(model), **results})
    finally:
        launch.close()


def measure(model: Model, evaluators: dict[str, Evaluator]) -> Results:
    """Run evaluators one after the other and print their scores; every process of a launch must call."""
    from mmssl.training.runtime.console import say

    results: Results = {}
    for name, evaluator in evaluators.items():
        say(f"{name} ...")
        results[name] = dict(evaluator.evaluate(model.embedding))
        for metric, value in results[name].items():
            say(f"  {metric} {value:.4f}" if isinstance(value, float) else f"  {metric} {value}")
    return results


def _suite_and_overrides(more: list[str]) -> tuple[Path | None, list[str]]:
    """What stands after the checkpoint: a file, and what looks like KEY.PATH=VALUE and is none."""
    overrides = [item for item in more if "=" in item and not Path(item).exists()]
    suites = [Path(item) for item in more if item not in overrides]
    if len(suites) > 1:
        raise typer.BadParameter(
            f"got {' and '.join(map(str, suites))}, wanted one suite: put all evaluators into one file"
        )
    return (suites[0] if suites else None), overrides


def _model(path: Path, which: Literal["best", "last"], launch: Launch, ema: bool, overrides: list[str]) -> Model:
    """The model of a run folder or checkpoint folder, or, untrained, of a recipe."""
    from mmssl.recipe.model import load, start_of
    from mmssl.recipe.shipped import find_recipe, shipped_recipes

    if path.suffix in (".yaml", ".yml") or (str(path) in shipped_recipes() and not path.exists()):
        return start_of(find_recipe(str(path), overrides), device=launch.device)
    return load(path, which=which, device=launch.device, ema=ema, overrides=overrides)


def _origin(model: Model) -> str:
    """Where the weights come from."""
    start = f"started from {model.recipe.weights}" if model.recipe.weights else "untrained"
    return str(model.checkpoint or start)


def _evaluators(model: Model, suite: Path | None, wanted: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Configs of the suite's evaluators and of those that flags name; with neither, the recipe's own."""
    from mmssl.recipe.suite import Suite
    from mmssl.recipe.validate import read, validate_text

    evaluators = {} if suite is None else validate_text(Suite, read(suite), str(suite)).evaluators
    evaluators |= validate_text(Suite, json.dumps({"evaluators": wanted}), "command line").evaluators
    evaluators = evaluators or model.recipe.evaluators
    if not evaluators:
        raise typer.BadParameter(
            "nothing to measure, as the recipe has no evaluators: name a suite, --zero-shot, --retrieval or --linear-probe"
        )
    return evaluators


def _from_flags(
    model: Model,
    zero_shot: str | None,
    classnames: str | None,
    templates: str,
    retrieval: str | None,
    linear_probe: tuple[str, str] | None,
    modality: str | None,
    pair: str | None,
) -> dict[str, dict[str, Any]]:
    """Evaluators as a suite would write them."""
    from mmssl.data.modalities.text import TextModality

    texts = [name for name in model.recipe.encoders if isinstance(model.modalities[name], TextModality)]
    others = [name for name in model.recipe.encoders if name not in texts]
    classified = modality or next(iter(others), "")
    wanted: dict[str, dict[str, Any]] = {}
    if zero_shot is not None:
        if classnames is None:
            raise typer.BadParameter(
                "--zero-shot needs --classnames: a file with one name a line, or names,with,commas"
            )
        names = classnames if Path(classnames).is_file() or "," not in classnames else classnames.split(",")
        wanted["zero_shot"] = {
            "kind": "zero_shot", "shards": [zero_shot], "modality": classified, "prompts": next(iter(texts), "text"),
            "classnames": names, "templates": templates,
        }  # fmt: skip
    if retrieval is not None:
        both = pair.split(",") if pair else [*model.embedding.heads][:2]
        if len(both) != 2:
            space = ", ".join(model.embedding.heads) or "no modality"
            raise typer.BadParameter(
                f"--retrieval needs two modalities of a shared space: this model has {space} in one, and --pair is {pair!r}"
            )
        wanted["retrieval"] = {"kind": "retrieval", "shards": [retrieval], "pair": both}
    if linear_probe is not None:
        train, test = linear_probe
        wanted["linear_probe"] = {
            "kind": "linear_probe", "train_shards": [train], "shards": [test], "modality": classified
        }  # fmt: skip
    return wanted


if __name__ == "__main__":
    from pipelines.command import single

    single(evaluate)
