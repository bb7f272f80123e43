"""Tasks of srun are one run: they find each other by SLURM's variables; shells and single tasks train alone."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from mmssl.core import distributed
from mmssl.core.errors import RecipeError
from mmssl.training.runtime.launch import Launch
from mmssl.training.runtime.slurm import as_torchrun, first_host
from tests.programs import start

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


def take_part(environment: dict[str, str], answer: Path) -> None:
    """One task: joins the others, and writes how many they are."""
    os.environ.update(environment)
    launch = Launch(device="cpu")
    answer.write_text(f"{launch.describe()} {distributed.gather_objects(distributed.rank())}")
    launch.close()


def test_two_tasks_are_one_run(tmp_path: Path) -> None:
    common = STEP | {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.1"}
    common |= {"SLURM_JOB_ID": str(os.getpid()), "CUDA_VISIBLE_DEVICES": ""}
    with ExitStack() as started:
        tasks = []
        for task in ("0", "1"):
            given = {**common, "SLURM_PROCID": task, "SLURM_LOCALID": task}
            tasks.append(start(take_part, given, tmp_path / task))
            started.callback(tasks[-1].kill)
        for process in tasks:
            process.join(120)
            assert process.exitcode == 0
    for task in ("0", "1"):
        said = (tmp_path / task).read_text()
        assert said.startswith("2 processes, parallel ddp")
        assert said.endswith("[0, 1]")
