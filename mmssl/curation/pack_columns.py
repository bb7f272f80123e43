"""Columns of a table to pack: which hold the media, captions, labels and keys, and templates that join several."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from mmssl.core.config import Config
from mmssl.core.errors import DataError, did_you_mean
from mmssl.data.modalities.usual import file_formats

_BRACES = re.compile(r"\{([^{}]+)\}")
_MEDIA = ("image", "audio", "video", "media", "files")
_TOGETHER = (_MEDIA, ("captions",), ("label", "class_name", "labels"), ("key",))
_USUAL = {
    "files": ("path", "filepath", "file"),
    "captions": ("caption", "text"),
    "label": ("label",),
    "class_name": (),
    "labels": (),
    "key": ("key",),
}


class Columns(Config):
    """Which columns of a table hold the media, captions, labels and keys.

    A column named here must exist, or be a template such as `audio/{id}.wav`, whose braces name columns. Columns not named here
    are found by their usual names, and may be absent. If any media column is named, no other media column is searched. Media are
    paths, relative to the table's folder, or bytes. With several media columns, an empty cell means that the sample lacks that
    modality.

    Attributes:
        image: pictures. Usual: image, img.
        audio: sounds, or videos of which only the sound is used. Usual: audio, sound.
        video: videos. Usual: video.
        media: kind of modality -> column, for modalities of other packages. Usual: the names that the modality declares.
        files: media of any modality. Usual, if there is no column of the above: path, filepath, file.
        captions: columns of one caption each. Usual: caption, text.
        label: class number or class name. Usual: label.
        class_name: name of the class whose number is in `label`.
        labels: several classes of a sample: a list, or a text with a separator between names or numbers; an empty cell is no class.
        key: key of the sample. Usual: key.
    """

    image: str | None = None
    audio: str | None = None
    video: str | None = None
    media: dict[str, str] = Field(default_factory=dict, exclude_if=lambda media: not media)
    files: tuple[str, ...] | None = None
    captions: tuple[str, ...] | None = None
    label: str | None = None
    class_name: str | None = None
    labels: str | None = Field(default=None, exclude_if=lambda labels: labels is None)
    key: str | None = None

    def or_else(self, others: Columns) -> Columns:
        """These columns, and the other ones for the media, captions, labels or keys of which none is named here."""
        taken = [
            name for names in _TOGETHER if all(getattr(self, name) in (None, {}) for name in names) for name in names
        ]
        return self.model_copy(update={name: getattr(others, name) for name in taken})


@dataclass(frozen=True)
class SourceTable:
    """Random access to the rows of a table.

    Attributes:
        kind: its format.
        path: its file or folder.
        root: folder that relative paths start from.
        columns: column names.
        length: number of rows.
        row: number -> values by column, or BadRow; from any thread.
        column: column name -> all its values, for labels, keys and conditions; None in rows that cannot be read.
        where: row number -> line and file, for messages.
        fingerprint: changes when the rows change.
        classes: label column -> its class names, where the format stores them.
        replaced: columns that have a column in their place, which has all that they say.
        usual: the columns of a known format.
        grouped: whether a medium has several rows in this format, one for each caption.
        split: column that names the split of each row; None: there is none.
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
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    replaced: tuple[str, ...] = ()
    usual: Columns = field(default_factory=Columns)
    grouped: bool = False
    split: str | None = None

    def require(self, column: str) -> str:
        """The column, if there is one of this name.

        Raises:
            DataError: there is none.
        """
        if column not in self.columns:
            near = did_you_mean(column, self.columns)
            raise DataError(f"{self.path} has no column {column!r}{near}: it has {list(self.columns)}")
        return column

    def with_values(self, name: str, values: Sequence[Any], *, replaces: str | None = None) -> SourceTable:
        """The table with one more column, of a value for each row; `replaces`: a column that says nothing else."""
        return replace(
            self,
            columns=(*self.columns, name),
            replaced=(*self.replaced, *([replaces] if replaces else ())),
            row=lambda number: {**self.row(number), name: values[number]},
            column=lambda wanted: values if wanted == name else self.column(wanted),
        )

    def of_rows(self, rows: Sequence[int]) -> SourceTable:
        """The table with some of its rows alone, in this order."""

        def column(name: str) -> Sequence[Any]:
            values = self.column(name)
            return [values[row] for row in rows]

        return replace(
            self,
            length=len(rows),
            row=lambda number: self.row(rows[number]),
            column=column,
            where=lambda number: self.where(rows[number]),
        )

    def with_classes(self, name: str, classes: Sequence[str]) -> SourceTable:
        """The table with the names of the classes in a column, by number, on which its fingerprint depends too."""
        fingerprint = hashlib.sha256("\n".join((self.fingerprint, name, *classes)).encode()).hexdigest()
        return replace(self, classes={**self.classes, name: tuple(classes)}, fingerprint=fingerprint)

    def with_template(self, template: str) -> SourceTable:
        """The table with one more column, named as its template: text with columns in braces; empty where one of them is."""
        parts = [self.require(name) for name in template_columns(template)]

        def fill(values: Mapping[str, Any]) -> str:
            texts = {name: "" if values[name] is None else str(values[name]).strip() for name in parts}
            return _BRACES.sub(lambda match: texts[match[1]], template) if all(texts.values()) else ""

        def column(name: str) -> Sequence[Any]:
            if name != template:
                return self.column(name)
            return [fill(dict(zip(parts, row, strict=True))) for row in zip(*map(self.column, parts), strict=True)]

        def row(number: int) -> Mapping[str, Any]:
            values = self.row(number)
            return {**values, template: fill(values)}

        return replace(self, columns=(*self.columns, template), row=row, column=column)


@dataclass(frozen=True)
class Roles:
    """What each column of a table is for.

    Attributes:
        media: column -> kind of modality that it must hold; None: any.
        captions: columns of captions. label, class_name, labels, key: columns; None: there is none.
        others: columns that are for nothing.
    """

    media: Mapping[str, str | None]
    captions: tuple[str, ...]
    label: str | None
    class_name: str | None
    labels: str | None
    key: str | None
    others: tuple[str, ...]


def assign_columns(table: SourceTable, columns: Columns) -> tuple[SourceTable, Roles]:
    """Find the columns of a table; templates become columns of it.

    Raises:
        DataError: a named column does not exist, a medium is named twice, or there is no media column among several that are for
            nothing: only a table of captions needs none.
    """
    columns, known = columns.or_else(table.usual), table.columns
    found = _Found(table)
    media = found.media(columns)
    captions = found.named("captions", columns.captions)
    label, class_name, labels, key = (
        next(iter(found.named(what, (name,) if name else None)), None)
        for what in ("label", "class_name", "labels", "key")
        for name in (getattr(columns, what),)
    )
    if class_name == label:  # a column called `label` that holds names, or numbers
        class_name = None
    if labels is not None:
        if columns.label or columns.class_name:
            raise DataError(
                f"{table.path}: got {labels!r} as the column of several classes, and {columns.label or columns.class_name!r} as "
                "that of one: name one of the two"
            )
        label = None
    used = {name for name in (*media, *captions, label, class_name, labels, key) if name}
    used |= {part for name in used - set(known) for part in template_columns(name)}
    others = tuple(name for name in known if name not in used)
    if not media and (others or not captions):  # captions and nothing else are texts without media
        raise DataError(
            f"{table.path} has the columns {list(known)}: name the one with paths or bytes of media, as in "
            "--column image=NAME"
        )
    return found.table, Roles(media, captions, label or class_name, class_name if label else None, labels, key, others)


def template_columns(template: str) -> tuple[str, ...]:
    """The columns that a template names in braces; none if it is no template."""
    return tuple(dict.fromkeys(_BRACES.findall(template)))


class _Found:
    """Finds columns in a table, to which it adds those that are templates."""

    def __init__(self, table: SourceTable) -> None:
        self.table = table

    def named(self, what: str, names: tuple[str, ...] | None) -> tuple[str, ...]:
        """The named columns; of None the first usual one, if there is any."""
        if names is None:
            usual = _USUAL[what] if what in _USUAL else file_formats()[what].columns
            return tuple(name for name in usual if name in self.table.columns)[:1]
        for name in names:
            if name not in self.table.columns and template_columns(name):
                self.table = self.table.with_template(name)
            self.table.require(name)
        return names

    def media(self, columns: Columns) -> dict[str, str | None]:
        """Media columns, each with the kind of modality that it must hold; None: any."""
        kinds = file_formats()
        for kind in columns.media.keys() - kinds.keys():
            raise DataError(f"got a column of {kind!r}{did_you_mean(kind, kinds)}, wanted one of: {', '.join(kinds)}")
        shipped = {"image": columns.image, "audio": columns.audio, "video": columns.video}
        named = {kind: column for kind, column in (shipped | columns.media).items() if column}
        if columns.files is None and not named:
            usual: dict[str, str | None] = {column: kind for kind in kinds for column in self.named(kind, None)}
            return usual or dict.fromkeys(self.named("files", None))
        found: dict[str, str | None] = dict.fromkeys(self.named("files", columns.files or ()))
        for kind, column in named.items():
            if column in found:
                raise DataError(f"column {column!r} of {self.table.path} is named for two media: name it once")
            found |= dict.fromkeys(self.named(kind, (column,)), kind)
        return found
