"""Class names of an evaluator beside the labels and the names of its shards: a difference is told, another order refused."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from mmssl.core.errors import DataError
from mmssl.core.sample import Sample
from mmssl.data.modalities.class_names import CLASS_NAMES_FILE, class_name_difference, read_class_names
from mmssl.data.modality import Modality
from mmssl.data.samples import iterate
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.paths import expand
from mmssl.data.shards.storage import is_remote
from mmssl.data.stream.formats import numbers_to_look_at

log = logging.getLogger(__name__)

LABELS = 2000
"""Number of labels that are compared with the number of class names before a run."""


def stored_class_names(shards: Sequence[str]) -> dict[Path, tuple[str, ...]]:
    """File -> class names, for each folder of local shards that has them.

    Raises:
        DataError: there are no such shards, or a file cannot be read.
    """
    try:
        return {file: read_class_names(file)[0] for file in beside(shards, CLASS_NAMES_FILE)}
    except ValueError as error:
        raise DataError(f"class names beside the shards: {error}") from error


def one_for_all(stored: Mapping[Path, tuple[str, ...]]) -> tuple[str, ...]:
    """The class names that all folders have; empty: there are none, or they differ."""
    return next(iter(stored.values())) if len(set(stored.values())) == 1 else ()


def beside(shards: Sequence[str], name: str) -> list[Path]:
    """Files of a name in the folders of local shards, or where there is none in the folder above (of several splits).

    Raises:
        DataError: there are no such shards.
    """
    if any(is_remote(shard) for shard in shards):
        return []
    folders = dict.fromkeys(path.parent for path in expand(shards))
    near = [[folder / name, folder.parent / name] for folder in folders]
    found = [next((file for file in files if file.is_file()), None) for files in near]
    return list(dict.fromkeys(file for file in found if file is not None))


def compare_with_stored(names: Sequence[str], shards: Sequence[str], what: str) -> None:
    """Compare class names with those beside the shards; a difference is a warning.

    Args:
        names: by class number.
        shards: paths, braces or globs.
        what: the names, in words.

    Raises:
        DataError: the same names in another order; see also `stored_class_names`.
    """
    for file, stored in stored_class_names(shards).items():
        told = class_name_difference(names, stored, what, str(file))
        if told:
            log.warning("%s", told)


def compare_with_labels(names: Sequence[str], index: ShardIndex, labels: Modality, limit: int | None) -> None:
    """Compare the number of class names with some labels, before a run.

    Args:
        names: by class number.
        index: of the shards.
        labels: modality of the class numbers.
        limit: number of samples, the first ones; None: all.

    Raises:
        DataError: a label has no name; names its key.
    """
    view = labels.view("eval")
    numbers = numbers_to_look_at(index, LABELS, limit)
    for sample in iterate(index, {labels.name: labels}, numbers, optional=[labels.name]):
        if isinstance(sample, Sample) and labels.name in sample.values:
            true = int(view(sample.values[labels.name], {}))
            if not 0 <= true < len(names):
                raise DataError(f"key {sample.key!r} ({sample.origin}) {_outside(true, names)}")
    index.reader.close()


def require_class_numbers(labels: Tensor, owner: Tensor, keys: Mapping[int, str], names: Sequence[str]) -> None:
    """Check that labels [n] of samples `owner` [n] are class numbers, 0 ... K-1 of K names.

    Raises:
        DataError: names the first that is none, and the number of them.
    """
    wrong = (labels < 0) | (labels >= len(names))
    if wrong.any():
        first = int(owner[wrong][0])
        raise DataError(
            f"key {keys[first]!r} (sample {first}) {_outside(int(labels[wrong][0]), names)}; "
            f"{int(wrong.sum())} of {len(labels)} labels are outside"
        )


def _outside(label: int, names: Sequence[str]) -> str:
    return f"has the label {label}, wanted 0 ... {len(names) - 1} for {len(names)} class names: check `classnames`"
