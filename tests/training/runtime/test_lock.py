"""One run in one folder."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from mmssl.core.errors import RecipeError
from mmssl.training.runtime.lock import RunLock, on_main
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


def test_what_the_main_process_raises_all_raise() -> None:
    assert on_main(lambda: 7) == 7
    with pytest.raises(OSError, match="full"):
        on_main(lambda: (_ for _ in ()).throw(OSError("full")))
