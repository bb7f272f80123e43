"""A process that dies or stalls ends the whole run in a stated time, with its own words in the output, and not with a hang."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from mmssl.training.checkpoints.read import resolve
from tests.programs import Program

ROOT = Path(__file__).resolve().parents[2]
MOST = 60.0
"""Seconds, of which most go into starting interpreters; without a limit of its own a lost process is waited for for ever."""
LOST = "process 0 of 2 has lost another process"


def test_torchrun_tells_which_process_was_killed(tmp_path: Path) -> None:
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.training.losing", "kill", str(tmp_path / "run")]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    started = time.monotonic()
    with Program(*command, folder=tmp_path, environment=environment) as run:
        assert run.wait(2 * MOST) != 0
    assert time.monotonic() - started < MOST
    assert "exitcode  : -9" in run.said()
    assert LOST in run.said(), run.said()
    assert resolve(tmp_path / "run", "last").name == "step_00000002"


@pytest.mark.parametrize(
    ("how", "code", "words", "of_the_other"),
    [
        ("raise", 1, [LOST], ["OSError: the disk under the second process is gone", "Traceback", "in act"]),
        ("kill", -9, [LOST], []),
        ("stall", None, [LOST, "did not answer within 0.0333333 minutes (distributed_timeout)"], []),
    ],
)
def test_the_run_ends_where_no_launcher_ends_it(
    tmp_path: Path, how: str, code: int | None, words: list[str], of_the_other: list[str]
) -> None:
    """As on two machines: nobody ends the first process when something happens to the second."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    command, started = ("tests.training.losing", how, tmp_path / "run"), time.monotonic()
    with (
        Program(*command, folder=tmp_path, environment={**common, "RANK": "0"}) as first,
        Program(*command, folder=tmp_path, environment={**common, "RANK": "1"}) as second,
    ):
        assert first.wait(MOST) != 0
        ended = second.wait(MOST)
        assert ended == code or (code is None and ended != 0)
    assert time.monotonic() - started < MOST
    for word in words:
        assert word in first.said(), first.said()
    for word in of_the_other:
        assert word in second.said(), second.said()
    assert resolve(tmp_path / "run", "last").name == "step_00000002"
