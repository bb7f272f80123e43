"""One run in one folder."""

from __future__ import annotations

import json
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from mmssl.core.errors import Interrupted, MmsslError, RecipeError
from mmssl.training.runtime.lock import RunLock, on_main
from tests.distributed.processes import Processes
from tests.faults.forks import in_child
from tests.training.toys import make_run


def test_a_second_run_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        with pytest.raises(RecipeError, match=rf"in use by process {os.getpid()} on {socket.gethostname()}"):
            make_run(tmp_path).train()
        assert not (tmp_path / "checkpoints").exists()
    make_run(tmp_path, total=2).train()
    assert not (tmp_path / ".lock").exists()


def test_a_lock_of_the_dead_is_taken_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_child(lambda: RunLock(tmp_path).__enter__()) == 0
    owner = json.loads((tmp_path / ".lock").read_text())
    assert owner["pid"] != os.getpid()
    with RunLock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert "has died; taking the folder over" in capsys.readouterr().err


def test_a_number_that_was_given_to_another_process_is_not_the_owner(tmp_path: Path) -> None:
    mine = {"pid": os.getpid(), "host": socket.gethostname(), "started": "1"}
    (tmp_path / ".lock").write_text(json.dumps(mine))
    with RunLock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["started"] != "1"


@pytest.mark.parametrize("content", ['{"pid": 1, "host": "elsewhere", "started": null}', "", "[]"])
def test_locks_that_cannot_be_judged_are_kept(tmp_path: Path, content: str) -> None:
    (tmp_path / ".lock").write_text(content)
    with pytest.raises(RecipeError, match=r"or delete .*\.lock if that run has ended"), RunLock(tmp_path):
        pass
    assert (tmp_path / ".lock").read_text() == content


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RecipeError, match=r"cannot write the run folder: .*; choose another one"):
        make_run(tmp_path / "file" / "run").train()


def test_in_one_process_it_is_a_plain_call() -> None:
    assert on_main(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        on_main(lambda: 1 / 0)


class Odd(MmsslError):
    exit_code = 9

    def __init__(self, part: str, *, other: str) -> None:
        super().__init__(f"{part} and {other}")


FAILURES: dict[str, Callable[[], object]] = {
    "value": lambda: 7,
    "recipe": lambda: _raise(RecipeError("wrong")),
    "signal": lambda: _raise(Interrupted("after step 3", 15)),
    "constructor": lambda: _raise(Odd("this", other="that")),
    "disk": lambda: _raise(OSError(28, "full")),
    "unicode": lambda: b"\xff".decode(),
    "arithmetic": lambda: 1 / 0,
}


def _raise(error: Exception) -> object:
    raise error


def decided(name: str) -> tuple[str, str, int, bool]:
    """What comes of a decision on this process: type, text, exit code, and whether the traceback shows the action."""
    try:
        return "", str(on_main(FAILURES[name])), 0, False
    except Exception as error:
        lines = traceback.extract_tb(error.__traceback__)
        shown = any(line.name in ("<lambda>", "_raise") for line in lines)
        return type(error).__name__, str(error), getattr(error, "exit_code", 0), shown


@pytest.mark.parametrize(
    ("name", "main", "other"),
    [
        ("value", ("", "7", 0, False), ("", "7", 0, False)),
        ("recipe", ("RecipeError", "wrong", 2, True), ("RecipeError", "wrong", 2, False)),
        (
            "signal",
            ("Interrupted", "stopped by SIGTERM after step 3", 143, True),
            ("Interrupted", "stopped by SIGTERM after step 3", 143, False),
        ),
        ("constructor", ("Odd", "this and that", 9, True), ("Odd", "this and that", 9, False)),
        ("disk", ("OSError", "[Errno 28] full", 0, True), ("OSError", "[Errno 28] full", 0, False)),
        (
            "arithmetic",
            ("ZeroDivisionError", "division by zero", 0, True),
            ("MmsslError", "the main process failed: ZeroDivisionError: division by zero", 1, False),
        ),
    ],
)
def test_whatever_the_main_process_raises_ends_all(
    two_processes: Processes, name: str, main: tuple[object, ...], other: tuple[object, ...]
) -> None:
    assert two_processes.run(decided, [(name,)] * 2) == [main, other]


def test_an_error_that_cannot_be_sent_ends_all_too(two_processes: Processes) -> None:
    (kind, *_), (theirs, message, *_) = two_processes.run(decided, [("unicode",)] * 2)
    assert (kind, theirs) == ("UnicodeDecodeError", "MmsslError")
    assert message.startswith("the main process failed: UnicodeDecodeError: 'utf-8' codec")
