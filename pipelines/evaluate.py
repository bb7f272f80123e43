"""`mmssl evaluate`: measure a checkpoint on shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipelines.outputs import file_to_write

if TYPE_CHECKING:
    from mmssl.core.errors import MmsslError
    from mmssl.core.evaluator import Evaluator, Score
    from mmssl.data.modality import Modality
    from mmssl.evaluation.common import EvaluatorConfig
    from mmssl.recipe.model import Model
    from mmssl.training.runtime.launch import Launch

CHECKPOINT = Annotated[
    Path, typer.Argument(help="A run folder or a checkpoint folder; or a recipe, for its untrained model.")
]
MORE = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SUITE|KEY.PATH=VALUE",
        help="A YAML file with `evaluators:`, as in a recipe; changes to the recipe, as `modalities.text.captions=lines`.",
    ),
]
ZERO_SHOT = Annotated[str | None, typer.Option(metavar="SHARDS", help="Classify these samples (with .cls) by prompts.")]
CLASSNAMES = Annotated[
    str | None,
    typer.Option(metavar="FILE|A,B,...", help="For --zero-shot: class names: a file, one a line or JSON; or a list."),
]
TEMPLATES = Annotated[
    str | None,
    typer.Option(metavar="FILE|simple|plain", help="For --zero-shot: sentences with {} for the name. Default: simple."),
]
RETRIEVAL = Annotated[str | None, typer.Option(metavar="SHARDS", help="Search these samples both ways.")]
PROBE = Annotated[
    tuple[str, str] | None,
    typer.Option(metavar="TRAIN TEST", help="Fit a linear classifier on TRAIN, measure it on TEST."),
]
MODALITY = Annotated[
    str | None,
    typer.Option(help="For --zero-shot and --linear-probe: modality to classify. Default: the first that is not text."),
]
PAIR = Annotated[
    str | None, typer.Option(metavar="A,B", help="For --retrieval. Default: the first two in the shared space.")
]
WHICH = Annotated[
    str | None, typer.Option(metavar="best|last", help="Which checkpoint of a run folder. Default: best.")
]
EMA = Annotated[
    bool | None, typer.Option("--ema/--no-ema", help="Use the EMA weights if the run kept them (default), or not.")
]
BATCH_SIZE = Annotated[
    int | None,
    typer.Option(min=1, help="Samples encoded at a time, by all evaluators. Default: each evaluator's setting."),
]
WORKERS = Annotated[
    int | None, typer.Option(min=0, help="Worker processes, for all evaluators. Default: each evaluator's setting.")
]
DEVICE = Annotated[str, typer.Option(metavar="auto|cpu|cuda")]
OUT = Annotated[
    Path | None, typer.Option(metavar="FILE", callback=file_to_write, help="Write the scores here, as JSON.")
]
Results = dict[str, dict[str, "Score"]]


def evaluate(
    checkpoint: CHECKPOINT,
    more: MORE = None,
    zero_shot: ZERO_SHOT = None,
    classnames: CLASSNAMES = None,
    templates: TEMPLATES = None,
    retrieval: RETRIEVAL = None,
    linear_probe: PROBE = None,
    modality: MODALITY = None,
    pair: PAIR = None,
    which: WHICH = None,
    ema: EMA = None,
    batch_size: BATCH_SIZE = None,
    workers: WORKERS = None,
    device: DEVICE = "auto",
    out: OUT = None,
) -> None:
    """Measure a trained model: zero-shot classification, retrieval, linear probe.

    SHARDS are a folder, a path or a brace pattern; flags add to what the suite names. With neither, the recipe's own
    evaluators run. An evaluator that fails has an "error" in place of scores; the others run, and the exit code tells.

    Examples:

    `mmssl evaluate runs/vit_b_32 suite.yaml --out results.json`

    `mmssl evaluate runs/vit_b_32 --zero-shot 'test/{000000..000007}.tar' --classnames classnames.txt`

    `mmssl evaluate runs/vit_b_32 --retrieval test --linear-probe train test`

    `mmssl evaluate runs/vit_b_32 --retrieval flickr modalities.text.captions=lines` (several captions, one a line)

    `mmssl evaluate image_text/vit_b_32 suite.yaml` (the untrained model, for comparison)

    `accelerate launch --num_processes 8 -m pipelines.evaluate runs/vit_b_32 suite.yaml`
    """
    from mmssl.core.distributed import is_main
    from mmssl.core.evaluator import evaluation_error
    from mmssl.reporting.report import write_results
    from mmssl.training.runtime.console import say
    from mmssl.training.runtime.launch import Launch
    from pipelines.command import one_of

    _refuse_alone("--classnames", classnames, {"--zero-shot": zero_shot})
    _refuse_alone("--templates", templates, {"--zero-shot": zero_shot})
    _refuse_alone("--pair", pair, {"--retrieval": retrieval})
    _refuse_alone("--modality", modality, {"--zero-shot": zero_shot, "--linear-probe": linear_probe})
    launch = Launch("fp32", one_of("--device", device, ("auto", "cpu", "cuda")))
    try:
        suite, overrides = _suite_and_overrides(more or [])
        model = _model(checkpoint, which, launch, ema, overrides)
        wanted = _from_flags(model, zero_shot, classnames, templates, retrieval, linear_probe, modality, pair)
        given = {"batch_size": batch_size, "workers": workers}
        changes = {name: value for name, value in given.items() if value is not None}
        configs = {name: c.model_copy(update=changes) for name, c in _evaluators(model, suite, wanted).items()}
        results, failures = measure(model, configs)
        if is_main() and out is not None:
            write_results(out, {"checkpoint": _origin(model), **results})
            say(f"results of {_origin(model)} in {out}")
    finally:
        launch.close()
    if failures:
        raise evaluation_error(failures)


def measure(model: Model, configs: Mapping[str, EvaluatorConfig]) -> tuple[Results, dict[str, MmsslError]]:
    """Run evaluators one after the other and print their scores; every process of a launch must call.

    All are built, and their shards opened, before the first one runs, so a misspelt file name shows at once.

    Returns:
        Scores by evaluator, {"error": sentence} where one failed; and the errors by evaluator.
    """
    from mmssl.core.distributed import attempt
    from mmssl.core.errors import MmsslError
    from mmssl.recipe.suite import evaluation_modalities
    from mmssl.training.runtime.console import say

    modalities = evaluation_modalities(model.modalities)
    built = {name: attempt(partial(_opened, config, modalities)) for name, config in configs.items()}
    results: Results = {}
    failures: dict[str, MmsslError] = {}
    for name, evaluator in sorted(built.items(), key=lambda item: not isinstance(item[1], MmsslError)):
        say(f"{name} ...")
        scores = evaluator if isinstance(evaluator, MmsslError) else attempt(partial(_scores, evaluator, model))
        if isinstance(scores, MmsslError):
            failures[name], scores = scores, {"error": str(scores)}
        results[name] = scores
        for metric, value in scores.items():
            say(f"  {metric} {value:.4f}" if isinstance(value, float) else f"  {metric} {value}")
    return {name: results[name] for name in configs}, failures


def _opened(config: EvaluatorConfig, modalities: Mapping[str, Modality]) -> Evaluator:
    evaluator = config.build(modalities)
    evaluator.open()
    return evaluator


def _scores(evaluator: Evaluator, model: Model) -> dict[str, Score]:
    with evaluator:
        return dict(evaluator.evaluate(model.embedding))


def _refuse_alone(option: str, value: object, partners: Mapping[str, object]) -> None:
    """Raise an error for an option without effect, because its partner options are missing."""
    if value is not None and all(partner is None for partner in partners.values()):
        raise typer.BadParameter(
            f"{option} has no effect without {' or '.join(partners)}: add one, or leave {option} out"
        )


def _suite_and_overrides(more: list[str]) -> tuple[Path | None, list[str]]:
    """Split the arguments after the checkpoint into a suite file and KEY.PATH=VALUE overrides."""
    overrides = [item for item in more if "=" in item and not Path(item).exists()]
    suites = [Path(item) for item in more if item not in overrides]
    if len(suites) > 1:
        raise typer.BadParameter(
            f"got {' and '.join(map(str, suites))}, wanted one suite: put all evaluators into one file"
        )
    return (suites[0] if suites else None), overrides


def _model(path: Path, which: str | None, launch: Launch, ema: bool | None, overrides: list[str]) -> Model:
    """The model of a run folder or checkpoint folder, or, untrained, of a recipe."""
    from mmssl.recipe.load import load, start_of
    from mmssl.recipe.shipped import find_recipe, shipped_recipes
    from pipelines.command import one_of

    if path.suffix in (".yaml", ".yml") or (str(path) in shipped_recipes() and not path.exists()):
        _refuse_alone("--which", which, {"a run folder": None})
        _refuse_alone("--ema", ema, {"a run or checkpoint folder": None})
        return start_of(find_recipe(str(path), overrides), device=launch.device)
    choice: Literal["best", "last"] = one_of("--which", which or "best", ("best", "last"))
    return load(path, which=choice, device=launch.device, ema=ema is not False, overrides=overrides)


def _origin(model: Model) -> str:
    """Where the weights come from."""
    start = f"started from {model.recipe.weights}" if model.recipe.weights else "untrained"
    return str(model.checkpoint or start)


def _evaluators(model: Model, suite: Path | None, wanted: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Evaluator configs of the suite and of flags; with neither, the recipe's."""
    from mmssl.recipe.suite import Suite
    from mmssl.recipe.validate import read, validate_text

    listed = {} if suite is None else validate_text(Suite, read(suite), str(suite)).evaluators
    flagged = validate_text(Suite, json.dumps({"evaluators": wanted}), "command line").evaluators
    for name in listed.keys() & flagged.keys():
        raise typer.BadParameter(
            f"{suite} has an evaluator {name!r}, and --{name.replace('_', '-')} makes another: rename that of the suite"
        )
    evaluators = listed | flagged or model.recipe.evaluators
    if not evaluators:
        raise typer.BadParameter(
            "nothing to measure: the recipe has no evaluators; give a suite, --zero-shot, --retrieval or --linear-probe"
        )
    return evaluators


def _from_flags(
    model: Model,
    zero_shot: str | None,
    classnames: str | None,
    templates: str | None,
    retrieval: str | None,
    linear_probe: tuple[str, str] | None,
    modality: str | None,
    pair: str | None,
) -> dict[str, dict[str, Any]]:
    """Evaluators of the flags, as mappings like a suite's."""
    texts = [name for name in model.recipe.encoders if model.modalities[name].language]
    others = [name for name in model.recipe.encoders if name not in texts]
    classified = modality or next(iter(others), "")
    wanted: dict[str, dict[str, Any]] = {}
    if zero_shot is not None:
        if classnames is None:
            raise typer.BadParameter(
                "--zero-shot needs --classnames: a file with one name a line, or names,with,commas"
            )
        is_file = Path(classnames).expanduser().is_file()
        if not is_file and "," not in classnames:
            raise typer.BadParameter(
                f"--classnames: got {classnames!r}, which is no file; wanted a file with one name a line (or JSON), or "
                "names,with,commas"
            )
        names = classnames if is_file else classnames.split(",")
        wanted["zero_shot"] = {
            "kind": "zero_shot", "shards": [zero_shot], "modality": classified, "prompts": next(iter(texts), "text"),
            "classnames": names, "templates": templates or "simple",
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
