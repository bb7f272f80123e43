"""Errors that users see: got, wanted, where, and what to do. The class decides the exit code."""

from __future__ import annotations

import difflib
import errno
import os
import signal
from collections.abc import Iterable
from typing import Any, Self, TypeVar

_E = TypeVar("_E", bound="MmsslError")


class MmsslError(Exception):
    """Base of all errors that a user can fix; shown as one message, without a traceback.

    Pickles completely between processes, also for subclasses with other constructor arguments.
    """

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        return _without_constructor, (type(self), self.args), self.__dict__

    def saying(self, message: str) -> Self:
        """The same error with other words, also of subclasses with other constructor arguments."""
        made: Self = _without_constructor(type(self), (message,))
        made.__dict__.update(self.__dict__)
        return made


class RecipeError(MmsslError):
    """An invalid recipe, override or command line."""

    exit_code = 2


class DataError(MmsslError):
    """Shards or samples that are missing, damaged or different from the recipe."""

    exit_code = 3


class Stopped(DataError):
    """Waiting for data was given up because a signal stopped the run."""


class CheckpointError(MmsslError):
    """A checkpoint that is missing, damaged, or made by another recipe."""

    exit_code = 4


class NumericError(MmsslError):
    """Losses, gradients or weights that stay NaN or infinite."""

    exit_code = 5


STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
"""Signals that stop a program: Ctrl-C; the end of a job; and the warning of `sbatch --signal` before it."""


class StopSignal(BaseException):
    """One of the `STOPPING` signals, raised in the main thread where no run can be saved; no handler of errors catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupted(MmsslError):
    """A signal stopped the run; the message says when, and what is saved. The exit code is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name} {message}")
        self.exit_code = 128 + signal_number


def for_people(error: Exception) -> MmsslError:
    """Convert an exception to an `MmsslError`, shown without a traceback. Errors other than ValueError are named by class."""
    if isinstance(error, MmsslError):
        return error
    if isinstance(error, ValueError):
        return RecipeError(str(error))
    return MmsslError(f"{type(error).__name__}: {error}")


def _without_constructor(kind: type[_E], arguments: tuple[Any, ...]) -> _E:
    return kind.__new__(kind, *arguments)


_OS_WORDS = {
    errno.ENOENT: "it does not exist",
    errno.EEXIST: "a file of this name, or of a part of its path, is there already",
    errno.EACCES: "this user has no permission",
    errno.EPERM: "this user has no permission",
    errno.ELOOP: "its symbolic links lead in a circle",
    errno.EISDIR: "it is a folder",
    errno.ENOTDIR: "a part of its path is no folder",
    errno.ENAMETOOLONG: "its name is too long",
    errno.EIO: "an input/output error of the disk or file server",
    errno.ESTALE: "the file server has replaced it",
    errno.EMFILE: "too many files are open: raise `ulimit -n`",
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
}


def os_words(error: Exception, *, path: bool = False) -> str:
    """What an exception says, for a message; of errors of the operating system in words, without their number and path.

    Args:
        path: begin with the path of an error of the operating system, for messages that do not name it.
    """
    if not isinstance(error, OSError):
        return str(error)
    number = error.errno or 0
    usual = error.strerror == os.strerror(number)  # not words of our own
    words = _OS_WORDS.get(number, os.strerror(number).lower()) if usual else error.strerror or str(error)
    return f"{error.filename}: {words}" if path and error.filename is not None else words


def did_you_mean(got: str, allowed: Iterable[str]) -> str:
    """Return `, did you mean 'x'?` for the nearest allowed name, or an empty string."""
    near = difflib.get_close_matches(got, list(allowed), n=1, cutoff=0.6)
    return f", did you mean {near[0]!r}?" if near else ""
