"""The rows of a table that are packed: those of one split, and those that fulfil the conditions of `--where`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from mmssl.core.errors import DataError
from mmssl.curation.pack_columns import SourceTable
from mmssl.curation.pack_config import PackConfig
from mmssl.curation.where import Condition, NoAnswer, Where, parse_conditions

_log = logging.getLogger(__name__)


def choose_rows(table: SourceTable, config: PackConfig) -> tuple[dict[int, str], list[int]]:
    """Rows that cannot answer the conditions (row -> why), and all rows to pack, with those.

    Raises:
        DataError: a condition names no column, the format has several splits and none was named, or no row is left.
    """
    if not table.length:
        raise DataError(f"{table.path} has no rows")
    where = _conditions(table, config)
    if where is None:
        return {}, list(range(table.length))
    columns = {name: table.column(table.require(name)) for name in where.names}
    unanswered: dict[int, str] = {}
    rows = []
    for row in range(table.length):
        try:
            fits = where({name: values[row] for name, values in columns.items()})
        except NoAnswer as error:
            unanswered[row], fits = str(error), True
        if fits:
            rows.append(row)
    if not rows:
        seen = "; ".join(f"{name} is {_some_values(values)}" for name, values in columns.items())
        raise DataError(f"{table.path} has no rows that fit {config.where!r}: {seen}")
    if len(rows) < table.length:
        _log.warning("%s: %d of %d rows are chosen by the conditions", table.path, len(rows), table.length)
    return unanswered, rows


def _conditions(table: SourceTable, config: PackConfig) -> Where | None:
    where = parse_conditions(config.where) if config.where is not None else Where(())
    column = table.split or "split"
    if config.split is not None:
        splits = _splits(table, table.require(column))
        if config.split not in splits:
            raise DataError(f"{table.path} has the splits {splits}, got split={config.split!r}: name one of them")
        where = Where((*where.conditions, Condition(column, "==", (config.split,))))
    elif table.split is not None and column not in where.names and len(splits := _splits(table, column)) > 1:
        raise DataError(
            f"{table.path} has the splits {splits}: name one (--split {splits[0]}), or several "
            f"(--where '{column} in [{', '.join(splits[:2])}]')"
        )
    return where if where.conditions else None


def _some_values(values: Sequence[Any]) -> str:
    """Up to five different values of a column, in the order of the rows."""
    found = list(dict.fromkeys(repr(value)[:60] for value in values))
    return ", ".join(found[:5]) + (", ..." if found[5:] else "")


def _splits(table: SourceTable, column: str) -> list[str]:
    return sorted({str(value).strip() for value in table.column(column)} - {"", "None"})
