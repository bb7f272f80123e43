"""A process that dies or stalls ends the whole run in a stated time, with its own words in the output, and not with a hang."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmssl.training.checkpoints.read import resolve

MOST = 60.0
"""Seconds, of which most go into starting three interpreters; without a limit of its own a lost process is waited for for ever."""
LOST = "process 0 of 2 has lost another process"


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raise", ["OSError: the disk under the second process is gone", "Traceback", "in act"]),
        ("kill", ["exitcode  : -9", LOST]),
        ("stall", [LOST, "did not answer within 0.0333333 minutes (distributed_timeout)"]),
    ],
)
def test_the_run_ends(tmp_path: Path, how: str, words: list[str]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.training.losing", how, str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    root, started = Path(__file__).resolve().parents[2], time.monotonic()
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=2 * MOST, check=False
    )
    assert time.monotonic() - started < MOST
    assert done.returncode != 0
    for word in words:
        assert word in done.stderr, done.stderr
    assert resolve(tmp_path / "run", "last").name == "step_00000002"
