"""Tasks of mteb (Massive Text Embedding Benchmark, with MIEB of pictures and MAEB of sounds) as an evaluator; extra `mteb`.

mteb loads its data sets and measures; the model encodes for it, each modality by the recipe's own decoder and evaluation view.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import math
import re
import runpy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError, MmsslError, RecipeError
from mmssl.core.evaluator import Evaluator, Score, Table
from mmssl.data.modality import Modality
from mmssl.evaluation.common import EvaluatorConfig, broadcast_scores, inference
from mmssl.evaluation.mteb_encoder import MtebEncoder

log = logging.getLogger(__name__)

TASK_FILES: dict[str, tuple[type[Any], str]] = {}
"""Name -> class and hash of the file of each task that `add_task_file` has read."""


class MtebConfig(EvaluatorConfig):
    """Settings of tasks of mteb: classification, zero-shot, retrieval, pairs, multi-label, clustering, similarity.

    Attributes:
        tasks: names of tasks, and of benchmarks as mteb lists them ("MIEB(lite)"); of a benchmark the tasks that the model has no
            modality for are left out. Its image, text, audio and video are the recipe's modalities of these names. mteb fetches
            the data sets, unless they are in the cache of Hugging Face's hub.
        shards: none; `max_samples`, `on_error` and `cache` have no effect.
    """

    kind: Literal["mteb"] = "mteb"
    shards: tuple[str, ...] = Field(default=(), max_length=0)
    tasks: tuple[str, ...] = Field(min_length=1)

    @field_validator("shards", mode="before")
    @classmethod
    def _none(cls, shards: object) -> object:
        if shards:
            raise ValueError(f"shards: got {shards!r}, wanted none: mteb's tasks bring their data")
        return ()

    def build(self, modalities: Mapping[str, Modality]) -> MtebTasks:
        return MtebTasks(self, modalities)


class MtebTasks(Evaluator):
    """Scores of mteb's tasks: the main score of each by its name, the others as <task>_<metric>.

    mteb states neither interval nor chance. With several splits or subsets a score is the mean over them; the table "mteb" has
    each. Every process measures all tasks, and the scores of the first count.
    """

    def __init__(self, config: MtebConfig, modalities: Mapping[str, Modality]) -> None:
        self.config = config
        self.modalities = modalities
        self._tasks = KeptTasks(config.tasks)
        self.kept = (self._tasks,)

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"mteb": _mteb().__version__}

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        mteb = _mteb()
        encoder = MtebEncoder(model, self.modalities, self.config.batch_size, self.config.precision)
        workers = self.config.workers if (self.config.workers or 0) > 1 else None
        rows: list[tuple[Score, ...]] = []
        with inference(model, self.config.precision):
            for task in self._fitting(encoder):
                name = task.metadata.name
                try:
                    found = mteb.evaluate(
                        encoder,
                        task,
                        cache=None,
                        co2_tracker=False,
                        show_progress_bar=False,
                        num_proc=workers,
                        encode_kwargs={"batch_size": self.config.batch_size, "show_progress_bar": False},
                    )
                except (MmsslError, MemoryError, torch.OutOfMemoryError):
                    raise
                except Exception as error:  # a task is a program of somebody else's, and fails as it likes
                    raise DataError(f"mteb's task {name} failed: {type(error).__name__}: {error}") from error
                rows += [row for result in found.task_results for row in score_rows(result.scores, name, task)]
        columns = ("task", "type", "split", "subset", "metric", "value")
        self.tables = {"mteb": Table(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True)))}
        self.headlines = tuple(dict.fromkeys(str(row[0]) for row in rows))
        yield from broadcast_scores(mean_scores(rows)).items()

    def _fitting(self, encoder: MtebEncoder) -> list[Any]:
        """The tasks that the model has all modalities of.

        Raises:
            RecipeError: it lacks one of a task that was asked for by name, or of all.
        """
        tasks, named = self._tasks.open()
        lacking = {t.metadata.name: sorted(task_modalities(t) - set(encoder.names)) for t in tasks}
        refused = next((name for name in named if lacking[name]), None)
        if refused is None and all(lacking.values()):
            refused = next(iter(lacking))
        if refused is not None:
            have = ", ".join(encoder.names) or "none of them"
            raise RecipeError(
                f"`tasks`: {refused} needs {', '.join(lacking[refused])}; this model has {have}, of text, image, audio and video, "
                "the modalities that mteb knows"
            )
        left_out = [name for name, missing in lacking.items() if missing]
        if left_out:
            log.warning("left out, because the model lacks a modality: %s", ", ".join(left_out))
        return [task for task in tasks if not lacking[task.metadata.name]]


class KeptTasks:
    """Tasks by name, looked up by the first run of an evaluator.

    Args:
        names: of tasks and benchmarks.
    """

    reads = ()

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._found: tuple[list[Any], list[str]] | None = None

    def open(self) -> tuple[list[Any], list[str]]:
        """The tasks, and the names of those that were asked for by name.

        Raises:
            RecipeError: mteb is not installed, or has nothing of a name.
        """
        if self._found is None:
            tasks: dict[str, Any] = {}
            named: list[str] = []
            for name in self.names:
                for task in _tasks_named(name):
                    tasks.setdefault(task.metadata.name, task)
                    if task.metadata.name == name:
                        named.append(name)
            self._found = [*tasks.values()], named
        return self._found

    def digest(self) -> str:
        """Hash of the data sets and revisions that the tasks name, and of the files of tasks of your own."""
        described = [
            (
                task.metadata.name,
                str(getattr(task.metadata, "dataset", "")),
                TASK_FILES.get(task.metadata.name, ("", ""))[1],
            )
            for task in self.open()[0]
        ]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def close(self) -> None:
        """Forget the tasks and their data."""
        self._found = None


def add_task_file(path: Path) -> tuple[str, ...]:
    """Run a Python file with tasks of your own, classes derived from mteb's with `metadata`; returns their names.

    Only a command line may name such a file: recipes and suites, which come from anywhere, name tasks.

    Raises:
        RecipeError: the file does not run, or has no task; or mteb is not installed.
    """
    mteb = _mteb()
    try:
        inside = runpy.run_path(str(path), run_name=f"tasks_of_{path.stem}")
    except Exception as error:
        raise RecipeError(f"{path} does not run: {type(error).__name__}: {error}") from error
    own = [
        one
        for one in inside.values()
        if inspect.isclass(one) and issubclass(one, mteb.AbsTask) and one.__module__ == f"tasks_of_{path.stem}"
    ]
    found = {one.metadata.name: one for one in own if hasattr(one, "metadata")}
    if not found:
        raise RecipeError(f"{path} has no task: wanted a class derived from one of mteb's, with `metadata`")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    TASK_FILES.update({name: (one, digest) for name, one in found.items()})
    return tuple(found)


def split_names(text: str) -> tuple[str, ...]:
    """Names between commas; those within parentheses separate nothing, as in "MTEB(eng, v2)"."""
    return tuple(name.strip() for name in re.findall(r"(?:\([^)]*\)|[^,])+", text) if name.strip())


def task_modalities(task: Any) -> set[str]:
    """The modalities of a task, or of the tasks that it joins."""
    parts = getattr(task.metadata, "tasks", None)
    return set().union(*(task_modalities(one) for one in parts)) if parts else set(task.metadata.modalities)


def score_rows(
    scores: Mapping[str, Sequence[Mapping[str, Any]]], name: str, task: Any
) -> Iterator[tuple[str, str, str, str, str, Score]]:
    """(task, type, split, subset, metric, value) of all numbers among a task's scores; what is not finite is None."""
    for split, subsets in scores.items():
        for entry in subsets:
            for metric, value in entry.items():
                if isinstance(value, int | float | np.number) and not isinstance(value, bool):
                    number = float(value) if math.isfinite(value) else None
                    subset = str(entry.get("hf_subset", "default"))
                    yield name, str(task.metadata.type), split, subset, metric, number


def mean_scores(rows: Sequence[Sequence[Score]]) -> dict[str, Score]:
    """Means over splits and subsets of `score_rows`: main scores by the name of their task, others as <task>_<metric>."""
    values: dict[str, list[Score]] = {}
    for task, _, _, _, metric, value in rows:
        values.setdefault(str(task) if metric == "main_score" else f"{task}_{metric}", []).append(value)
    return {
        name: None if None in found else sum(float(one) for one in found if one is not None) / len(found)
        for name, found in values.items()
    }


def _mteb() -> Any:
    try:
        import mteb
    except ImportError as error:
        raise RecipeError(f"tasks of mteb need the extra `mteb`: pip install 'mmssl[mteb]' ({error})") from error
    return mteb


def _tasks_named(name: str) -> list[Any]:
    """The task of a name, or the tasks of a benchmark."""
    mteb = _mteb()
    if name in TASK_FILES:
        return [TASK_FILES[name][0]()]
    try:
        return [mteb.get_task(name)]
    except KeyError as error:
        try:
            return list(mteb.get_benchmark(name).tasks)
        except KeyError:
            raise RecipeError(f"`tasks`: mteb has no task and no benchmark {name!r}: {error.args[0]}") from error
