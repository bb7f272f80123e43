"""Class names of an evaluator beside those that are stored with its shards: a difference is told, another order refused."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from mmssl.core.errors import DataError
from mmssl.data.modalities.class_names import CLASS_NAMES_FILE, difference, read_class_names
from mmssl.data.shards.paths import expand
from mmssl.data.shards.storage import is_remote

log = logging.getLogger(__name__)


def stored_class_names(shards: Sequence[str]) -> dict[Path, tuple[str, ...]]:
    """File -> class names, for each folder of local shards that has them.

    Raises:
        DataError: there are no such shards, or a file cannot be read.
    """
    try:
        return {file: read_class_names(file)[0] for file in beside(shards, CLASS_NAMES_FILE)}
    except (OSError, ValueError) as error:
        raise DataError(f"class names beside the shards: {error}") from error


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
        told = difference(names, stored, what, str(file))
        if told:
            log.warning("%s", told)
