"""Tables in text: CSV, TSV, and with any other delimiter. A row that cannot be read is named, and costs no other."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from mmssl.core.errors import DataError, os_words
from mmssl.curation.importers.formats import Found, sniff_delimiter, table_format
from mmssl.curation.pack_columns import SourceTable
from mmssl.curation.pack_config import PackConfig
from mmssl.curation.pack_formats import BadRow

_BAD_BYTE = re.compile("[\udc80-\udcff]")
_QUOTES = "wanted quotes around a whole value, and each quote inside it twice"
_TEXTS = (".csv", ".tsv")


def read_csv(
    path: Path,
    root: Path | None = None,
    delimiter: str | None = None,
    header: Sequence[str] | None = None,
    *,
    skip: int = 0,
    blanks: bool = False,
    **known: Any,
) -> SourceTable:
    """Read a table in text: UTF-8, one row a line; values with delimiters, quotes or line ends stand in double quotes.

    A misplaced quote makes one value of several rows. A row of several lines is taken for that, and its first line alone is
    malformed, if each later line has as many values as the table has columns, and a file name (with an extension) wherever the
    row has one before the value of several lines. Without such a file name, it is so only if that holds for all rows of several
    lines: otherwise texts of several lines are usual in the table.

    Args:
        path: the file.
        root: folder that relative paths start from; None: that of the file.
        delimiter: one character; None: the one of , ; | and tab that the header has (`.tsv`: tab).
        header: column names of a file without a header line.
        skip: lines before the first row, or the header, which are none.
        blanks: blanks behind a delimiter do not count, and quotes may follow them.
        **known: of `SourceTable`, what is known of the format.

    Raises:
        DataError: unreadable, no header, or a column name twice.
    """
    data = _bytes(path)
    lines = list(io.StringIO(data.decode("utf-8-sig", "surrogateescape"), newline=""))
    if delimiter is None:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else sniff_delimiter(lines[0] if lines else "") or ","
    lines[:skip] = ["\n"] * skip
    records = list(_records(lines, delimiter, blanks=blanks))
    if header is None:
        header = _header(path, records.pop(0) if records else None)
    columns, width = tuple(header), len(header)
    records = list(_separated(records, lines, delimiter, width, blanks))

    def where(number: int) -> str:
        return f"line {records[number].line} of {path}"

    def row(number: int) -> Mapping[str, str]:
        values = records[number].values
        if isinstance(values, str):
            raise BadRow(where(number), "malformed_row", values)
        if len(values) != width:
            detail = f"got {len(values)} values, wanted {width}: {list(columns)}"
            raise BadRow(where(number), "malformed_row", detail)
        return dict(zip(columns, values, strict=True))

    def column(name: str) -> list[str | None]:
        place = columns.index(name)
        return [None if isinstance(one, str) or len(one) != width else one[place] for _, _, one in records]

    return SourceTable(
        **{
            "kind": "csv",
            "path": path,
            "root": root or path.parent,
            "columns": columns,
            "length": len(records),
            "row": row,
            "column": column,
            "where": where,
            "fingerprint": hashlib.sha256(data).hexdigest(),
            **known,
        }
    )


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {os_words(error)}") from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path} is UTF-16 text, wanted UTF-8: save it as UTF-8")
    return data


def _header(path: Path, record: _Record | None) -> tuple[str, ...]:
    if record is None:
        raise DataError(f"{path} is empty: wanted a header line with column names, then one line for each sample")
    line, _, names = record
    if isinstance(names, str):
        raise DataError(f"line {line} of {path}: {names}")
    columns = tuple(name.strip() for name in names)
    if len(set(columns)) != len(columns):
        raise DataError(f"{path} has duplicate column names: {list(columns)}")
    return columns


class _Record(NamedTuple):
    """Values of a row, or what is wrong with it, with the numbers of its first and its last line."""

    line: int
    last: int
    values: list[str] | str


def _records(
    lines: list[str], delimiter: str, start: int = 0, stop: int | None = None, *, blanks: bool = False
) -> Iterator[_Record]:
    """The rows in some lines. Where one is wrong, reading goes on at the line behind."""
    stop = len(lines) if stop is None else stop
    while start < stop:
        rows = (lines[place] for place in range(start, stop))
        reader = csv.reader(rows, delimiter=delimiter, strict=True, skipinitialspace=blanks)
        begin = start
        try:
            for values in reader:
                if values:
                    yield _Record(begin + 1, start + reader.line_num, _checked(values))
                begin = start + reader.line_num
            return
        except csv.Error as error:
            yield _Record(begin + 1, begin + 1, f"{error}: {_QUOTES}")
            start = begin + 1


def _separated(records: list[_Record], lines: list[str], delimiter: str, width: int, blanks: bool) -> Iterator[_Record]:
    """Records, with those that a misplaced quote made of several rows taken apart; `read_csv` has the rule."""
    several = [record for record in records if record.last > record.line and isinstance(record.values, list)]
    swallowing = {
        record.line: names for record in several if (names := _swallowed(record, lines, delimiter, width)) is not None
    }
    usual = len(swallowing) < len(several)
    for record in records:
        if record.line not in swallowing or (usual and not swallowing[record.line]):
            yield record
            continue
        detail = f"a quote makes one value of lines {record.line} to {record.last}, which are rows: {_QUOTES}"
        yield _Record(record.line, record.line, detail)
        yield from _records(lines, delimiter, record.line, record.last, blanks=blanks)


def _swallowed(record: _Record, lines: list[str], delimiter: str, width: int) -> int | None:
    """Number of file names before the value of several lines, if all later lines look like rows; else None."""
    place = next((place for place, value in enumerate(record.values) if "\n" in value or "\r" in value), 0)
    named = [column for column in range(place) if PurePath(record.values[column]).suffix]
    for values in csv.reader(lines[record.line : record.last], delimiter=delimiter, quoting=csv.QUOTE_NONE):
        if width < 2 or len(values) != width or not all(PurePath(values[column]).suffix for column in named):
            return None
    return len(named)


def _checked(values: list[str]) -> list[str] | str:
    bad = next((value for value in values if not value.isascii() and _BAD_BYTE.search(value)), None)
    return values if bad is None else f"got {bad.encode('utf-8', 'surrogateescape')[:40]!r}, wanted UTF-8 text"


def _read(found: Found, config: PackConfig, root: Path | None) -> SourceTable:
    return read_csv(found.path, root, config.delimiter)


def _recognise(found: Found) -> bool:
    suffix = found.path.suffix.lower()
    return found.path.is_file() and (suffix in _TEXTS or (suffix == ".txt" and bool(found.columns)))


CSV = table_format(
    "csv",
    "text with a header line of column names, delimited by , ; | or tab (.csv, .tsv, .txt)",
    _recognise,
    _read,
    (),
)
