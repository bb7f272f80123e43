"""Walk the headers of a plain tar file, and refuse every file that does not add up.

Python's `tarfile`, and with it WebDataset, takes a damaged header in the middle of an archive for its end and drops the rest
without a word. Here each header's checksum is verified and the archive must end as the format says.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from mmssl.core.errors import DataError

BLOCK = 512
_ZERO = bytes(BLOCK)
_MAX_NAME_BYTES = 1 << 20
_REGULAR = (b"0", b"\0", b"7")
_FOLDER = b"5"
_RECORDS = (b"L", b"K", b"x", b"g")  # names and attributes of the member that follows
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"PK\x03\x04": "zip",
}
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
}


class Member(NamedTuple):
    """A regular file of an archive: its data are `size` bytes at `offset`, its header is the block before them."""

    name: str
    offset: int
    size: int


def walk(path: Path) -> Iterator[Member]:
    """Regular files of a tar archive (ustar, GNU long names, PAX names and sizes) in order; folders are passed over.

    Raises:
        DataError: not a tar file, compressed, cut off, a wrong checksum, a link or device, or no end mark.
        OSError: the file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        end = os.fstat(file.fileno()).st_size
        yield from _Walk(path, file.fileno(), end).members()


class _Walk:
    def __init__(self, path: Path, fd: int, end: int) -> None:
        self.path = path
        self.fd = fd
        self.end = end

    def members(self) -> Iterator[Member]:
        offset = 0
        renamed: str | None = None
        pax: dict[str, str] = {}
        while True:
            block = self._block(offset)
            if block == _ZERO:
                return self._check_end(offset)
            kind = block[156:157]
            size = int(pax["size"]) if "size" in pax else self._number(block[124:136], offset)
            data = offset + BLOCK
            if data + size > self.end:
                self._fail(
                    offset,
                    f"member {self._name(block)!r} has {size} bytes, and the file ends after {self.end - data}: it is cut off",
                )
            if kind in _RECORDS:
                payload = self._payload(data, size, offset)
                if kind == b"L":
                    renamed = _text(payload.rstrip(b"\0"))
                elif kind == b"x":
                    pax = self._pax(payload, offset)
            elif kind in _REFUSED or any(key.startswith("GNU.sparse") for key in pax):
                what = _REFUSED.get(kind, "a sparse file")
                self._fail(offset, f"member {renamed or self._name(block)!r} is {what}: shards hold regular files only")
            else:
                if kind in _REGULAR:
                    yield Member(renamed or pax.get("path") or self._name(block), data, size)
                elif kind != _FOLDER:
                    self._fail(offset, f"member {self._name(block)!r} is of the unknown type {kind!r}")
                renamed, pax = None, {}
            offset = data + -(-size // BLOCK) * BLOCK

    def _block(self, offset: int) -> bytes:
        """The verified header, or the zero block, at `offset`."""
        block = os.pread(self.fd, BLOCK, offset)
        if len(block) < BLOCK and offset:
            what = "inside a header" if block else "between two members: its end mark is missing"
            self._fail(offset, f"the file is cut off {what}; was its writer killed? Write it again, or fetch it again")
        if block != _ZERO and not _checksum_fits(block):
            if offset:
                self._fail(
                    offset, "the checksum of the header is wrong: the file is damaged from here on; fetch it again"
                )
            self._refuse(block)
        return block

    def _refuse(self, block: bytes) -> NoReturn:
        """Say what stands where the first header should."""
        if not block:
            raise DataError(f"{self.path} is empty: wanted a tar file; fetch or write it again")
        for magic, name in _COMPRESSED.items():
            if block.startswith(magic):
                raise DataError(
                    f"{self.path} is compressed ({name}): samples are read in any order, so unpack it to a plain .tar first"
                )
        raise DataError(
            f"{self.path} is not a tar file, or its first header is damaged: it begins with {block[:24]!r}; fetch or write it again"
        )

    def _check_end(self, offset: int) -> None:
        """Behind the end mark there may be nothing but zeros: anything else is a hole, or an archive glued to another."""
        position = offset
        while chunk := os.pread(self.fd, 1 << 20, position):
            rest = chunk.lstrip(b"\0")
            if rest:
                found = position + len(chunk) - len(rest)
                self._fail(
                    offset,
                    f"the archive ends here, and data follow at byte {found}: a hole, or several archives in one; write it again",
                )
            position += len(chunk)

    def _payload(self, data: int, size: int, offset: int) -> bytes:
        if size > _MAX_NAME_BYTES:
            self._fail(offset, f"got a name record of {size} bytes, wanted at most {_MAX_NAME_BYTES}")
        return os.pread(self.fd, size, data)

    def _number(self, field: bytes, offset: int) -> int:
        """A size: octal digits, or the GNU form for large files."""
        if field[0] == 0x80:
            return int.from_bytes(field[1:], "big")
        digits = field.strip(b"\0 ")
        try:
            return int(digits, 8) if digits else 0
        except ValueError:
            self._fail(offset, f"got the size {field!r}, wanted octal digits")

    def _name(self, block: bytes) -> str:
        name = block[:100].split(b"\0", 1)[0]
        if block[257:263] == b"ustar\0":
            prefix = block[345:500].split(b"\0", 1)[0]
            name = prefix + b"/" + name if prefix else name
        return _text(name)

    def _pax(self, payload: bytes, offset: int) -> dict[str, str]:
        """Records `<length> <key>=<value>\\n` of a PAX header."""
        records: dict[str, str] = {}
        try:
            while payload:
                length = int(payload.split(b" ", 1)[0])
                record, payload = payload[:length], payload[length:]
                key, value = record.split(b" ", 1)[1].removesuffix(b"\n").split(b"=", 1)
                records[_text(key)] = _text(value)
            if int(records.get("size", "0")) < 0:
                raise ValueError("negative size")
        except (ValueError, IndexError):
            self._fail(offset, "the extended (PAX) header is malformed: the file is damaged; fetch or write it again")
        return records

    def _fail(self, offset: int, message: str) -> NoReturn:
        raise DataError(f"{self.path}, byte {offset}: {message}")


def _checksum_fits(block: bytes) -> bool:
    """Sum of all bytes with the checksum field taken as blanks; some old writers summed signed bytes."""
    if len(block) < BLOCK:
        return False
    try:
        stored = int(block[148:156].strip(b"\0 "), 8)
    except ValueError:
        return False
    # The low half of Adler-32 is one plus the sum of bytes, exact below 65521: so of 256 bytes; 5 times as fast as sum().
    total = (zlib.adler32(block[:256]) & 0xFFFF) + (zlib.adler32(block[256:]) & 0xFFFF) - 2
    unsigned = total - sum(block[148:156]) + 8 * 32
    if stored == unsigned:
        return True
    others = block[:148] + block[156:]
    return stored == unsigned - 256 * sum(byte > 127 for byte in others)


def _text(name: bytes) -> str:
    """A name that can always be printed: what is not UTF-8 is shown as escapes."""
    return name.decode("utf-8", "backslashreplace")
