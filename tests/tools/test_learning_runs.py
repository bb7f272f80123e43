"""Runs of several rows and seeds: one that fails ends no other, and the program says which."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from learning_runs import in_a_process, raise_failures, run_missing


def one(name: str, seed: int) -> dict[str, Any]:
    """A finished run of a row; that of row b with seed 0 fails."""
    if (name, seed) == ("b", 0):
        raise RuntimeError("exit code 1\nTraceback: out of memory")
    return {"name": name, "seed": seed, "before": {"acc": 0.25}, "after": {"acc": 0.5}, "seconds": 1.0, "alarms": []}


def test_a_failed_run_ends_no_other_and_is_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, wanted = tmp_path / "done.jsonl", [("a", 0), ("b", 0), ("b", 1), ("c", 0)]
    found, failures = run_missing(wanted, results, 1, one)
    assert [(run["name"], run["seed"]) for run in found] == [("a", 0), ("b", 1), ("c", 0)]
    assert failures == ["b, seed 0: exit code 1\nTraceback: out of memory"]
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "a, seed 0: acc 0.500 (+0.250), 1 s ",
        "b, seed 0: exit code 1",
        "b, seed 1: acc 0.500 (+0.250), 1 s ",
        "c, seed 0: acc 0.500 (+0.250), 1 s ",
    ]
    with pytest.raises(SystemExit, match=r"^1 of the runs failed.*\nb, seed 0: exit code 1\nTraceback") as ended:
        raise_failures(failures)
    assert isinstance(ended.value.code, str), "a message is exit code 1"
    raise_failures([])

    again: list[tuple[str, int]] = []
    run_missing(wanted, results, 1, lambda name, seed: again.append((name, seed)) or one("b", 1))  # type: ignore[func-returns-value]
    assert again == [("b", 0)]


def test_a_process_that_fails_says_how(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import sys\nif sys.argv[3] == '1':\n    sys.exit('no such row')\nprint('{\"name\": \"a\"}')\n")
    given = (tmp_path, None, tmp_path / "done.jsonl", str(program))
    assert in_a_process("a", 0, *given) == json.loads('{"name": "a"}')
    with pytest.raises(RuntimeError, match=r"exit code 1\nno such row"):
        in_a_process("a", 1, *given)
