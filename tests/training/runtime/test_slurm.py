"""Tasks of srun are one run: they find each other by SLURM's variables; shells and single tasks train alone."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from mmssl.core.errors import RecipeError
from mmssl.training.runtime.slurm import as_torchrun, first_host

STEP = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[03,07-08]",
    "SLURM_JOB_NODELIST": "gpu[01-08]",
}


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node7", "node7"),
        ("node7,node8", "node7"),
        ("gpu[07-09,12],cpu1", "gpu07"),
        ("a-b[3,5].lan", "a-b3.lan"),
        ("rack[0-1]node[2-5]x,other", "rack0node2x"),
        ("", ""),
    ],
)
def test_the_first_host(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


def test_tasks_of_a_step() -> None:
    adopted = as_torchrun(STEP)
    port = adopted.pop("MASTER_PORT")
    assert adopted == {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu03"}
    assert 10_000 <= int(port) < 30_000
    assert as_torchrun(STEP | {"SLURM_PROCID": "0"})["MASTER_PORT"] == port
    assert as_torchrun(STEP | {"SLURM_STEP_ID": "1"})["MASTER_PORT"] != port
    given = as_torchrun(STEP | {"MASTER_ADDR": "head", "MASTER_PORT": "29500"})
    assert (given["MASTER_ADDR"], given["MASTER_PORT"]) == ("head", "29500")


@pytest.mark.parametrize(
    "changes",
    [
        {"SLURM_STEP_NUM_TASKS": "1"},  # the interactive step of salloc, in an allocation for several
        {"SLURM_STEP_NUM_TASKS": None, "SLURM_NTASKS": "1"},
        {"SLURM_STEP_ID": None},  # the script of sbatch
        {"SLURM_PROCID": None},  # the shell of salloc
        {"RANK": "0", "WORLD_SIZE": "2"},  # torchrun below srun
        {"WORLD_SIZE": "1"},
    ],
)
def test_shells_single_tasks_and_launchers_stay_as_they_are(changes: dict[str, str | None]) -> None:
    assert as_torchrun({name: value for name, value in (STEP | changes).items() if value is not None}) == {}


def test_without_a_place_to_meet_torchrun_is_shown() -> None:
    with pytest.raises(RecipeError, match=r"srun started 8 tasks.*torchrun --nnodes"):
        as_torchrun({name: value for name, value in STEP.items() if "NODELIST" not in name})


PROGRAM = """
from mmssl.core import distributed
from mmssl.training.runtime.launch import Launch
launch = Launch(device="cpu")
print(launch.describe(), distributed.gather_objects(distributed.rank()))
launch.close()
"""


def test_two_tasks_are_one_run() -> None:
    root = Path(__file__).resolve().parents[3]
    common = STEP | {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.1"}
    common |= {"SLURM_JOB_ID": str(os.getpid()), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with ExitStack() as started:
        tasks = []
        for task in ("0", "1"):
            environment = {**os.environ, **common, "SLURM_PROCID": task, "SLURM_LOCALID": task}
            command = [sys.executable, "-c", PROGRAM]
            process = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)
            started.enter_context(process)
            started.callback(process.kill)
            tasks.append(process)
        for process in tasks:
            said, _ = process.communicate(timeout=120)
            assert said.startswith("2 processes, parallel ddp")
            assert said.endswith("[0, 1]\n")
