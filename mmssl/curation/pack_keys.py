"""Keys of packed samples: safe in tar names, and distinct."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from mmssl.curation.pack_formats import BadRow

MAX_KEY = 80  # bytes: tar names end at 100 bytes, and an extension follows


class Keys:
    """Keys of the rows of a source, from one value a row; rows whose value gives no key, or that of an earlier row, are unusable.

    Args:
        values: one a row.
        where: row -> its place, for messages.
    """

    def __init__(self, values: Sequence[Any], where: Callable[[int], str]) -> None:
        first: dict[str, int] = {}
        self._values, self._where = values, where
        self._keys = [safe_key(value) for value in values]
        self._first = [first.setdefault(key, row) for row, key in enumerate(self._keys)]

    def key(self, row: int) -> str:
        """The key of a row.

        Raises:
            BadRow: it has none, or that of an earlier row.
        """
        key, first = self._keys[row], self._first[row]
        if not key:
            raise BadRow(self._where(row), "bad_key", f"got {self._values[row]!r}, wanted letters or digits")
        if first != row:
            detail = f"got key {key!r}, which {self._where(first)} has too; wanted distinct keys"
            raise BadRow(self._where(row), "duplicate_key", detail)
        return key


def safe_key(value: Any) -> str:
    """Turn a value into a key of letters and digits of any script, `-` and `_`, NFC-normalised, of at most MAX_KEY bytes of UTF-8.

    In tar names a dot starts the extension, and a slash a folder: runs of such characters become one `_`.
    """
    text = unicodedata.normalize("NFC", str(value if value is not None else ""))
    kept = "".join(one if one in "-_" or unicodedata.category(one)[0] in "LMN" else " " for one in text)
    return "_".join(kept.split()).strip("_").encode()[:MAX_KEY].decode("utf-8", "ignore")
