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
    """Callback of an option that names a file to write. Its folder is made if needed.

    Raises:
        typer.BadParameter: the file cannot be written.
    """
    if path is None:
        return None
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        if path.exists():  # such as /dev/stdout
            if not os.access(path, os.W_OK):
                raise PermissionError(None, "it may not be written")
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            return path
    except OSError as error:
        from mmssl.core.errors import os_words

        raise typer.BadParameter(
            f"cannot write {str(path)!r}: {os_words(error)}; choose a file in a writable folder"
        ) from error


def file_or_folder(path: Path | None) -> Path | None:
    """Callback of an option that names a JSON file, or else a folder, which is made.

    Raises:
        typer.BadParameter: it cannot be written.
    """
    if path is None or path.suffix == ".json" or (path.exists() and not path.is_dir()):
        return file_to_write(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        from mmssl.core.errors import os_words

        raise typer.BadParameter(
            f"cannot write into {str(path)!r}: {os_words(error)}; choose a folder that is writable, or a file NAME.json"
        ) from error
