"""Packing from tables: `Table` gives row i of a file; `TableSource` assigns its columns to media, captions and labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from mmssl.core.config import Config
from mmssl.core.errors import DataError, did_you_mean
from mmssl.curation.pack_formats import BadRow, check_media, read_media
from mmssl.curation.pack_items import Item, RowSource
from mmssl.data.modalities.usual import file_formats

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.0*)?")
MAX_KEY = 80  # tar names end at 100 bytes, and an extension follows


class Columns(Config):
    """Which columns of a table hold the media, captions, labels and keys.

    A column named here must exist. Columns not named here are found by their usual names, and may be absent. If any media column
    is named, no other media column is searched. Media are paths, relative to the table's folder, or bytes. With several media
    columns, an empty cell means that the sample lacks that modality.

    Attributes:
        image: pictures. Usual: image, img.
        audio: sounds, or videos of which only the sound is used. Usual: audio, sound.
        video: videos. Usual: video.
        media: kind of modality -> column, for modalities of other packages. Usual: the names that the modality declares.
        files: media of any modality. Usual, if there is no column of the above: path, filepath, file.
        captions: columns of one caption each. Usual: caption, text.
        label: class number or class name. Usual: label.
        key: key of the sample. Usual: key.
    """

    image: str | None = None
    audio: str | None = None
    video: str | None = None
    media: dict[str, str] = Field(default_factory=dict, exclude_if=lambda media: not media)
    files: tuple[str, ...] | None = None
    captions: tuple[str, ...] | None = None
    label: str | None = None
    key: str | None = None


_USUAL = {
    "files": ("path", "filepath", "file"),
    "captions": ("caption", "text"),
    "label": ("label",),
    "key": ("key",),
}


@dataclass(frozen=True)
class Table:
    """Random access to the rows of a table.

    Attributes:
        kind: the sort of table.
        path: its file or folder.
        root: folder that relative paths start from.
        columns: column names.
        length: number of rows.
        row: number -> values by column; from any thread.
        column: column name -> all its values, for labels and keys.
        where: row number -> line and file, for messages.
        fingerprint: changes when the rows change.
        classes: label column -> its class names, where the format stores them.
    """

    kind: str
    path: Path
    root: Path
    columns: tuple[str, ...]
    length: int
    row: Callable[[int], Mapping[str, Any]]
    column: Callable[[str], Sequence[Any]]
    where: Callable[[int], str]
    fingerprint: str
    classes: Mapping[str, tuple[str, ...]]


class TableSource(RowSource):
    """The rows of a table as samples to pack.

    Args:
        table: the rows.
        columns: which columns hold the media, captions, labels and keys.
        class_names: names of the classes; None: from the table, if its labels are names.

    Raises:
        DataError: a named column does not exist, or there are no rows or no media column.
    """

    def __init__(self, table: Table, columns: Columns, class_names: tuple[str, ...] | None) -> None:
        self.table = table
        self.kind = table.kind
        self.name = table.path.name
        self.fingerprint = table.fingerprint
        self.media = self._find_media(columns)
        self.captions = self._find("captions", columns.captions)
        self.label = self._find_one("label", columns.label)
        self.key = self._find_one("key", columns.key)
        if not self.media:
            raise DataError(
                f"{table.path} has the columns {list(table.columns)}: name the one with paths or bytes of media, as in "
                "--column image=NAME"
            )
        if not len(self):
            raise DataError(f"{table.path} has no rows")
        self.captioned = bool(self.captions)
        self.labelled = self.label is not None
        self.class_names = class_names or self._class_names()
        self.repeated = self._repeated_keys()

    def __len__(self) -> int:
        return self.table.length

    def item(self, row: int) -> Item:
        where = self.table.where(row)
        values = self.table.row(row)
        fields: dict[str, bytes] = {}
        for column, kind in self.media.items():
            if len(self.media) > 1 and _is_empty(values[column]):
                continue
            extension, data = self._medium(f"{where}, column {column!r}", values[column], kind)
            if extension in fields:
                raise BadRow(where, "unsupported", f"got two files with the extension .{extension}, wanted one")
            fields[extension] = data
        if not fields:
            columns = ", ".join(map(repr, self.media))
            raise BadRow(where, "missing_file", f"got empty cells in {columns}, wanted a file in at least one")
        captions = tuple(text for column in self.captions for text in _captions(where, column, values[column]))
        if self.captions and not captions:
            raise BadRow(where, "empty_caption", f"no text in {' or '.join(map(repr, self.captions))}")
        label = self._class_number(where, values[self.label]) if self.label else None
        return Item(where, fields, captions, label, self._key(where, row, values))

    def _find_media(self, columns: Columns) -> dict[str, str | None]:
        """Media columns, each with the kind of modality that it must hold; None: any."""
        kinds = file_formats()
        for kind in columns.media.keys() - kinds.keys():
            raise DataError(f"got a column of {kind!r}{did_you_mean(kind, kinds)}, wanted one of: {', '.join(kinds)}")
        shipped = {"image": columns.image, "audio": columns.audio, "video": columns.video}
        named = {kind: column for kind, column in (shipped | columns.media).items() if column}
        if columns.files is None and not named:
            usual: dict[str, str | None] = {column: kind for kind in kinds for column in self._find(kind, None)}
            return usual or dict.fromkeys(self._find("files", None))
        found: dict[str, str | None] = dict.fromkeys(self._find("files", columns.files or ()))
        for kind, column in named.items():
            if column in found:
                raise DataError(f"column {column!r} of {self.table.path} is named for two media: name it once")
            found |= dict.fromkeys(self._find(kind, (column,)), kind)
        return found

    def _find(self, what: str, named: tuple[str, ...] | None) -> tuple[str, ...]:
        present = self.table.columns
        if named is None:
            usual = _USUAL[what] if what in _USUAL else file_formats()[what].columns
            return tuple(column for column in usual if column in present)[:1]
        for column in named:
            if column not in present:
                raise DataError(
                    f"{self.table.path} has no column {column!r}{did_you_mean(column, present)}: it has {list(present)}"
                )
        return named

    def _find_one(self, what: str, named: str | None) -> str | None:
        found = self._find(what, None if named is None else (named,))
        return found[0] if found else None

    def _class_names(self) -> tuple[str, ...]:
        if self.label is None:
            return ()
        if self.label in self.table.classes:
            return self.table.classes[self.label]
        names = {str(value).strip() for value in self.table.column(self.label)} - {"", "None", "nan"}
        # Numbers where most are: an odd value is refused in its row, and does not rename the classes of all others.
        numbers = sum(_whole_number(name) is not None for name in names)
        return () if 2 * numbers >= len(names) else tuple(sorted(names))

    def _class_number(self, where: str, value: Any) -> int:
        text = "" if value is None else str(value).strip()
        number = _whole_number(text)
        if text in self.class_names and (number is None or isinstance(value, str)):
            return self.class_names.index(text)
        if number is not None and 0 <= number < (len(self.class_names) or number + 1):
            return number
        wanted = (
            f"one of {len(self.class_names)} class names or their numbers"
            if self.class_names
            else "an integer of at least 0"
        )
        raise BadRow(where, "bad_label", f"got {text!r} in {self.label!r}, wanted {wanted}")

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

    def _key(self, where: str, row: int, values: Mapping[str, Any]) -> str | None:
        if self.key is None:
            return None
        key = safe_key(values[self.key])
        if not key:
            raise BadRow(where, "bad_key", f"got {values[self.key]!r}, wanted letters or digits")
        if row in self.repeated:
            first = self.table.where(self.repeated[row])
            raise BadRow(where, "duplicate_key", f"got key {key!r}, which {first} has too; wanted distinct keys")
        return key

    def _repeated_keys(self) -> dict[int, int]:
        """Row -> the earlier row with the same key after `safe_key`."""
        first: dict[str, int] = {}
        values = self.table.column(self.key) if self.key else ()
        rows = ((row, first.setdefault(safe_key(value), row)) for row, value in enumerate(values))
        return {
            row: earlier for row, earlier in rows if earlier != row
        }  # `_key` refuses empty keys before it looks here


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


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _whole_number(text: str) -> int | None:
    """The number that a label means, "3" or "3.0" or "-1"; None for names and fractions."""
    if not _NUMBER.fullmatch(text):
        return None
    return int(text.split(".")[0])


def _cell(value: Any) -> Any:
    # Hugging Face stores media as {"bytes", "path"}.
    return (value.get("bytes") or value.get("path")) if isinstance(value, Mapping) else value


def _is_empty(value: Any) -> bool:
    value = _cell(value)
    return value is None or (isinstance(value, str) and not value.strip())


def safe_key(value: Any) -> str:
    """Turn a value into a key of letters, digits, `-` and `_`: in tar names a dot starts the extension, and a slash a folder."""
    return _UNSAFE.sub("_", str(value if value is not None else "")).strip("_")[:MAX_KEY]
