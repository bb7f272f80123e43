"""Packing from tables: the rows that are chosen and grouped become samples of media, captions, labels and keys."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np

from mmssl.core.errors import DataError
from mmssl.curation.pack_columns import SourceTable, assign_columns
from mmssl.curation.pack_config import SEPARATOR, PackConfig
from mmssl.curation.pack_formats import BadRow, check_media, read_media
from mmssl.curation.pack_items import Item, RowSource
from mmssl.curation.pack_keys import Keys
from mmssl.curation.pack_labels import Labels
from mmssl.curation.pack_rows import choose_rows
from mmssl.data.modalities.usual import file_formats

_log = logging.getLogger(__name__)
VECTOR = "npy"
"""Extension of the vector of a sample's classes."""


class TableSource(RowSource):
    """The rows of a table as samples to pack.

    Args:
        table: the rows.
        config: columns, class names, conditions, groups, keys and metadata.

    Raises:
        DataError: a named column does not exist, there is no media column, or no row is left.
    """

    def __init__(self, table: SourceTable, config: PackConfig) -> None:
        self.table, self.roles = assign_columns(table, config.columns)
        self.kind, self.name, self.fingerprint = table.kind, table.path.name, table.fingerprint
        self.captioned, self.labelled = bool(self.roles.captions), self.roles.label is not None
        self.several = self.roles.labels is not None
        if config.separator != SEPARATOR and not self.several:
            raise DataError(
                f"{table.path}: no column of several classes is named, so the separator {config.separator!r} has no effect: name "
                "the column (--column labels=NAME), or leave --separator out"
            )
        self._labels = Labels(self.table, self.roles, config.class_names, config.separator)
        self.class_names = self._labels.names
        self.metadata = self.roles.others if config.metadata else ()
        self._tell_of_others(config.metadata)
        self._unanswered, rows = choose_rows(self.table, config)
        by_media = config.group_by == "media" or (config.group_by is None and table.grouped)
        self.groups = self._grouped(rows) if by_media else [(row,) for row in rows]
        self.keys = self._find_keys(config.keys)
        self.notes = () if self.keys is None else self.keys.notes

    def __len__(self) -> int:
        return len(self.groups)

    def where(self, row: int) -> str:
        return self.table.where(self.groups[row][0])

    def item(self, row: int) -> Item:
        group, where = self.groups[row], self.where(row)
        rows = [self.table.row(number) for number in group]
        for number in group:
            if number in self._unanswered:
                raise BadRow(self.table.where(number), "no_answer", self._unanswered[number])
        fields = self._fields(where, rows[0])
        captions = tuple(
            text
            for number, values in zip(group, rows, strict=True)
            for column in self.roles.captions
            for text in _captions(self.table.where(number), column, values[column])
        )
        if self.captioned and not captions:
            raise BadRow(where, "empty_caption", f"no text in {' or '.join(map(repr, self.roles.captions))}")
        if self.metadata:
            fields["json"] = _metadata(where, {name: [values[name] for values in rows] for name in self.metadata})
        if self.roles.labels is not None:
            if VECTOR in fields:
                raise BadRow(where, "unsupported", f"got a .{VECTOR} file, wanted none beside the vector of classes")
            fields[VECTOR] = self._labels.vector(where, [values[self.roles.labels] for values in rows])
        key = None if self.keys is None else self.keys.key(row)
        return Item(where, fields, captions, self._label(where, rows), key)

    def _fields(self, where: str, values: Mapping[str, Any]) -> dict[str, bytes | np.ndarray]:
        fields: dict[str, bytes | np.ndarray] = {}
        for column, kind in self.roles.media.items():
            if len(self.roles.media) > 1 and _is_empty(values[column]):
                continue
            extension, data = self._medium(f"{where}, column {column!r}", values[column], kind)
            if extension in fields:
                raise BadRow(where, "unsupported", f"got two files with the extension .{extension}, wanted one")
            fields[extension] = data
        if not fields and self.roles.media:
            columns = ", ".join(map(repr, self.roles.media))
            raise BadRow(where, "missing_file", f"got empty cells in {columns}, wanted a file in at least one")
        return fields

    def _medium(self, where: str, value: Any, kind: str | None) -> tuple[str, bytes]:
        value = _cell(value)
        if _is_empty(value) or not isinstance(value, str | bytes):
            raise BadRow(where, "missing_file", f"got {value!r}, wanted the path of a file")
        if isinstance(value, bytes):
            extension, data = check_media(where, None, value)
        else:
            extension, data = read_media(where, self.table.root / value.strip())
        formats = file_formats()[kind] if kind else None
        if formats is not None and extension not in formats.extensions:
            wanted = f"{formats.what}: {', '.join(formats.extensions)}"
            raise BadRow(where, "unsupported", f"got a .{extension} file, wanted {wanted}")
        return extension, data

    def _label(self, where: str, rows: list[Mapping[str, Any]]) -> int | None:
        if self.roles.label is None:
            return None
        numbers = {self._labels.number(where, values[self.roles.label]) for values in rows}
        if len(numbers) > 1:
            detail = f"got the labels {sorted(numbers)} in the {len(rows)} rows of one medium, wanted one"
            raise BadRow(where, "bad_label", detail)
        return numbers.pop()

    def _grouped(self, rows: list[int]) -> list[tuple[int, ...]]:
        """Rows with equal media, in the order of their first ones. Rows without any stay alone, to be refused."""
        groups: dict[Any, list[int]] = {}
        cells = [self.table.column(column) for column in self.roles.media]
        for row in rows:
            media = tuple(_identity(column[row]) for column in cells)
            groups.setdefault(media if any(media) else row, []).append(row)
        return [tuple(group) for group in groups.values()]

    def _find_keys(self, source: str | None) -> Keys | None:
        if source is not None and self.roles.key is not None:
            raise DataError(
                f"{self.table.path} has the keys of {self.roles.key!r}: leave out --keys files, or the column"
            )
        if source is not None and not self.roles.media:
            raise DataError(f"{self.table.path} has no column of files: leave out --keys files")
        if source is None and self.roles.key is None:
            return None
        columns = [self.table.column(name) for name in ((self.roles.key,) if self.roles.key else self.roles.media)]
        cells = [[column[group[0]] for column in columns] for group in self.groups]
        values = [row[0] if source is None else next(filter(None, map(_file_name, row)), None) for row in cells]
        return Keys(values, lambda row: self.table.where(self.groups[row][0]))

    def _tell_of_others(self, kept: bool) -> None:
        lost = [name for name in self.roles.others if name not in self.table.replaced]
        if lost and not kept:
            _log.warning(
                "%s: columns that are not packed: %s; --metadata keeps them, in each sample's .json",
                self.table.path,
                ", ".join(map(repr, lost)),
            )


def _captions(where: str, column: str, value: Any) -> Iterator[str]:
    """The captions in a cell: one text, or a list of them; none if it is empty.

    Raises:
        BadRow: a value that is no text, such as a struct, bytes or NaN.
    """
    for text in value if isinstance(value, list | tuple | np.ndarray) else (value,):
        wrong = isinstance(text, bytes | Mapping | list | tuple | np.ndarray) or (
            isinstance(text, float) and text != text
        )
        if wrong:
            raise BadRow(
                where, "bad_caption", f"got {_shortened(text)} in {column!r}, wanted a text or a list of texts"
            )
        if text is not None and str(text).strip():
            yield str(text)


def _metadata(where: str, columns: Mapping[str, list[Any]]) -> bytes:
    """JSON of the other columns: one value where all rows of the sample have the same, else the list of them."""
    values = {name: cells[0] if all(cell == cells[0] for cell in cells) else cells for name, cells in columns.items()}
    try:
        return json.dumps(values, ensure_ascii=False, allow_nan=False, default=_plain).encode()
    except (TypeError, ValueError) as error:
        raise BadRow(where, "bad_metadata", f"{error}: leave such a column out of the table") from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, bytes):
        raise TypeError(f"got {len(value)} bytes in a column, wanted numbers and texts")
    return str(value)  # dates, decimals


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _cell(value: Any) -> Any:
    # Hugging Face stores media as {"bytes", "path"}.
    return (value.get("bytes") or value.get("path")) if isinstance(value, Mapping) else value


def _identity(value: Any) -> Any:
    """What two cells have in common that hold the same medium: its path, or the digest of its bytes."""
    value = _cell(value)
    return hashlib.sha256(value).digest() if isinstance(value, bytes) else str(value or "").strip()


def _file_name(value: Any) -> str:
    path = value.get("path") if isinstance(value, Mapping) else value
    return PurePath(path.strip()).stem if isinstance(path, str) else ""


def _is_empty(value: Any) -> bool:
    value = _cell(value)
    return value is None or (isinstance(value, str) and not value.strip())
