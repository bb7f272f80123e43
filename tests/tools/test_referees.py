"""The referees: what is compared, what fails, and, in their environment, that both agree."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import referees

ROOT = Path(__file__).parents[2]


def test_no_two_samples_tie(tmp_path: Path) -> None:
    drawn = [referees.draw(number) for number in range(300)]
    assert len({one["png"] for one in drawn}) == 300
    captions = [line for one in drawn for line in one["txt"].decode().split("\n")]
    assert len(set(captions)) == len(captions) == 600
    referees.write_set(tmp_path / "set", range(7), ("png", "txt"), "retrieval")
    with tarfile.open(tmp_path / "set/test/1.tar") as tar:
        assert tar.getnames() == [f"s{i:07d}.{member}" for i in (4, 5, 6) for member in ("png", "txt")]
    assert not (tmp_path / "set/classnames.txt").exists()


def test_scores_that_both_have_are_compared_and_a_difference_fails() -> None:
    ours = {"acc1": 0.5, "acc5": None, "mean_per_class_recall": 0.25}
    theirs = {"acc1": 0.5000005, "acc5": float("nan"), "mean_per_class_recall": 0.26}
    found = [*referees.compare("set", "zero_shot", ours, theirs)]
    assert [(one.score, one.agrees) for one in found] == [("acc1", True), ("mean_per_class_recall", False)]
    assert "| set | mean_per_class_recall | 0.250000 | 0.260000 | 1e-02 |" in referees.table(found, "versions")


def _in_their_environment(*command: str) -> str:
    whole = [sys.executable, str(ROOT / "tools/peer_env.py"), "--env", "referees", "python", *command]
    done = subprocess.run(whole, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_clip_benchmark_agrees() -> None:
    printed = _in_their_environment("tools/referees.py")
    assert printed.count("\n| ") >= 10


@pytest.mark.slow
def test_torchmetrics_and_faiss_agree() -> None:
    printed = _in_their_environment("-m", "pytest", "-n", "0", "-q", "tests/evaluation/test_metric_referees.py")
    assert " passed" in printed
    assert " skipped" not in printed


@pytest.mark.slow
def test_mteb_agrees() -> None:
    tests = ("tests/evaluation/test_mteb_tasks.py", "tests/pipelines/test_mteb.py")
    assert " passed" in _in_their_environment("-m", "pytest", "-n", "0", "-q", *tests)
