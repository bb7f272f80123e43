"""What `evaluate` and `compare` share: the model of a path, the suite of the arguments, and the run of evaluators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union

import typer

if TYPE_CHECKING:
    from mmssl.core.errors import MmsslError
    from mmssl.core.evaluator import Evaluator, Score
    from mmssl.data.modality import Modality
    from mmssl.evaluation.common import EvaluatorConfig
    from mmssl.recipe.model import Model
    from mmssl.recipe.suite import Suite
    from mmssl.reporting.results import TaskRecords
    from mmssl.reporting.summary import ScoreRow
    from mmssl.training.runtime.launch import Launch

WHICH = Annotated[
    str | None, typer.Option(metavar="best|last", help="Which checkpoint of a run folder. Default: best.")
]
EMA = Annotated[
    bool | None, typer.Option("--ema/--no-ema", help="Use the EMA weights if the run kept them (default), or not.")
]
DATA = Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the test sets that a suite names.")]
BATCH_SIZE = Annotated[
    int | None,
    typer.Option(min=1, help="Samples encoded at a time, by all evaluators. Default: each evaluator's setting."),
]
WORKERS = Annotated[
    int | None, typer.Option(min=0, help="Worker processes, for all evaluators. Default: each evaluator's setting.")
]
ON_ERROR = Annotated[
    str | None,
    typer.Option(
        metavar="raise|skip", help="For damaged samples, in all evaluators: end the evaluation, or count them."
    ),
]
DEVICE = Annotated[str, typer.Option(metavar="auto|cpu|cuda")]
T = TypeVar("T")
Scores = dict[str, "Score"]
Wanted = Union["EvaluatorConfig", "MmsslError"]


def suite_and_overrides(more: list[str]) -> tuple[Suite | None, list[str]]:
    """Split the arguments after the checkpoint into a suite and KEY.PATH=VALUE overrides."""
    from mmssl.recipe.suite import find_suite

    overrides = [one for one in more if "=" in one and "://" not in one.partition("=")[0] and not Path(one).exists()]
    suites = [item for item in more if item not in overrides]
    if len(suites) > 1:
        raise typer.BadParameter(f"got {' and '.join(suites)}, wanted one suite: put all evaluators into one file")
    return (find_suite(suites[0]) if suites else None), overrides


def model_of(
    path: Path,
    which: str | None,
    launch: Launch,
    ema: bool | None,
    overrides: list[str],
    arch: str | None = None,
    tokenizer: Path | None = None,
) -> Model:
    """The model of a run folder or checkpoint folder, of another library, or, untrained, of a recipe."""
    from mmssl.recipe.imported import described_folder, is_source, refuse_description
    from mmssl.recipe.load import load, start_of
    from mmssl.recipe.shipped import find_recipe, shipped_recipes
    from pipelines.command import one_of

    if path.suffix in (".yaml", ".yml") or (str(path) in shipped_recipes() and not path.exists()):
        refuse_alone("--which", which, {"a run folder": None})
        refuse_alone("--ema", ema, {"a run or checkpoint folder": None})
        refuse_description(path, arch, tokenizer)
        return start_of(find_recipe(str(path), overrides), device=launch.device)
    path = described_folder(path, arch)
    if is_source(path):
        refuse_alone("--which", which, {"a run folder": None})
        refuse_alone("--ema", ema, {"a run or checkpoint folder": None})
    choice: Literal["best", "last"] = one_of("--which", which or "best", ("best", "last"))
    return load(
        path,
        which=choice,
        device=launch.device,
        ema=ema is not False,
        overrides=overrides,
        arch=arch,
        tokenizer=tokenizer,
    )


def require_there(path: Path) -> None:
    """Refuse a path of a model that is nothing at all, before long work on another one.

    Raises:
        CheckpointError: there is no such file or folder, and it is no name of a shipped recipe or of a model of a hub; or it is a
            folder without a checkpoint.
    """
    from mmssl.core.errors import CheckpointError
    from mmssl.recipe.imported import is_source
    from mmssl.recipe.shipped import shipped_recipes
    from mmssl.training.checkpoints.read import resolve

    if not path.exists() and ":" not in str(path) and str(path) not in shipped_recipes():
        raise CheckpointError(
            f"got {str(path)!r}, which does not exist; wanted a run or checkpoint folder, a model or a recipe"
        )
    if path.is_dir() and not is_source(path):
        resolve(path)


def weights_origin(model: Model) -> str:
    """Where the weights come from."""
    start = f"started from {model.recipe.weights}" if model.recipe.weights else "untrained"
    return str(model.checkpoint or start)


BELONGS_TO = {
    "--classnames": ("--zero-shot", "--relations"),
    "--templates": ("--zero-shot", "--relations"),
    "--pair": ("--retrieval", "--calibrate"),
    "--modality": ("--zero-shot", "--linear-probe"),
}
"""Options that mean nothing without one of others."""


def refuse_alone(option: str, value: object, partners: Mapping[str, object]) -> None:
    """Raise an error for an option without effect, because its partner options are missing."""
    if value is not None and all(partner is None for partner in partners.values()):
        raise typer.BadParameter(
            f"{option} has no effect without {' or '.join(partners)}: add one, or leave {option} out"
        )


def refuse_misplaced(given: Mapping[str, object], measures: Mapping[str, object]) -> None:
    """Raise an error for an option of measures of which none is asked for."""
    for option, value in given.items():
        refuse_alone(option, value, {name: measures[name] for name in BELONGS_TO[option]})


def with_settings(
    configs: Mapping[str, Wanted], batch_size: int | None, workers: int | None, on_error: str | None
) -> dict[str, Wanted]:
    """The configs with the settings of the command line, where it has them."""
    from mmssl.core.errors import MmsslError
    from pipelines.command import one_of

    if on_error is not None:
        on_error = one_of("--on-error", on_error, ("raise", "skip"))
    given = {"batch_size": batch_size, "workers": workers, "on_error": on_error}
    changes = {name: value for name, value in given.items() if value is not None}
    return {
        name: one if isinstance(one, MmsslError) else one.model_copy(update=changes) for name, one in configs.items()
    }


def suite_configs(suite: Suite, data: Path, model: Model) -> dict[str, Wanted]:
    """The evaluators of a suite and of its sets, for a model."""
    from mmssl.recipe.suite import evaluation_modalities

    settings = model.recipe.data
    remote = settings.cache.build(settings.allow_pipe)
    return suite.configs(data, evaluation_modalities(model.modalities), tuple(model.embedding.heads), remote)


def run_evaluators(
    model: Model,
    configs: Mapping[str, Wanted],
    results: TaskRecords | None = None,
    groups: str | None = None,
    flagged: Collection[str] = (),
) -> Iterator[tuple[str, Evaluator | None, Scores | MmsslError]]:
    """Run evaluators one after the other: (name, evaluator, scores or error); every process of a launch must iterate.

    All are built, and their shards opened, before the first one runs, so a misspelt file name shows at once. Errors come first.

    Args:
        model: to measure.
        configs: evaluators by name, or why there is none.
        results: keeps what is measured; what is done in its folder is not measured again, unless it is a calibration that the
            checkpoint lacks. None: nothing is kept.
        groups: key of the samples' metadata: evaluators with rows of samples get a table "groups".
        flagged: names of those that options made; their errors name options in place of keys.
    """
    from mmssl.core.distributed import attempt
    from mmssl.core.errors import MmsslError
    from mmssl.recipe.suite import evaluation_modalities, read_as
    from mmssl.reporting.summary import unusual_settings
    from mmssl.training.runtime.console import say
    from pipelines.evaluate_flags import naming_options

    def tried(name: str, work: Callable[[], T]) -> T | MmsslError:
        found = attempt(work)
        return naming_options(found, name) if isinstance(found, MmsslError) and name in flagged else found

    modalities, data = evaluation_modalities(model.modalities), model.recipe.data
    built = {
        name: one if isinstance(one, MmsslError) else tried(name, partial(_opened, read_as(one, data), modalities))
        for name, one in configs.items()
    }
    order = sorted(built, key=lambda name: not isinstance(built[name], MmsslError))
    for number, name in enumerate(order, 1):
        config, evaluator = configs[name], built[name]
        if isinstance(evaluator, MmsslError):
            say(f"{name}: {evaluator}")
            yield name, None, evaluator
            continue
        assert not isinstance(config, MmsslError)
        unusual = "".join(f"; {key}: {value}" for key, value in unusual_settings(config).items())
        say(f"{name} ... ({number} of {len(built)}{unusual})")
        with evaluator:
            yield name, evaluator, tried(name, partial(_scores, name, config, evaluator, model, results, groups))


def _opened(config: EvaluatorConfig, modalities: Mapping[str, Modality]) -> Evaluator:
    evaluator = config.build(modalities)
    evaluator.open()
    return evaluator


def _scores(
    name: str,
    config: EvaluatorConfig,
    evaluator: Evaluator,
    model: Model,
    results: TaskRecords | None,
    groups: str | None,
) -> Scores:
    from mmssl.core.distributed import gather_objects, is_main
    from mmssl.training.runtime.console import say
    from pipelines.kept_calibration import missing_calibration

    if results is None:
        return _measured(config, evaluator, model, groups)
    facts: dict[str, Any] = evaluator.facts() | ({} if groups is None else {"groups": groups})
    found = gather_objects(results.done(name, results.identity(config, facts)) if is_main() else None)[0]
    if found is not None:
        say(f"  done before, in {results.folder}/{name}.json")
        lacking = gather_objects(missing_calibration(model, evaluator) if is_main() else None)[0]
        if lacking is None:
            return dict(found)
        say(f"  measured again: {lacking}")
    scores = _measured(config, evaluator, model, groups)
    if is_main():
        results.write(name, config, evaluator, facts, scores)
    return scores


def _measured(config: EvaluatorConfig, evaluator: Evaluator, model: Model, groups: str | None) -> Scores:
    from mmssl.evaluation.subgroups import group_table, sample_groups
    from mmssl.training.runtime.console import say

    found = None if groups is None or not config.shards else sample_groups(config.shards, groups)
    scores = dict(evaluator.evaluate(model.embedding))
    if found is not None:
        table = group_table(evaluator.tables, found)
        evaluator.tables = {**evaluator.tables, "groups": table}
        groups_of = Counter(table.columns["outcome"])
        worst: set[object] = set()
        for metric, group, n, value in zip(
            *(table.columns[c] for c in ("outcome", "group", "n", "value")), strict=True
        ):
            if metric not in worst and groups_of[metric] > 1:
                say(f"  worst group of {metric}: {group}, {value:.4f} of {n}")
            worst.add(metric)
    return scores


def _shown(value: Score) -> str:
    return "–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def print_scores(rows: list[ScoreRow]) -> None:
    """Print scores as a table on the main process; of scores under corruption the clean one beside them. A dash: not defined."""
    from rich.console import Console
    from rich.table import Column, Table

    from mmssl.core.distributed import is_main

    clean = any(row.clean is not None for row in rows)
    table = Table(Column("task", overflow="fold"), Column("metric", overflow="fold"), "score", "95 %", "chance", "n")
    if clean:
        table.add_column("clean")
    for row in rows:
        interval = "" if row.ci95_low is None else f"{row.ci95_low:.4f} to {row.ci95_high:.4f}"
        value, before = (_shown(x) for x in (row.value, row.clean))
        chance = "" if row.chance is None else f"{row.chance:.4g}"
        cells = (row.task, row.metric, value, interval, chance, "" if row.n is None else f"{row.n:,}")
        table.add_row(*cells, *([before if row.clean is not None else ""] if clean else []))
    if is_main() and rows:
        Console(stderr=True).print(table)
