"""The lock file of a run folder, and functions that run on the main process for all processes."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from mmssl.core.distributed import gather_objects, is_main
from mmssl.core.errors import MmsslError, RecipeError, os_words
from mmssl.training.runtime.console import say

T = TypeVar("T")


def on_main(action: Callable[[], T]) -> T:
    """Run a function on the main process only and broadcast its value, or raise its error on every process.

    Errors for people (`MmsslError`) and of the disk (`OSError`) are raised on every process, so all processes take the same path.
    Any other exception is raised with its traceback on the main process; the others raise an `MmsslError` that names it.
    """
    value: T | None = None
    failure: Exception | None = None
    if is_main():
        try:
            value = action()
        except Exception as caught:
            failure = caught
    told = _for_others(failure) if failure is not None else None
    value, theirs = gather_objects((value, told))[0]
    if failure is not None or theirs is not None:
        raise failure or theirs
    return value


def _for_others(error: Exception) -> Exception:
    """The error that other processes raise when the main process raised `error`."""
    if isinstance(error, MmsslError):
        return error
    if isinstance(error, OSError):  # other classes of OSError take other arguments, and may not survive the journey
        numbered = error.errno is not None and isinstance(error.filename, str | None)
        return OSError(error.errno, error.strerror, error.filename) if numbered else OSError(str(error))
    return MmsslError(f"the main process failed: {type(error).__name__}: {error}")


class RunLock:
    """Holds `<folder>/.lock` while a run writes there. A lock is taken over if its process died on this host.

    Raises:
        RecipeError: on entry: another run owns the folder, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"

    def __enter__(self) -> RunLock:
        on_main(self._acquire)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if is_main():
            self.path.unlink(missing_ok=True)

    def _acquire(self) -> None:
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                self._refuse_if_alive()
            with open(self.path, "x") as file:
                json.dump(mine, file)
        except FileExistsError:
            raise RecipeError(
                f"{self.path.parent}: another run has just taken this folder; choose another one"
            ) from None
        except OSError as error:
            raise RecipeError(
                f"{self.path.parent}: cannot write the run folder: {os_words(error)}; choose another one"
            ) from error

    def _refuse_if_alive(self) -> None:
        try:
            owner = json.loads(self.path.read_text())
            pid, host, started = int(owner["pid"]), str(owner["host"]), owner["started"]
        except (ValueError, KeyError, TypeError):
            pid, host, started = -1, "an unknown host", None
        here = host == socket.gethostname()
        # A number may have been given to a new process since: the start time tells the two apart where it can be read.
        if here and (not _alive(pid) or (started is not None and _started(pid) != started)):
            say(f"{self.path}: its process {pid} has died; taking the folder over")
            self.path.unlink()
            return
        raise RecipeError(
            f"{self.path.parent}: in use by process {pid} on {host}; choose another folder, "
            f"or delete {self.path} if that run has ended"
        )


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _started(pid: int) -> str | None:
    """Start time of a process, in ticks since boot (Linux; None elsewhere)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
