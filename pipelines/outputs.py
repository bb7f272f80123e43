"""Check paths of verbs before the work begins."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import typer


def local_path(path: Path | None) -> Path | None:
    """Callback of a path of this machine.

    Raises:
        typer.BadParameter: it is a URL.
    """
    from mmssl.core.config import url_of

    url = None if path is None else url_of(path)
    if url is not None:
        raise typer.BadParameter(f"got the URL {url!r}, wanted a path of this machine: download it first")
    return path


def file_to_write(path: Path | None) -> Path | None:
    """Callback of an option that names a file to write. Its folder need not exist: whoever writes makes it.

    Raises:
        typer.BadParameter: the file cannot be written.
    """
    if local_path(path) is None:
        return None
    assert path is not None
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        if not path.exists():
            _require_writable(path.parent)
        elif not os.access(path, os.W_OK):  # such as /dev/stdout
            raise PermissionError(None, "it may not be written")
        return path
    except OSError as error:
        from mmssl.core.errors import os_words

        raise typer.BadParameter(
            f"cannot write {str(path)!r}: {os_words(error)}; choose a file in a writable folder"
        ) from error


def file_or_folder(path: Path | None) -> Path | None:
    """Callback of an option that names a JSON file, or else a folder, which need not exist: whoever writes makes it.

    Raises:
        typer.BadParameter: it cannot be written.
    """
    if path is None or is_file_name(path):
        return file_to_write(path)
    return _folder_to_write(path, ", or a file NAME.json")


def folder_to_write(path: Path | None) -> Path | None:
    """Callback of an option that names a folder to write into, which need not exist: whoever writes makes it.

    Raises:
        typer.BadParameter: it cannot be written.
    """
    return None if path is None else _folder_to_write(path)


def _folder_to_write(path: Path, otherwise: str = "") -> Path:
    local_path(path)
    try:
        _require_writable(path)
        return path
    except OSError as error:
        from mmssl.core.errors import os_words

        raise typer.BadParameter(
            f"cannot write into {str(path)!r}: {os_words(error)}; choose a folder that is writable{otherwise}"
        ) from error


def is_file_name(path: Path) -> bool:
    """Whether results go into one file of this name, not into a folder."""
    return not path.is_dir() and (path.suffix == ".json" or path.exists())


def write_file(path: Path, text: str) -> None:
    """Write a text file; its folder is made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _require_writable(folder: Path) -> None:
    """Raise OSError unless files can be written into a folder, or into the nearest one above it that exists."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder):
        return
