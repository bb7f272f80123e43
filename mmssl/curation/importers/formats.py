"""What a format of data sets declares to be packed: its name, how it is recognised, and how it is opened."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmssl.core.errors import DataError
from mmssl.curation.pack_columns import SourceTable
from mmssl.curation.pack_config import PackConfig
from mmssl.curation.pack_items import RowSource
from mmssl.curation.pack_tables import TableSource

OF_TABLES = ("columns", "separator", "delimiter", "where", "split", "group_by", "root")
"""Settings that have an effect on tables only."""
DELIMITERS = ",;\t|"
_HEAD = 1 << 16
_LONGEST_HEADER = 1 << 13  # characters; longer first lines are not sniffed, which takes time


class Found:
    """A path to pack, with what formats look at to recognise it: each is read once, when it is asked for.

    Attributes:
        path: file or folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def line(self) -> str:
        """The first line of a text file; empty if there is none."""
        if not self.path.is_file():
            return ""
        with self.path.open("rb") as file:
            head = file.readline(_HEAD)
        return head.decode("utf-8-sig", "ignore").strip()

    @cached_property
    def columns(self) -> frozenset[str]:
        """The column names of a table in text; empty if its first line has none of the usual delimiters."""
        delimiter = None if len(self.line) > _LONGEST_HEADER else sniff_delimiter(self.line)
        return frozenset(name.strip() for name in self.line.split(delimiter)) if delimiter else frozenset()

    @cached_property
    def document(self) -> dict[str, Any]:
        """The object in a JSON file; empty if it holds none."""
        if not self.line.startswith("{"):
            return {}
        try:
            found = json.loads(self.path.read_text("utf-8-sig"))
        except ValueError as error:
            raise DataError(f"cannot read {self.path} as JSON: {error}") from error
        return found if isinstance(found, dict) else {}

    def records(self, key: str) -> list[dict[str, Any]]:
        """The list of objects under a key of the JSON file; empty if it has none."""
        found = self.document.get(key)
        return found if isinstance(found, list) and all(isinstance(one, dict) for one in found) else []


@dataclass(frozen=True)
class Format:
    """A format of data sets.

    Attributes:
        name: value of `--format`.
        layout: the file and what must stand in it, in words.
        recognise: whether a path is of this format, by its contents.
        open: opens such a path, with the settings and the folder that paths in it start from (None: as the format has it).
        ignores: settings of `PackConfig` that would have no effect, and "root".
    """

    name: str
    layout: str
    recognise: Callable[[Found], bool]
    open: Callable[[Found, PackConfig, Path | None], RowSource]
    ignores: tuple[str, ...] = ()

    def source(self, found: Found, config: PackConfig, root: Path | None) -> RowSource:
        """Open a path.

        Raises:
            DataError: it cannot be used, or a setting would have no effect.
        """
        given = [
            name for name in self.ignores if name != "root" and getattr(config, name) != getattr(PackConfig(), name)
        ]
        given += ["root"] * ("root" in self.ignores and root is not None)
        if given:
            flags = {"columns": "column"}
            options = ", ".join(f"--{flags.get(name, name).replace('_', '-')}" for name in given)
            raise DataError(f"{options}: no effect on {found.path}, {self.layout}; leave it out")
        return self.open(found, config, root)


def table_format(
    name: str,
    layout: str,
    recognise: Callable[[Found], bool],
    read: Callable[[Found, PackConfig, Path | None], SourceTable],
    ignores: tuple[str, ...] = ("delimiter",),
) -> Format:
    """A format whose reader gives a table."""

    def open_table(found: Found, config: PackConfig, root: Path | None) -> RowSource:
        return TableSource(read(found, config, root), config)

    return Format(name, layout, recognise, open_table, ignores)


def sniff_delimiter(header: str) -> str | None:
    """The delimiter in a header line, one of DELIMITERS; None if it has none."""
    try:
        return csv.Sniffer().sniff(next(iter(io.StringIO(header)), ""), delimiters=DELIMITERS).delimiter
    except csv.Error:
        return None
