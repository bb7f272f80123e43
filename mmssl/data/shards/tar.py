"""Strict reader of tar headers: verifies every checksum and the end mark, and refuses damaged files.

Python's `tarfile`, and with it WebDataset, treats a damaged header in the middle of an archive as its end and silently drops the
rest. Here each header's checksum is verified, and the archive must end as the format says. To read a damaged file anyway, pass a
list `lost`: the walk then continues at the next valid header, and adds the skipped spans to the list.
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
_MAX_RECORDS = 1000
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
_SPARSE = "a sparse file: write the archive again with GNU tar without `--sparse`"
_REFUSED = {
    b"1": "a hard link: write the archive again with GNU tar's `--hard-dereference`, which stores the file",
    b"2": "a symbolic link: write the archive again with tar's `--dereference`, which stores the file",
    b"3": "a device: write the archive again without it",
    b"4": "a device: write the archive again without it",
    b"6": "a pipe: write the archive again without it",
    b"S": _SPARSE,
}
"""Type of a member that shards cannot hold -> what it is, and what to do."""


class Member(NamedTuple):
    """A regular file of an archive: its data are `size` bytes at `offset`, its header is the block before them."""

    name: str
    offset: int
    size: int


class Lost(NamedTuple):
    """An unreadable span of an archive: bytes offset ... stop-1, and the reason."""

    offset: int
    stop: int
    detail: str


class _Damage(DataError):
    """Damage at a byte; more members may follow."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


def walk(path: Path, lost: list[Lost] | None = None) -> Iterator[Member]:
    """Iterate over the regular files of a tar archive (ustar, GNU long names, PAX names and sizes), without folders.

    Args:
        path: the archive.
        lost: None: damage is an error. A list: unreadable spans are skipped and added to it. A file that does not look like a
            tar archive is an error in both cases.

    Raises:
        DataError: not a tar file, compressed, cut off, a wrong checksum, a link or device, or no end mark.
        OSError: the file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        end = os.fstat(file.fileno()).st_size
        yield from _Walk(path, file.fileno(), end, lost).members()


class _Walk:
    def __init__(self, path: Path, fd: int, end: int, lost: list[Lost] | None) -> None:
        self.path = path
        self.fd = fd
        self.end = end
        self.lost = lost

    def members(self) -> Iterator[Member]:
        return self._run(0, False) if self.lost is None else self._readable_members(self.lost)

    def _readable_members(self, lost: list[Lost]) -> Iterator[Member]:
        """Members between damaged spans. A member counts if the header after it is valid, or no header lies inside it."""
        offset, orphan = 0, False
        last: Member | None = None
        while True:
            try:
                for member in self._run(offset, orphan):
                    if last is not None:
                        yield last
                    last = member
            except _Damage as damage:
                detail = str(damage).removeprefix(f"{self.path}, byte {damage.offset}: ")
                start, stop = min(damage.offset, self.end), None  # truncation may cut only the padding
                if last is not None:
                    stop = self._next_header(last.offset - BLOCK, last.offset + last.size)
                    if stop is None:
                        yield last
                    else:  # bytes are missing from the last member's data, so the next member begins too early
                        start, detail = last.offset - BLOCK, f"another header lies inside member {last.name!r}"
                    last = None
                if stop is None:
                    stop = self._next_header(start, self.end)
                lost.append(Lost(start, self.end if stop is None else stop, detail))
                if stop is None:
                    return
                offset, orphan = stop, True
            else:
                if last is not None:
                    yield last
                return

    def _run(self, offset: int, orphan: bool) -> Iterator[Member]:
        """Members from the header at `offset`. An orphan is the first one after damage."""
        renamed: str | None = None
        pax: dict[str, str] = {}
        while True:
            block = self._block(offset)
            if block == _ZERO:
                return self._check_end(offset)
            kind = block[156:157]
            size = self._size(block, pax, offset)
            data = offset + BLOCK
            if data + size > self.end:
                self._fail(
                    offset,
                    f"member {self._name(block)!r} has {size} bytes, but the file ends after {self.end - data}: it is truncated",
                )
            if kind in _RECORDS:
                payload = self._payload(data, size, offset)
                if kind == b"L":
                    renamed = _text(payload.rstrip(b"\0"))
                elif kind == b"x":
                    pax = self._pax(payload, offset)
            elif kind in _REFUSED or any(key.startswith("GNU.sparse") for key in pax):
                name, what = renamed or self._name(block), _REFUSED.get(kind, _SPARSE)
                self._fail(offset, f"shards hold regular files only, and member {name!r} is {what}")
            else:
                # Its long name may be in a lost record; the short name in the header may be that of another sample.
                shortened = len(block[:100].rstrip(b"\0")) > 97 or b"?" in block[:100]
                if kind in _REGULAR and orphan and shortened and renamed is None and not pax:
                    self._fail(offset, f"the name of member {self._name(block)!r} is lost with the bytes before it")
                if kind in _REGULAR:
                    yield Member(renamed or pax.get("path") or self._name(block), data, size)
                elif kind != _FOLDER:
                    self._fail(offset, f"member {self._name(block)!r} has the unknown type {kind!r}")
                renamed, pax, orphan = None, {}, False
            offset = data + -(-size // BLOCK) * BLOCK

    def _next_header(self, offset: int, end: int) -> int | None:
        """Offset of the next header after the block at `offset` and before `end`; reads a megabyte at a time."""
        position = offset + BLOCK
        while position + BLOCK <= end:
            piece = os.pread(self.fd, min(1 << 20, end - position), position)
            for start in range(0, len(piece) - BLOCK + 1, BLOCK):
                if piece[start + 257 : start + 262] == b"ustar" and _checksum_fits(piece[start : start + BLOCK]):
                    return position + start
            if len(piece) < BLOCK:
                return None
            position += len(piece) // BLOCK * BLOCK
        return None

    def _size(self, block: bytes, pax: dict[str, str], offset: int) -> int:
        size = int(pax["size"]) if "size" in pax else self._number(block[124:136], offset)
        if size < 0:
            self._fail(offset, f"member {self._name(block)!r} has {size} bytes, an impossible size")
        return size

    def _block(self, offset: int) -> bytes:
        """The verified header, or the zero block, at `offset`."""
        block = os.pread(self.fd, BLOCK, offset)
        if len(block) < BLOCK and offset:
            what = "inside a header" if block else "between two members: its end mark is missing"
            self._fail(
                offset, f"the file is truncated {what}, as after a killed writer; write it again, or fetch it again"
            )
        if block != _ZERO and not _checksum_fits(block):
            if offset or self._is_tar_behind(block):
                self._fail(
                    offset, "the checksum of the header is wrong: the file is damaged from here on; fetch it again"
                )
            self._refuse(block)
        return block

    def _is_tar_behind(self, block: bytes) -> bool:
        """Whether a later header is valid although the first one is damaged; for salvage only."""
        compressed = any(block.startswith(magic) for magic in _COMPRESSED)
        return self.lost is not None and not compressed and self._next_header(0, self.end) is not None

    def _refuse(self, block: bytes) -> NoReturn:
        """Raise an error that describes the bytes in place of the first header."""
        if not block:
            raise DataError(f"{self.path} is empty: wanted a tar file; fetch or write it again")
        for magic, name in _COMPRESSED.items():
            if block.startswith(magic):
                raise DataError(
                    f"{self.path} is compressed ({name}): samples need random access, so decompress it to a plain .tar first"
                )
        raise DataError(
            f"{self.path} is not a tar file, or its first header is damaged: it begins with {block[:24]!r}; fetch or write it again"
        )

    def _check_end(self, offset: int) -> None:
        """Refuse data after the end mark: a hole, or concatenated archives."""
        position = offset
        while chunk := os.pread(self.fd, 1 << 20, position):
            rest = chunk.lstrip(b"\0")
            if rest:
                found = position + len(chunk) - len(rest)
                self._fail(
                    offset,
                    f"got data at byte {found} after the end mark: a hole, or concatenated archives; write the file again",
                )
            position += len(chunk)

    def _payload(self, data: int, size: int, offset: int) -> bytes:
        if size > _MAX_NAME_BYTES:
            self._fail(offset, f"got a name record of {size} bytes, wanted at most {_MAX_NAME_BYTES}")
        return os.pread(self.fd, size, data)

    def _number(self, field: bytes, offset: int) -> int:
        """Parse a size: octal digits, or the GNU base-256 form for large files."""
        if field[0] & 0x80:
            return int.from_bytes(bytes([field[0] & 0x7F if field[0] < 0xFF else 0xFF]) + field[1:], "big", signed=True)
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
            start = 0
            while start < len(payload):
                blank = payload.index(b" ", start, start + 20)
                stop = start + int(payload[start:blank])
                if not blank < stop <= len(payload) or len(records) == _MAX_RECORDS:
                    raise ValueError("a wrong length, or too many records")
                key, value = payload[blank + 1 : stop].removesuffix(b"\n").split(b"=", 1)
                records[_text(key)] = _text(value)
                start = stop
            if int(records.get("size", "0")) < 0:
                raise ValueError("negative size")
        except (ValueError, IndexError):
            self._fail(offset, "the extended (PAX) header is malformed: the file is damaged; fetch or write it again")
        return records

    def _fail(self, offset: int, message: str) -> NoReturn:
        raise _Damage(f"{self.path}, byte {offset}: {message}", offset)


def _checksum_fits(block: bytes) -> bool:
    """Verify the checksum: the sum of all bytes, with blanks for the checksum field. Some old writers summed signed bytes."""
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
    """Decode a name; bytes that are not UTF-8 become escapes."""
    return name.decode("utf-8", "backslashreplace")
