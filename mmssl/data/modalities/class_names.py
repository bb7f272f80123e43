"""Class names: the one reader of files of them, their checks, and the comparison with names that are stored beside shards."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmssl.core.config import url_of
from mmssl.core.errors import DataError, os_words

CLASS_NAMES_FILE = "classnames.txt"
"""The file beside packed shards: one name on each line, in the order of the class numbers."""

_NUMBERED = re.compile(r"""\s*["']?\d+["']?\s*:""")
_UNQUOTED = re.compile(r"\s*(\d+)\s*:\s*(.*\S)\s*")
_LIKE_CODE = re.compile(r"""^["'].*["'],?$|^[\[\]{}],?$""")
_TABLE = re.compile(r"""\s*["']?(\d+)["']?\s*[,;|\t].*\S|.*\S\s*[,;|\t]\s*["']?(\d+)["']?\s*""")
_WANTED = 'one name on each line; a JSON list; or names by number, as {"0": "tench"} or lines 0: \'tench\','


def read_class_names(path: str | Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read a file of class names: the names in the order of the class numbers, and the place of each, for messages.

    Accepted are one name on each line (blank lines at the end are ignored), a JSON list, a JSON object or Python dictionary from
    number to name, and its lines alone (`0: 'tench',` or `0: tench`).

    Raises:
        ValueError: there is no such file, it cannot be read, or has another content; the message names the place.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(
            f"got {url_of(file) or str(path)!r}, which is no file; wanted a file of class names: {_WANTED}"
        )
    try:
        text = file.read_text(encoding="utf-8-sig").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as text ({os_words(error)}), wanted {_WANTED}") from error
    if text.lstrip()[:1] in ("{", "["):
        return _structured(path, text)
    if _NUMBERED.match(text):
        lines = [_UNQUOTED.fullmatch(line) for line in text.splitlines() if line.strip()]
        if all(line and line[2][0] not in "\"'" for line in lines):
            return _by_number(path, [(line[1], line[2]) for line in lines if line])
        return _structured(path, f"{{{text}}}")
    names = tuple(line.strip() for line in text.splitlines())
    places = tuple(f"{path}, line {number}" for number in range(1, len(names) + 1))
    for name, place in zip(names, places, strict=True):
        if _LIKE_CODE.match(name):
            raise ValueError(f"{place}: got {name}, which looks like code, wanted {_WANTED}")
    _refuse_table(path, names)
    return names, places


def check_class_names(names: Sequence[str], where: Sequence[str], least: int = 2, *, repeats: bool = False) -> None:
    """Check class names: at least `least`, none empty, and unless `repeats` none twice (only the first could be predicted).

    Raises:
        ValueError: says which, and where.
    """
    if len(names) < least:
        raise ValueError(f"got {len(names)} class names, wanted at least {('one', 'two')[least - 1]}")
    seen: dict[str, str] = {}
    for place, name in zip(where, names, strict=True):
        plain = _one_line(name)
        if not plain:
            raise ValueError(
                f"{place}: got an empty class name, wanted one name for each label, in the order of the labels"
            )
        if plain in seen and not repeats:
            raise ValueError(
                f"{place}: got the class name {name!r} again (also at {seen[plain]}), wanted different names. "
                "Make them differ, as in 'crane (bird)' and 'crane (machine)'"
            )
        seen[plain] = place


def repeated_names(names: Sequence[str]) -> dict[str, list[int]]:
    """Name -> its class numbers, for each name that stands more than once; case and blanks do not count."""
    numbers: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        numbers.setdefault(_one_line(name), []).append(number)
    return {names[found[0]]: found for found in numbers.values() if len(found) > 1}


def class_name_difference(given: Sequence[str], stored: Sequence[str], what: str, where: str) -> str:
    """A sentence on how given class names differ from stored ones, or "". Case, blanks and underscores do not count.

    Args:
        given: names in use.
        stored: names of the data.
        what: the given names, in words.
        where: the stored names, in words.

    Raises:
        DataError: the same names in another order: every score would be of other classes.
    """
    ours, theirs = [_plain(name) for name in given], [_plain(name) for name in stored]
    if ours == theirs:
        return ""
    number = next((i for i, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), None)
    if number is None:
        return f"{what}: got {len(given)} class names, and {where} has {len(stored)}"
    example = f"class {number} is {given[number]!r} in {what} and {stored[number]!r} in {where}"
    if sorted(ours) == sorted(theirs):
        raise DataError(f"{example}: the same names in another order; use the order of {where}")
    differing = sum(one != other for one, other in zip(ours, theirs, strict=False)) + abs(len(ours) - len(theirs))
    return f"{differing} of {len(stored)} class names differ: {example}"


def _structured(path: str | Path, text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names in a list or mapping, as JSON or as Python writes it: literals only, nothing runs."""
    try:
        try:
            found = json.loads(text, object_pairs_hook=_Pairs)
        except ValueError:
            node = ast.parse(text, mode="eval").body
            found = ast.literal_eval(node)
            if isinstance(node, ast.Dict):  # with numbers that stand twice
                keys = [ast.literal_eval(key) for key in node.keys if key is not None]
                found = _Pairs(zip(keys, map(ast.literal_eval, node.values), strict=True))
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"{path}: got neither JSON nor a list of names ({error}), wanted {_WANTED}") from error
    if not isinstance(found, list | tuple):
        raise ValueError(f"{path}: got {type(found).__name__}, wanted {_WANTED}")
    return _by_number(path, found if isinstance(found, _Pairs) else list(enumerate(found)))


def _refuse_table(path: str | Path, lines: Sequence[str]) -> None:
    """Refuse lines that all hold another number beside a name (`0,cat` or `cat,0`), with or without a header line."""
    rows = [_TABLE.fullmatch(line) for line in lines]
    rows = rows[1:] if rows[2:] and rows[0] is None else rows
    numbers = [row[1] or row[2] for row in rows if row]
    if len(set(numbers)) == len(rows) > 1:
        raise ValueError(
            f"{path}: got lines like {lines[-1]!r}, a table of numbers and names. Wanted {_WANTED}. "
            "Names that look so stand in a JSON list"
        )


class _Pairs(list[tuple[Any, Any]]):
    """The entries of a mapping."""


def _by_number(path: str | Path, pairs: list[tuple[Any, Any]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names in the order of their numbers, which must be 0 to the number of names - 1."""
    names: dict[int, str] = {}
    for key, name in pairs:
        if not re.fullmatch(r"\d+", str(key)):
            raise ValueError(f"{path}: got the key {key!r}, wanted a class number: {_WANTED}")
        if not isinstance(name, str):
            raise ValueError(f"{path}: got {name!r} for class {key}, wanted one name in quotes")
        if int(key) in names:
            raise ValueError(f"{path}: got class {key} twice, wanted each number once")
        names[int(key)] = name.strip()
    missing = [number for number in range(len(names)) if number not in names]
    if missing:
        raise ValueError(f"{path}: got no name for class {missing[0]}, wanted numbers from 0 to {len(names) - 1}")
    numbers = range(len(names))
    return tuple(names[number] for number in numbers), tuple(f"{path}, class {number}" for number in numbers)


def _plain(name: str) -> str:
    return _one_line(name.replace("_", " "))


def _one_line(name: str) -> str:
    return " ".join(name.casefold().split())
