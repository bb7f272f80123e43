"""`mmssl evaluate`: measure a checkpoint on shards."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.evaluate_flags import from_flags, of_pairs, option_of
from pipelines.kept_calibration import keep_calibration
from pipelines.measured import (
    BATCH_SIZE,
    DATA,
    DEVICE,
    EMA,
    ON_ERROR,
    WHICH,
    WORKERS,
    Wanted,
    model_of,
    print_scores,
    refuse_misplaced,
    run_evaluators,
    suite_and_overrides,
    suite_configs,
    weights_origin,
    with_settings,
)
from pipelines.options import ARCH, TOKENIZER
from pipelines.outputs import file_or_folder, is_file_name, local_path

if TYPE_CHECKING:
    from mmssl.core.errors import MmsslError
    from mmssl.recipe.model import Model
    from mmssl.recipe.suite import Suite

CHECKPOINT = Annotated[
    Path,
    typer.Argument(
        callback=local_path,
        help="A run or checkpoint folder; a model of another library, as for `mmssl import`; or a recipe, for its untrained model.",
    ),
]
MORE = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SUITE|KEY.PATH=VALUE",
        help="A suite: a shipped one (image_text, audio_text, audio_visual), a YAML file with `evaluators:`, or a "
        "folder of test sets in CLIP_benchmark's WebDataset layout, or the address of one. And changes, as KEY=VALUE.",
    ),
]
ZERO_SHOT = Annotated[str | None, typer.Option(metavar="SHARDS", help="Classify these samples (with .cls) by prompts.")]
CLASSNAMES = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|A,B,...",
        help="For --zero-shot and --relations: class names: a file, one a line or JSON; or a list. "
        "Default: classnames.txt beside the shards.",
    ),
]
TEMPLATES = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|NAME|SENTENCE",
        help="For --zero-shot and --relations: sentences with {} for the name: a file, one a line; simple, plain, openai; or one. "
        "Default: those beside the shards.",
    ),
]
RETRIEVAL = Annotated[str | None, typer.Option(metavar="SHARDS", help="Search these samples both ways.")]
CALIBRATE = Annotated[
    str | None,
    typer.Option(
        metavar="SHARDS", help="Fit the probability of a match on these pairs, for `model.match`; see --pair."
    ),
]
RELATIONS = Annotated[
    str | None,
    typer.Option(
        metavar="SHARDS",
        help="Relation card of these samples: what the model confuses, which relations of its modalities it tells apart.",
    ),
]
MTEB = Annotated[
    str | None,
    typer.Option(
        metavar="TASK,...|FILE.py",
        help="Tasks or benchmarks of mteb, by name; or a Python file with tasks of your own, which is run. Needs the extra mteb.",
    ),
]
PROBE = Annotated[
    tuple[str, str] | None,
    typer.Option(metavar="TRAIN TEST", help="Fit a linear classifier on TRAIN, measure it on TEST."),
]
MODALITY = Annotated[
    str | None,
    typer.Option(help="For --zero-shot and --linear-probe: modality to classify. Default: the first that is not text."),
]
PAIR = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="For --retrieval and --calibrate. Default: the first two in the shared space."),
]
GROUPS = Annotated[
    str | None,
    typer.Option(metavar="json.KEY", help="Also score by group: the values of this key of the samples' .json."),
]
OUT = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.json|FOLDER",
        callback=file_or_folder,
        help="Write the scores, and what decides them, here: one file; or a folder with a JSON, rows of samples and fitted heads "
        "for each task, and a table of all. What is done in that folder is not measured again.",
    ),
]


def evaluate(
    checkpoint: CHECKPOINT,
    more: MORE = None,
    zero_shot: ZERO_SHOT = None,
    classnames: CLASSNAMES = None,
    templates: TEMPLATES = None,
    retrieval: RETRIEVAL = None,
    linear_probe: PROBE = None,
    calibrate: CALIBRATE = None,
    relations: RELATIONS = None,
    mteb: MTEB = None,
    modality: MODALITY = None,
    pair: PAIR = None,
    which: WHICH = None,
    ema: EMA = None,
    batch_size: BATCH_SIZE = None,
    workers: WORKERS = None,
    on_error: ON_ERROR = None,
    groups: GROUPS = None,
    data: DATA = Path("."),
    device: DEVICE = "auto",
    out: OUT = None,
    arch: ARCH = None,
    tokenizer: TOKENIZER = None,
) -> None:
    """Measure a trained model: zero-shot classification, retrieval, linear probe.

    SHARDS are a folder, a path or a brace pattern; flags add to what the suite names. With neither, the recipe's own
    evaluators run. An evaluator that fails has an "error" in place of scores; the others run, and the exit code tells.

    Examples:

    `mmssl evaluate runs/vit_b_32 image_text --data /data/wds --out results` (a shipped suite; again: only what is new)

    `mmssl evaluate runs/vit_b_32 /data/wds/imagenet1k` (one test set)

    `mmssl evaluate runs/vit_b_32 --retrieval test --linear-probe train test`

    `mmssl evaluate runs/vit_b_32 --calibrate validation` (when is a cosine a match?)

    `mmssl evaluate runs/vit_b_32 --relations test --out card` (swapped words, mixed pools, what another modality breaks)

    `mmssl evaluate runs/vit_b_32 --mteb Flickr30kT2IRetrieval,CIFAR10ZeroShot` (mteb's tasks, on its data)

    `mmssl evaluate image_text/vit_b_32 suite.yaml` (the untrained model, for comparison)

    `accelerate launch --num_processes 8 -m pipelines.evaluate runs/vit_b_32 suite.yaml`
    """
    from mmssl.core.evaluator import evaluation_error
    from mmssl.training.runtime.launch import Launch
    from pipelines.command import one_of

    measures: dict[str, object] = {"--zero-shot": zero_shot, "--relations": relations, "--retrieval": retrieval}
    measures |= {"--linear-probe": linear_probe, "--calibrate": calibrate}
    given = {"--classnames": classnames, "--templates": templates, "--pair": pair, "--modality": modality}
    refuse_misplaced(given, measures)
    launch = Launch("fp32", one_of("--device", device, ("auto", "cpu", "cuda")))
    try:
        suite, overrides = suite_and_overrides(more or [])
        model = model_of(checkpoint, which, launch, ema, overrides, arch, tokenizer)
        wanted = from_flags(model, zero_shot, classnames, templates, linear_probe, modality, relations, mteb)
        wanted |= of_pairs(model, {"--retrieval": retrieval, "--calibrate": calibrate}, pair)
        configs = with_settings(_evaluators(model, suite, data, wanted), batch_size, workers, on_error)
        failures = _run(model, configs, out, groups, wanted)
    finally:
        launch.close()
    if failures:
        raise evaluation_error(failures)


def _run(
    model: Model, configs: dict[str, Wanted], out: Path | None, groups: str | None, flagged: Collection[str]
) -> dict[str, MmsslError]:
    """Measure, show the table and write the results; the errors by task. Arguments: see `measure`."""
    from mmssl.core.distributed import is_main
    from mmssl.core.errors import MmsslError
    from mmssl.reporting.results import ResultFile, Results, TaskRecords
    from mmssl.reporting.summary import ScoreRow, summary_rows, unusual_settings
    from mmssl.training.runtime.console import say

    results: TaskRecords | None = None
    if out is not None:
        results = (ResultFile if is_file_name(out) else Results)(out, weights_origin(model), model.digest())
    scores: dict[str, Mapping[str, Any]] = {}
    failures: dict[str, MmsslError] = {}
    rows: dict[str, list[ScoreRow]] = {}
    for name, evaluator, found in run_evaluators(model, configs, results, groups, flagged):
        if isinstance(found, MmsslError):
            failures[name], scores[name] = found, {"error": str(found)}
            rows[name] = [ScoreRow(name, "error", str(found))]
        else:
            config = configs[name]
            assert not isinstance(config, MmsslError)
            scores[name] = {**unusual_settings(config), **found}
            if is_main():
                keep_calibration(model, evaluator)
            rows[name] = summary_rows(name, found, evaluator.headlines if evaluator is not None else ())
    table = [row for name in configs for row in rows[name]]
    print_scores([row for row in table if row.metric != "error"])
    if is_main() and results is not None:
        results.finish(table, {name: scores[name] for name in configs})
        say(f"results of {weights_origin(model)} in {out}")
    return failures


def _evaluators(model: Model, suite: Suite | None, data: Path, wanted: dict[str, dict[str, Any]]) -> dict[str, Wanted]:
    """Evaluator configs of the suite and of flags; with neither, the recipe's."""
    from mmssl.recipe.suite import Suite
    from mmssl.recipe.validate import validate_text

    listed = {} if suite is None else suite_configs(suite, data, model)
    flagged = validate_text(Suite, json.dumps({"evaluators": wanted}), "command line", options=option_of).evaluators
    for name in listed.keys() & flagged.keys():
        raise typer.BadParameter(
            f"the suite has an evaluator {name!r}, and --{name.replace('_', '-')} makes another: rename that of the suite"
        )
    evaluators = {**listed, **flagged} or model.recipe.evaluators
    if not evaluators:
        raise typer.BadParameter(
            "nothing to measure: the recipe has no evaluators; give a suite, or one of --zero-shot, --retrieval, "
            "--linear-probe, --calibrate, --relations and --mteb"
        )
    return dict(evaluators)


if __name__ == "__main__":
    from pipelines.command import single

    single(evaluate)
