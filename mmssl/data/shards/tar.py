"""Walk the headers of a plain tar file, and refuse every file that does not add up.

Python's `tarfile`, and with it WebDataset, takes a damaged header in the middle of an archive for its end and drops the rest
without a word. Here each header's checksum is verified and the archive must end as the format says. Who would rather have what is
left of a damaged file passes a list: the walk then goes on at the next header that holds, and notes what it passed over.
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


class Lost(NamedTuple):
    """A span of an archive in which no member could be found: bytes offset ... stop-1, and why."""

    offset: int
    stop: int
    detail: str


class _Damage(DataError):
    """Something is wrong at a byte behind which there may be more."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


def walk(path: Path, lost: list[Lost] | None = None) -> Iterator[Member]:
    """Regular files of a tar archive (ustar, GNU long names, PAX names and sizes) in order; folders are passed over.

    Args:
        path: the archive.
        lost: None: damage is an error. A list: spans that make no sense are passed over and noted in it. Only a file that does not
            look like a tar archive at all is still an error.

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
        return self._run(0, False) if self.lost is None else self._what_is_left(self.lost)

    def _what_is_left(self, lost: list[Lost]) -> Iterator[Member]:
        """All members that stand between damaged spans. One is given out when the header behind it holds, or none is inside it."""
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
                start, stop = min(damage.offset, self.end), None  # a cut may take the padding only
                if last is not None:
                    stop = self._next_header(last.offset - BLOCK, last.offset + last.size)
                    if stop is None:
                        yield last
                    else:  # bytes are missing from its data: the next member begins too early
                        start, detail = last.offset - BLOCK, f"another header stands inside member {last.name!r}"
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
        """Members from a header on. An orphan is the first one behind damage."""
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
                # Its name may have stood in a record that is lost; the header then has a shortened one, of another sample perhaps.
                shortened = len(block[:100].rstrip(b"\0")) > 97 or b"?" in block[:100]
                if kind in _REGULAR and orphan and shortened and renamed is None and not pax:
                    self._fail(offset, f"the name of member {self._name(block)!r} is lost with the bytes before it")
                if kind in _REGULAR:
                    yield Member(renamed or pax.get("path") or self._name(block), data, size)
                elif kind != _FOLDER:
                    self._fail(offset, f"member {self._name(block)!r} is of the unknown type {kind!r}")
                renamed, pax, orphan = None, {}, False
            offset = data + -(-size // BLOCK) * BLOCK

    def _next_header(self, offset: int, end: int) -> int | None:
        """Where, behind the block at `offset` and before `end`, the next header stands; read a megabyte at a time."""
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
            self._fail(offset, f"member {self._name(block)!r} has {size} bytes, which cannot be")
        return size

    def _block(self, offset: int) -> bytes:
        """The verified header, or the zero block, at `offset`."""
        block = os.pread(self.fd, BLOCK, offset)
        if len(block) < BLOCK and offset:
            what = "inside a header" if block else "between two members: its end mark is missing"
            self._fail(offset, f"the file is cut off {what}; was its writer killed? Write it again, or fetch it again")
        if block != _ZERO and not _checksum_fits(block):
            if offset or self._is_tar_behind(block):
                self._fail(
                    offset, "the checksum of the header is wrong: the file is damaged from here on; fetch it again"
                )
            self._refuse(block)
        return block

    def _is_tar_behind(self, block: bytes) -> bool:
        """Whether a file that does not begin as an archive is one all the same, for those who take what is left."""
        compressed = any(block.startswith(magic) for magic in _COMPRESSED)
        return self.lost is not None and not compressed and self._next_header(0, self.end) is not None

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
                    raise ValueError("a length that does not fit, or too many records")
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
