"""Keys of packed samples: safe in tar names, and distinct."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from mmssl.curation.pack_formats import BadRow

MAX_KEY = 80  # bytes: tar names end at 100 bytes, and an extension follows


class Keys:
    """Keys of the rows of a source, from one value a row. Several rows may have one key: the first usable one keeps it.

    Args:
        values: one a row.
        where: row -> its place, for messages.
    """

    def __init__(self, values: Sequence[Any], where: Callable[[int], str]) -> None:
        self._values, self._where = values, where
        self._keys = [safe_key(value) for value in values]
        self._rows: dict[str, list[int]] = {}
        for row, key in enumerate(self._keys):
            self._rows.setdefault(key, []).append(row)

    def key(self, row: int) -> str:
        """The key of a row.

        Raises:
            BadRow: its value has no letter or digit.
        """
        if not self._keys[row]:
            raise BadRow(self._where(row), "bad_key", f"got {self._values[row]!r}, wanted letters or digits")
        return self._keys[row]

    def earlier(self, row: int) -> list[int]:
        """Earlier rows of the same key."""
        same = self._rows[self._keys[row]]
        return same[: same.index(row)]

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence on keys that are not spelt as their values, or nothing."""
        changed = [
            (str(value), key) for value, key in zip(self._values, self._keys, strict=True) if key != _plain(value)
        ]
        if not changed:
            return ()
        return (f"{len(changed):,} keys are not spelt as their names, such as {changed[0][0]!r} -> {changed[0][1]!r}",)


def safe_key(value: Any) -> str:
    """Turn a value into a key of letters and digits of any script, `-` and `_`, NFC-normalised, of at most MAX_KEY bytes of UTF-8.

    In tar names a dot starts the extension, and a slash a folder: runs of such characters become one `_`.
    """
    kept = "".join(one if one in "-_" or unicodedata.category(one)[0] in "LMN" else " " for one in _plain(value))
    return "_".join(kept.split()).strip("_").encode()[:MAX_KEY].decode("utf-8", "ignore")


def _plain(value: Any) -> str:
    return unicodedata.normalize("NFC", str(value if value is not None else ""))
