"""Errors for people: each says what it got, what it wanted, where, and what to do. The class decides the exit code."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable
from typing import Any


class MmsslError(Exception):
    """Base of every error that a user can cause or cure. Shown as one message, without a traceback.

    Travels between processes whole, whatever arguments the constructor of a subclass takes.
    """

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        return _without_constructor, (type(self), self.args), self.__dict__


class RecipeError(MmsslError):
    """A recipe, an override or a command line that cannot mean anything."""

    exit_code = 2


class DataError(MmsslError):
    """Shards or samples that are missing, damaged or not what the recipe says."""

    exit_code = 3


class Stopped(DataError):
    """Data that was waited for and given up, because the run was told to stop."""


class CheckpointError(MmsslError):
    """A checkpoint that is missing, damaged, or made by another recipe."""

    exit_code = 4


class NumericError(MmsslError):
    """Numbers that stopped being finite and did not recover."""

    exit_code = 5


class Interrupted(MmsslError):
    """The run was stopped by a signal; the message goes on with when, and what is saved. The exit code is 128 + the signal's."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name} {message}")
        self.exit_code = 128 + signal_number


def for_people(error: Exception) -> MmsslError:
    """The error as one that is shown without a traceback. A ValueError of ours says what to do; others are named by their class."""
    if isinstance(error, MmsslError):
        return error
    if isinstance(error, ValueError):
        return RecipeError(str(error))
    return MmsslError(f"{type(error).__name__}: {error}")


def _without_constructor(kind: type[MmsslError], arguments: tuple[Any, ...]) -> MmsslError:
    return kind.__new__(kind, *arguments)


def did_you_mean(got: str, allowed: Iterable[str]) -> str:
    """Return `, did you mean 'x'?` for the nearest allowed name, or an empty string."""
    near = difflib.get_close_matches(got, list(allowed), n=1, cutoff=0.6)
    return f", did you mean {near[0]!r}?" if near else ""
