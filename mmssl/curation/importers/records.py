"""What the importers of known data sets share: tables of JSON records, and the media files that rows name by an identifier."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmssl.core.errors import DataError
from mmssl.curation.importers.folder import files_below
from mmssl.curation.importers.formats import Found
from mmssl.curation.pack_columns import SourceTable
from mmssl.curation.pack_formats import packed_extensions


def record_table(found: Found, kind: str, records: Sequence[dict[str, Any]], root: Path, **known: Any) -> SourceTable:
    """A table of records, one a row, with a column for each key.

    Args:
        found: the JSON file.
        kind: name of the format.
        records: the rows.
        root: folder that relative paths start from.
        **known: of `SourceTable`, what is known of the format; `where` names a row.
    """
    columns = tuple(dict.fromkeys(key for record in records for key in record))
    rest = {"where": lambda row: f"row {row} of {found.path}"} | known
    return SourceTable(
        kind=kind,
        path=found.path,
        root=root,
        columns=columns,
        length=len(records),
        row=lambda row: {name: records[row].get(name) for name in columns},
        column=lambda name: [record.get(name) for record in records],
        fingerprint=hashlib.sha256(found.path.read_bytes()).hexdigest(),
        **rest,
    )


def usual_root(found: Found, root: Path | None, *names: str) -> Path:
    """The folder of the media: the given one, or the first of these that exists beside the file, or the file's own."""
    folder = found.path.parent
    return root or next((folder / name for name in names if (folder / name).is_dir()), folder)


def numbered_names(table: SourceTable, number: str, name: str) -> tuple[str, ...]:
    """Names of classes in the order of their numbers, from two columns of a table.

    Raises:
        DataError: the numbers are not 0 to the number of rows - 1, each once.
    """
    pairs = zip(table.column(table.require(number)), table.column(table.require(name)), strict=True)
    names = {str(one).strip(): str(other).strip() for one, other in pairs}
    missing = next((one for one in range(table.length) if not names.get(str(one))), None)
    if missing is not None:
        raise DataError(
            f"{table.path} has no class {missing} with a name: wanted the numbers 0 to {table.length - 1} in {number!r}, each once"
        )
    return tuple(names[str(one)] for one in range(table.length))


class NamedMedia:
    """The media files below a folder, by their names without extension.

    Args:
        root: the folder.
        usual: extension in the message about a file that does not exist.
    """

    def __init__(self, root: Path, usual: str) -> None:
        self.root, self.usual = root, usual
        self._paths: dict[str, list[str]] = {}
        for path in sorted(files_below(root)) if root.is_dir() else ():
            if path.suffix[1:].lower() in packed_extensions():
                self._paths.setdefault(path.stem, []).append(path.relative_to(root).as_posix())

    def path(self, *names: str) -> str:
        """Path of the file with the first of these names that exists; else of the first name, with the usual extension.

        Raises:
            DataError: two files have the name.
        """
        for name in names:
            found = self._paths.get(name, ())
            if len(found) > 1:
                raise DataError(
                    f"{self.root} has {found[0]} and {found[1]} for {name!r}: name a folder with one (--root)"
                )
            if found:
                return found[0]
        return f"{names[0]}.{self.usual}"
