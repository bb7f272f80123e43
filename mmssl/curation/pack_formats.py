"""File formats that can be packed: the check of a file's first bytes against its extension, and of its header and end."""

from __future__ import annotations

import re
from pathlib import Path

from mmssl.core.errors import DataError, os_words
from mmssl.data.modalities.usual import file_formats
from mmssl.data.modality import DecodeError


class BadRow(DataError):
    """A row that cannot become a sample.

    Attributes:
        where: file and line or row number, for messages.
        reason: a short name to count by.
        detail: got and wanted, in words.
    """

    def __init__(self, where: str, reason: str, detail: str) -> None:
        super().__init__(f"{where}: {reason}: {detail}")
        self.where = where
        self.reason = reason
        self.detail = detail


def read_media(where: str, path: Path) -> tuple[str, bytes]:
    """Read a media file: its extension and bytes.

    Raises:
        BadRow: the file is missing, empty, or of another format than its extension.
    """
    extension = path.suffix[1:].lower()
    if extension not in (*packed_extensions(), *convertible_extensions()):
        wanted = ", ".join(packed_extensions())
        raise BadRow(where, "unsupported", f"{path} ends in {path.suffix!r}, wanted one of {wanted}")
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = "missing_file" if isinstance(error, FileNotFoundError) else "unreadable"
        link = f", a link to {path.readlink()}" if path.is_symlink() else ""
        raise BadRow(where, reason, f"{path}{link}: {os_words(error)}") from error
    return check_media(where, extension, data)


def check_media(where: str, extension: str | None, data: bytes) -> tuple[str, bytes]:
    """Check that the first bytes fit the extension; without an extension, find it from the bytes.

    A picture with the extension of another picture format is accepted, and keeps its extension: decoders look at the bytes. The
    same holds for sounds and videos. A sound may lie in a video container.

    Raises:
        BadRow: no bytes, or bytes of another format.
    """
    if not data:
        raise BadRow(where, "empty_file", "the file has no bytes")
    if extension in convertible_extensions():
        return extension, data
    found = _formats_of(data)
    if not found or (extension is not None and not any(_may_be_called(one, extension) for one in found)):
        wanted = f"a {extension} file" if extension else f"one of {', '.join(packed_extensions())}"
        like = f", like a {found[0]} file" if found else ""
        raise BadRow(where, "undecodable", f"the file begins with {data[:12]!r}{like}, wanted {wanted}")
    extension = extension or found[0]
    return "jpg" if extension == "jpeg" else extension, data


def verify_media(where: str, extension: str, data: bytes) -> None:
    """Check header and end of a file, as a modality declares that reads its format. A video may have only a picture or a sound.

    Raises:
        BadRow: the file is damaged or truncated, as far as header and end tell.
    """
    readers = [formats for formats in file_formats().values() if extension in formats.extensions]
    readers.sort(key=lambda formats: extension in formats.within)
    faults: list[DecodeError] = []
    for formats in readers:
        try:
            return formats.verify(data) if formats.verify is not None else None
        except DecodeError as error:
            faults.append(error)
    if faults:
        raise BadRow(where, faults[0].reason, faults[0].detail) from faults[0]


def default_template(extension: str) -> str:
    """The usual caption of a file with a class, with {} for the class name: that of the modality whose format it is."""
    return next((formats.template for formats in file_formats().values() if extension in formats.begins), "a {}")


def packed_extensions() -> tuple[str, ...]:
    """Extensions of the files that are packed without re-encoding, each once."""
    return tuple(dict.fromkeys(extension for formats in file_formats().values() for extension in formats.begins))


def convertible_extensions() -> tuple[str, ...]:
    """Extensions of the files that are packed only after re-encoding (`max_side`)."""
    return tuple(extension for formats in file_formats().values() for extension in formats.convertible)


def _formats_of(data: bytes) -> list[str]:
    """Extensions of the formats whose signature the bytes begin with, the first of each modality first."""
    return [
        extension
        for formats in file_formats().values()
        for extension, begins in formats.begins.items()
        if re.match(begins, data[:64], re.DOTALL)
    ]


def _may_be_called(found: str, extension: str) -> bool:
    return any(
        found in (*formats.begins, *formats.within)
        for formats in file_formats().values()
        if extension in formats.begins
    )
