"""The flags of `mmssl evaluate` as evaluators."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pipelines.command import one_of

if TYPE_CHECKING:
    from mmssl.core.errors import MmsslError
    from mmssl.recipe.model import Model


def option_of(path: tuple[str | int, ...]) -> str | None:
    """The option that gave a key of an evaluator, of the path `evaluators.<task>.<key>`; None: it is of no option."""
    if len(path) < 3:
        return None
    task, key = str(path[1]), str(path[2])
    if key in ("shards", "train_shards", "tasks"):
        return "--calibrate" if task == "calibration" else f"--{task.replace('_', '-')}"
    return f"--{key}" if key in ("classnames", "templates", "modality", "pair") else None


def naming_options(error: MmsslError, task: str) -> MmsslError:
    """The error of an evaluator that options made, with these options in place of the keys that it names, as in `classnames`."""
    message = re.sub(r"`(\w+)`", lambda key: option_of(("evaluators", task, key[1])) or key[0], str(error))
    error.args = (message,)
    return error


def from_flags(
    model: Model,
    zero_shot: str | None,
    classnames: str | None,
    templates: str | None,
    linear_probe: tuple[str, str] | None,
    modality: str | None,
    relations: str | None,
    mteb: str | None,
) -> dict[str, dict[str, Any]]:
    """Evaluators of the flags, as mappings like a suite's."""
    texts = [name for name in model.recipe.encoders if model.modalities[name].language]
    others = [name for name in model.recipe.encoders if name not in texts]
    classified = modality or next(iter(others), "")
    if modality is not None:
        one_of("--modality", modality, tuple(model.recipe.encoders))
    space = [*model.embedding.heads]
    for flag, given in {"--zero-shot": zero_shot, "--relations": relations}.items():
        if given is not None and len(space) < 2:
            raise _lacks_pair(flag, space)
    wanted: dict[str, dict[str, Any]] = {}
    if zero_shot is not None:
        wanted["zero_shot"] = {
            "kind": "zero_shot", "shards": [split_of(zero_shot)], "modality": classified, "prompts": next(iter(texts), "text"),
            "classnames": _class_names(classnames), "templates": _templates(templates),
        }  # fmt: skip
    if linear_probe is not None:
        train, test = linear_probe
        wanted["linear_probe"] = {
            "kind": "linear_probe", "train_shards": [split_of(train, "train")], "shards": [split_of(test)],
            "modality": classified,
        }  # fmt: skip
    if relations is not None:
        wanted["relations"] = _relations(model, relations, classnames, templates)
    if mteb is not None:
        wanted["mteb"] = _mteb_tasks(mteb)
    return wanted


def of_pairs(model: Model, shards: dict[str, str | None], pair: str | None) -> dict[str, dict[str, Any]]:
    """Evaluators of two modalities: flag -> its shards, None: not wanted."""
    space = [*model.embedding.heads]
    both = pair.split(",") if pair else space[:2]
    wanted = {flag: where for flag, where in shards.items() if where is not None}
    if wanted and len(both) != 2:
        raise _lacks_pair(next(iter(wanted)), space, pair)
    for name in both if pair and wanted else ():
        one_of("--pair", name, tuple(space))
    kinds = {"--retrieval": "retrieval", "--calibrate": "calibration"}
    return {
        kinds[flag]: {"kind": kinds[flag], "shards": [split_of(where)], "pair": both} for flag, where in wanted.items()
    }


def _lacks_pair(flag: str, space: list[str], pair: str | None = None) -> typer.BadParameter:
    """The error of an option that compares two modalities of a shared space, for a model or a `--pair` of others."""
    has = ", ".join(space) or "none"
    hint = f", and --pair is {pair!r}" if pair else "; features of one modality are measured by --linear-probe"
    return typer.BadParameter(f"{flag} needs two modalities of a shared space: this model has {has}{hint}")


def split_of(shards: str, split: str = "test") -> str:
    """The folder of a split, where the folder of a test set in CLIP_benchmark's layout is given; else what is given."""
    folder = os.path.expanduser(shards)  # which fails on no string, as a path's does
    inside = os.path.join(folder, split)
    if not os.path.isdir(inside) or any(Path(folder).glob("*.tar")) or not any(Path(inside).glob("*.tar")):
        return shards
    return inside


def _class_names(given: str | None) -> str | list[str] | None:
    """A file or name of class names, or the names themselves."""
    if given is None or given == "imagenet" or Path(given).expanduser().is_file():
        return given
    if "," not in given:
        raise typer.BadParameter(
            f"--classnames: got {given!r}, which is no file; wanted one name a line, JSON, or names,with,commas"
        )
    return given.split(",")


def _templates(given: str | None) -> str | list[str] | None:
    """A file or name of templates, or one sentence."""
    sentence = given is not None and ("{}" in given or "{c}" in given) and not Path(given).expanduser().is_file()
    return [given] if given is not None and sentence else given


def _relations(model: Model, shards: str, classnames: str | None, templates: str | None) -> dict[str, Any]:
    """The relation card, with prompts of the model's first text modality."""
    texts = [name for name in model.recipe.encoders if model.modalities[name].language]
    return {
        "kind": "relations", "shards": [split_of(shards)], "prompts": next(iter(texts), "text"),
        "classnames": _class_names(classnames), "templates": _templates(templates),
    }  # fmt: skip


def _mteb_tasks(given: str) -> dict[str, Any]:
    """Tasks of mteb by name, or those of a file."""
    from mmssl.evaluation.mteb_tasks import add_task_file, split_names

    path = Path(given).expanduser()
    tasks = add_task_file(path) if path.suffix == ".py" and path.is_file() else split_names(given)
    return {"kind": "mteb", "tasks": list(tasks)}
