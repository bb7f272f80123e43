"""A suite: evaluators, and folders of test sets, to run on checkpoints."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field

from mmssl.core.config import Config
from mmssl.core.errors import DataError, MmsslError, RecipeError, did_you_mean
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.modalities.multi_label import MultiLabelConfig
from mmssl.data.modality import Modality
from mmssl.data.shards.remote import Remote
from mmssl.data.shards.storage import is_remote
from mmssl.data.stream.config import DataConfig
from mmssl.evaluation.common import EvaluatorConfig
from mmssl.evaluation.sets import is_set, set_evaluators
from mmssl.evaluation.statistics import shorten
from mmssl.recipe.shipped import shipped_suites
from mmssl.recipe.unions import EvaluatorUnion
from mmssl.recipe.validate import read_recipe_text, validate_text

log = logging.getLogger(__name__)

_UNUSUAL = re.compile(r"[^\w.-]+")
LABEL, MULTI_LABEL = "label", "multi_label"
E = TypeVar("E", bound=EvaluatorConfig)


class Suite(Config):
    """What `mmssl evaluate` runs.

    Attributes:
        evaluators: name -> evaluator, written as in a recipe.
        sets: folders of test sets in CLIP_benchmark's WebDataset layout, below `--data`, or their addresses (https://..., hf://...);
            what is in one says how it is measured.
        on_missing: for a set whose folder is not there: "raise", or "skip": leave it out, with a warning.
    """

    evaluators: dict[str, EvaluatorUnion] = Field(default_factory=dict)
    sets: tuple[str, ...] = ()
    on_missing: Literal["raise", "skip"] = "raise"

    def configs(
        self, data: Path, modalities: Mapping[str, Modality], shared: Collection[str], remote: Remote | None = None
    ) -> dict[str, EvaluatorConfig | MmsslError]:
        """Its evaluators by name, with those of its sets; an error in place of those of a set that cannot be used.

        Args:
            data: folder of the sets.
            modalities: of the model, see `evaluation_modalities`.
            shared: modalities in the model's shared space.
            remote: client for addresses; None: one with the usual cache.

        Raises:
            DataError: none of the sets is there. RecipeError: a set has the name of an evaluator.
        """
        found: dict[str, EvaluatorConfig | MmsslError] = {}
        folders: dict[str, str | Path] = {_name(one): one if is_remote(one) else data / one for one in self.sets}
        missing = [name for name, folder in folders.items() if isinstance(folder, Path) and not folder.is_dir()]
        if missing and len(missing) == len(folders):
            raise DataError(f"{data} has none of the folders {shorten(missing, 8)}; give their folder by --data")
        if missing and self.on_missing == "skip":
            log.warning("left out, because %s has no such folder: %s", data, ", ".join(missing))
        for name, folder in folders.items():
            if name in missing and self.on_missing == "skip":
                continue
            try:
                found |= set_evaluators(folder, name, modalities, shared, remote)
            except MmsslError as error:
                found[name] = error
        twice = found.keys() & self.evaluators.keys()
        if twice:
            raise RecipeError(f"evaluators.{min(twice)}: a set has that name too; rename the evaluator")
        return {**self.evaluators, **found}


def _name(folder: str) -> str:
    """Name of a set in results: its folder below the data, or the last part of an absolute path or of an address."""
    if is_remote(folder):
        return _UNUSUAL.sub("-", folder.partition("?")[0].rstrip("/").rpartition("/")[2]) or "set"
    path = Path(folder)
    return path.name if path.is_absolute() else path.as_posix().replace("/", "-")


def find_suite(name: str) -> Suite:
    """The suite of a YAML file, of a shipped name, of a folder that is a test set or holds some, or of the address of a test set.

    Raises:
        RecipeError: none of these, or mistakes in the file.
    """
    if is_remote(name):
        return Suite(sets=(name,))
    path = Path(name).expanduser()
    if path.is_dir():
        inside = sorted(one for one in path.iterdir() if one.is_dir() and is_set(one))
        found = [path] if is_set(path) else inside
        if not found:
            raise RecipeError(f"{name!r} is a folder without test sets; wanted {name}/test/0.tar, or folders with such")
        return Suite(sets=tuple(str(one.absolute()) for one in found))
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return validate_text(Suite, read_recipe_text(path), str(path))
    shipped = shipped_suites()
    if name not in shipped:
        hint = did_you_mean(name, shipped)
        raise RecipeError(
            f"{name!r} is no suite{hint}; wanted a YAML file, a folder of test sets, or one of {sorted(shipped)}"
        )
    return validate_text(Suite, read_recipe_text(shipped[name]), str(shipped[name]))


def read_as(config: E, data: DataConfig) -> E:
    """The evaluator's config with workers, cache and permission for remote shards as the run has them, unless it has its own."""
    usual = {"workers": data.workers, "cache": data.cache, "allow_pipe": data.allow_pipe}
    return config.model_copy(update={name: value for name, value in usual.items() if getattr(config, name) is None})


def evaluation_modalities(modalities: Mapping[str, Modality]) -> dict[str, Modality]:
    """A recipe's modalities, with "label" (class numbers in .cls) and "multi_label" (vectors in .npy) unless it has such names."""
    added = {LABEL: LabelConfig().build(LABEL), MULTI_LABEL: MultiLabelConfig().build(MULTI_LABEL)}
    return {**added, **modalities}
