"""Results of a suite as files: one JSON a task, its rows as parquet or CSV, and one table of all."""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import importlib.util
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mmssl.core.config import Config
from mmssl.core.errors import DataError, os_words
from mmssl.core.evaluator import Evaluator, Score, Table
from mmssl.reporting.report import write_results, write_text_atomically
from mmssl.reporting.summary import ScoreRow, to_csv, to_markdown
from mmssl.training.checkpoints.tensors import dump_tensors

TIES = "of equal scores the earlier candidate, or the lower class, comes first; average precision counts equal ones together"
UNIMPORTANT = {"batch_size", "workers", "every", "cache", "allow_pipe"}
"""Settings that change no score."""
PACKAGES = ("mmssl", "torch", "numpy")
IN_JSON = (
    "classes",
    "confusions",
    "confusion_matrix",
    "groups",
    "corruptions",
    "additions",
    "kinds",
    "card",
    "curve",
    "reliability",
    "mteb",
)
"""Tables that stand in the JSON of their task; others are separate files."""


class TaskRecords:
    """Records of the tasks of one checkpoint, in memory.

    Args:
        checkpoint: where the weights come from, in words.
        model: digest of the weights, see `Model.digest`.

    Attributes:
        records: task -> what is to be written of it.
        folder: that of results; None: there is none.
    """

    folder: Path | None = None

    def __init__(self, checkpoint: str, model: str) -> None:
        self.checkpoint, self.model = checkpoint, model
        self.records: dict[str, dict[str, Any]] = {}

    def identity(self, config: Config, facts: Mapping[str, Any]) -> str:
        """Hash of all that decides the scores: weights, settings and data."""
        settings = config.model_dump(mode="json", exclude=UNIMPORTANT)
        whole = {"model": self.model, "evaluator": settings, "facts": facts, "mmssl": package_versions()["mmssl"]}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    def done(self, task: str, identity: str) -> dict[str, Score] | None:
        """The scores of a task that was measured before with the same identity; None: it was not."""
        return None

    def write(
        self, task: str, config: Config, evaluator: Evaluator, facts: Mapping[str, Any], scores: Mapping[str, Score]
    ) -> None:
        """Keep the record of a measured task; its rows of samples, and what it fitted, need a folder."""
        self.records[task] = self.record(task, config, evaluator, facts, scores, {})

    def record(
        self,
        task: str,
        config: Config,
        evaluator: Evaluator,
        facts: Mapping[str, Any],
        scores: Mapping[str, Score],
        files: Mapping[str, str],
    ) -> dict[str, Any]:
        """What is written of a task: its scores and tables, and all that decides them."""
        within = {name: as_rows(evaluator.tables[name]) for name in IN_JSON if name in evaluator.tables}
        return {
            "task": task,
            "checkpoint": self.checkpoint,
            "scores": dict(scores),
            **within,
            "files": dict(files),
            "evaluator": config.model_dump(mode="json"),
            "facts": facts,
            "precision": getattr(config, "precision", "float32"),
            "ties": TIES,
            "versions": package_versions(),
            "model": self.model,
            "identity": self.identity(config, facts),
        }

    def finish(self, rows: Sequence[ScoreRow], scores: Mapping[str, Mapping[str, Any]]) -> None:
        """Write what there is of all tasks together.

        Args:
            rows: of the table of all tasks.
            scores: task -> its scores, or {"error": message}.
        """


class Results(TaskRecords):
    """The folder of the results of one checkpoint: a task that is done is read, not measured again.

    Args:
        folder: made when the first task is written.
        checkpoint, model: see `TaskRecords`.
    """

    folder: Path

    def __init__(self, folder: Path, checkpoint: str, model: str) -> None:
        super().__init__(checkpoint, model)
        self.folder = folder

    def done(self, task: str, identity: str) -> dict[str, Score] | None:
        try:
            found = json.loads((self.folder / f"{task}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        same = isinstance(found, dict) and found.get("identity") == identity
        return found["scores"] if same else None

    def write(
        self, task: str, config: Config, evaluator: Evaluator, facts: Mapping[str, Any], scores: Mapping[str, Score]
    ) -> None:
        """Write a measured task: its rows, what it fitted, and last its JSON."""
        make_folder(self.folder)
        own = {name: table for name, table in evaluator.tables.items() if name not in IN_JSON}
        files = {name: write_table(self.folder / f"{task}.{name}", table).name for name, table in own.items()}
        if evaluator.fitted:
            files["fitted"] = write_tensors(self.folder / f"{task}.safetensors", evaluator.fitted).name
        write_results(self.folder / f"{task}.json", self.record(task, config, evaluator, facts, scores, files))

    def finish(self, rows: Sequence[ScoreRow], scores: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the table of all tasks, as Markdown and CSV."""
        make_folder(self.folder)
        write_text_atomically(self.folder / "results.md", to_markdown(rows))
        write_text_atomically(self.folder / "results.csv", to_csv(rows))


class ResultFile(TaskRecords):
    """One JSON file of all tasks, each of which is measured: task -> scores, and under "records" what a folder's JSON has of it.

    Args:
        file: JSON. checkpoint, model: see `TaskRecords`.
    """

    def __init__(self, file: Path, checkpoint: str, model: str) -> None:
        super().__init__(checkpoint, model)
        self._file = file

    def finish(self, rows: Sequence[ScoreRow], scores: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the file."""
        make_folder(self._file.parent)
        records = {task: self.records[task] for task in scores if task in self.records}
        write_results(self._file, {"checkpoint": self.checkpoint, **scores, "records": records})


def make_folder(folder: Path) -> None:
    """Make the folder of results, if needed.

    Raises:
        DataError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write into {folder}: {os_words(error)}; choose another --out") from error


def as_rows(table: Table) -> list[dict[str, Score]]:
    """The rows of a table as mappings."""
    return [dict(zip(table.columns, row, strict=True)) for row in zip(*table.columns.values(), strict=True)]


def write_table(stem: Path, table: Table) -> Path:
    """Write the rows of a table, with its texts, as parquet, or without pyarrow as CSV; returns the file.

    Raises:
        DataError: the file cannot be written, or the texts cannot be read.
    """
    columns: dict[str, Sequence[Score]] = {**table.columns, **(table.texts() if table.texts is not None else {})}
    parquet = importlib.util.find_spec("pyarrow") is not None
    path = stem.with_name(f"{stem.name}.{'parquet' if parquet else 'csv'}")
    try:
        if parquet:
            import pyarrow
            from pyarrow import parquet as files

            lists = {name: _lists(rows) for name, rows in table.vectors.items()}
            files.write_table(pyarrow.table({name: list(column) for name, column in columns.items()} | lists), path)
        else:
            columns |= {name: [json.dumps(row) for row in rows.tolist()] for name, rows in table.vectors.items()}
            file = io.StringIO()
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
            write_text_atomically(path, file.getvalue())
    except OSError as error:
        raise DataError(f"cannot write {path}: {os_words(error)}; choose another --out") from error
    return path


def _lists(rows: Tensor) -> Any:
    """Rows [n, K] as a column of lists of K in parquet."""
    import pyarrow

    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.flatten().numpy()), rows.shape[1])


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Write tensors as safetensors; returns the file.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        with path.open("wb") as file:
            dump_tensors(tensors, file)
    except OSError as error:
        raise DataError(f"cannot write {path}: {os_words(error)}; choose another --out") from error
    return path


def package_versions() -> dict[str, str]:
    """Versions of the packages that scores may depend on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES if _installed(name)}


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
