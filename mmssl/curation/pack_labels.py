"""Labels of a table to pack: class numbers, one or several a row, and the names of the classes."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmssl.core.errors import DataError
from mmssl.curation.pack_columns import Roles, SourceTable
from mmssl.curation.pack_formats import BadRow
from mmssl.data.modalities.class_names import class_name_difference

_log = logging.getLogger(__name__)
_NUMBER = re.compile(r"[+-]?[0-9]+(\.0*)?")


class Labels:
    """Class numbers of a table's rows, and the names of the classes.

    Names are given, or stored by the format, or in a column beside that of the numbers, or they are the sorted labels themselves.
    They are those of the whole table, whichever rows are packed: the parts of a data set have the same numbers. Where a table of
    numbers and names lacks some numbers, as a part of a data set does, the others are numbered anew, in their order.

    Attributes:
        column: of the labels. separator: between several of one cell; None: a row has one.
        names: of the classes, by number; empty if they have none.

    Raises:
        DataError: a number with two names or a name with two numbers; no number with a name; the given names in another order.
    """

    def __init__(
        self, table: SourceTable, roles: Roles, given: tuple[str, ...] | None = None, separator: str | None = None
    ) -> None:
        self.column = roles.label or roles.labels
        self.separator = separator if roles.labels else None
        self._places: dict[int, int] | None = None  # number in the table -> number that is packed, where they differ
        own = self._own_names(table, roles, given or ())
        if given and own:
            told = class_name_difference(given, own, "the given names", str(table.path))
            if told:
                _log.warning("%s: the given ones are stored", told)
        self.names = given or own or self._sorted_names(table)
        self._numbers = {name: number for number, name in reversed([*enumerate(self.names)])}
        self._count = len(self.names) or (self._greatest(table) + 1 if self.separator else 0)

    def number(self, where: str, value: Any) -> int:
        """The class number that a label means.

        Raises:
            BadRow: it is no class.
        """
        text = _text(value)
        number = _whole_number(text)
        if text in self._numbers and (number is None or isinstance(value, str)):
            return self._numbers[text]
        if number is not None and self._places is not None:
            number = self._places.get(number)
        if number is not None and 0 <= number < (len(self.names) or number + 1):
            return number
        wanted = f"one of {len(self.names)} class names or their numbers" if self.names else "an integer of at least 0"
        raise BadRow(where, "bad_label", f"got {text!r} in {self.column!r}, wanted {wanted}")

    def vector(self, where: str, cells: Sequence[Any]) -> bytes:
        """A `.npy` of uint8 [classes], 1 for each class in some cells, as the modality `multi_label` reads it.

        Raises:
            BadRow: one of them is no class.
        """
        vector = np.zeros(self._count, np.uint8)
        vector[[self.number(where, one) for cell in cells for one in self._split(cell)]] = 1
        file = io.BytesIO()
        np.save(file, vector, allow_pickle=False)
        return file.getvalue()

    def _split(self, cell: Any) -> list[Any]:
        """The labels in a cell: several of a column of several, else the cell."""
        if self.separator is None:
            return [cell]
        found = cell if isinstance(cell, list | tuple | np.ndarray) else _text(cell).split(self.separator)
        return [one for one in found if _text(one) not in ("", "nan")]

    def _greatest(self, table: SourceTable) -> int:
        numbers = (_whole_number(_text(one)) for cell in table.column(self.column or "") for one in self._split(cell))
        return max((number for number in numbers if number is not None), default=-1)

    def _own_names(self, table: SourceTable, roles: Roles, given: tuple[str, ...]) -> tuple[str, ...]:
        if self.column is None:
            return ()
        if roles.class_name is None:
            return table.classes.get(self.column, ())
        names = _paired_names(table, self.column, roles.class_name)
        if not names:
            raise DataError(
                f"{table.path} has no class number with a name in {self.column!r} and {roles.class_name!r}: name one column of "
                "them, not both"
            )
        if given:  # by number
            return tuple(names.get(number, name) for number, name in enumerate(given))
        numbers = sorted(names)
        if numbers[-1] >= len(numbers):
            self._places = {number: place for place, number in enumerate(numbers)}
            _log.warning(
                "%s: %r has %d of the numbers from 0 to %d: its classes are numbered from 0 to %d instead, in their order; "
                "--classnames FILE with all names keeps the numbers",
                *(table.path, self.column, len(numbers), numbers[-1], len(numbers) - 1),
            )
        return tuple(names[number] for number in numbers)

    def _sorted_names(self, table: SourceTable) -> tuple[str, ...]:
        if self.column is None:
            return ()
        names = {_text(one) for cell in table.column(self.column) for one in self._split(cell)} - {"", "nan"}
        # Numbers where most are: an odd value is refused in its row, and does not rename the classes of all others.
        numbers = sum(_whole_number(name) is not None for name in names)
        return () if 2 * numbers >= len(names) else tuple(sorted(names))


def _paired_names(table: SourceTable, label: str, class_name: str) -> dict[int, str]:
    """Name of each class number, from two columns that must agree one to one. Other rows are refused when they are packed."""
    seen: dict[int | str, tuple[int, int | str]] = {}
    names: dict[int, str] = {}
    for row, (value, name) in enumerate(zip(table.column(label), table.column(class_name), strict=True)):
        number, text = _whole_number(_text(value)), _text(name)
        if number is None or number < 0 or not text:
            continue
        names[number] = text
        for one, other in ((number, text), (text, number)):
            first, earlier = seen.setdefault(one, (row, other))
            if earlier != other:
                raise DataError(
                    f"{table.where(row)}: got class {number} with the name {text!r}, and {table.where(first)} disagrees; "
                    f"wanted one name in {class_name!r} for each number in {label!r}"
                )
    return names


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _whole_number(text: str) -> int | None:
    """The number that a label means, "3" or "3.0" or "-1"; None for names and fractions."""
    return int(text.split(".")[0]) if _NUMBER.fullmatch(text) else None
