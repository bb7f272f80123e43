"""Exit codes are fixed: other tools rely on them."""

from __future__ import annotations

import errno
import os
import signal

import pytest

from mmssl.core.errors import (
    CheckpointError,
    DataError,
    Interrupted,
    MmsslError,
    NumericError,
    RecipeError,
    did_you_mean,
    os_words,
)
from mmssl.core.evaluator import evaluation_error
from mmssl.evaluation.relations.base import NoRelation


@pytest.mark.parametrize(
    ("error", "code"), [(RecipeError, 2), (DataError, 3), (CheckpointError, 4), (NumericError, 5), (MmsslError, 1)]
)
def test_exit_codes(error: type[MmsslError], code: int) -> None:
    assert error("why").exit_code == code
    assert isinstance(error("why"), MmsslError)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruptions_exit_with_their_signal_and_name_it(number: signal.Signals, code: int) -> None:
    error = Interrupted("after step 7; saved", number)
    assert (error.exit_code, str(error)) == (code, f"stopped by {number.name} after step 7; saved")
    assert MmsslError("why").exit_code == 1  # the class' own code is untouched


def test_did_you_mean_suggests_the_nearest_or_nothing() -> None:
    assert did_you_mean("optimiser", ["objective", "optimizer"]) == ", did you mean 'optimizer'?"
    assert did_you_mean("xyz", ["objective", "optimizer"]) == ""
    assert did_you_mean("xyz", []) == ""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/0.tar"), "no space is left on the disk"),
        (OSError(errno.ECHILD, os.strerror(errno.ECHILD), "/a/0.tar"), "no child processes"),
        (OSError(errno.EIO, "the file ends at byte 7"), "the file ends at byte 7"),
        (OSError("got less than wanted"), "got less than wanted"),
    ],
)
def test_errors_of_the_system_are_told_without_number_and_path(error: OSError, words: str) -> None:
    assert os_words(error) == words


def test_words_of_errors_name_the_path_where_asked_and_are_those_of_others() -> None:
    lost = OSError(errno.ENOENT, os.strerror(errno.ENOENT), "a/b.jpg")
    assert os_words(lost, path=True) == "a/b.jpg: it does not exist"
    assert os_words(OSError("cut short"), path=True) == "cut short"
    assert os_words(ValueError("got 3, wanted 4"), path=True) == "got 3, wanted 4"


def test_an_error_in_other_words_is_the_same_error_whatever_its_constructor_takes() -> None:
    first = NoRelation("no sample has a side", None)
    again = evaluation_error({"sides": first, "other": RecipeError("why")})
    assert type(again) is NoRelation
    assert again.nearest is None
    assert str(again).endswith("evaluators.sides: no sample has a side\n  evaluators.other: why")
    stopped = Interrupted("after step 7; saved", signal.SIGINT).saying("stopped")
    assert (str(stopped), stopped.exit_code) == ("stopped", 130)
