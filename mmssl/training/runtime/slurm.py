"""Map SLURM's variables to torchrun's, for processes that `srun` started without a launcher.

A task of a job step knows its number and how many there are (SLURM_PROCID, SLURM_NTASKS); without this each would train alone.
The shell of `salloc` and the script of `sbatch` are not tasks of a step, or its only task, and are left alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from mmssl.core.errors import RecipeError
from mmssl.core.seeding import fold

_FIRST_PORT, _PORTS = 10_000, 20_000  # below those that Linux hands out to whoever connects
_HOST = re.compile(r"(?:[^,\[]|\[[^\]]*\])+")  # up to a comma that is not in brackets
_NUMBERS = re.compile(r"\[([^\],-]+)[^\]]*\]")


def adopt_slurm() -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT if `srun` started several tasks and they are unset.

    Raises:
        RecipeError: SLURM does not name the host of the first task.
    """
    os.environ.update(as_torchrun(os.environ))


def as_torchrun(environment: Mapping[str, str]) -> dict[str, str]:
    """What torchrun would set for this task; empty outside of a job step of several tasks, and under a launcher."""
    launched = {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & environment.keys()
    tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))
    in_step = {"SLURM_PROCID", "SLURM_STEP_ID"} <= environment.keys()
    if launched or not in_step or int(tasks) < 2:
        return {}
    job, step = environment.get("SLURM_JOB_ID", ""), environment["SLURM_STEP_ID"]
    hosts = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", ""))
    address = environment.get("MASTER_ADDR") or first_host(hosts)
    if not address or "SLURM_LOCALID" not in environment:
        raise RecipeError(
            f"srun started {tasks} tasks without SLURM_STEP_NODELIST or SLURM_LOCALID: start one task a node, "
            "srun --ntasks-per-node 1 torchrun --nnodes NODES --nproc-per-node GPUS --rdzv-backend c10d --rdzv-endpoint HOST:29500 "
            "-m pipelines.pretrain RECIPE"
        )
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "MASTER_ADDR": address,
        "MASTER_PORT": environment.get("MASTER_PORT", str(_FIRST_PORT + fold("slurm", job, step) % _PORTS)),
    }


def first_host(hosts: str) -> str:
    """The first host of a list as SLURM writes it: "gpu[07-09,12],cpu1" -> "gpu07"; empty if there is none."""
    found = _HOST.match(hosts)
    return _NUMBERS.sub(r"\1", found[0]) if found else ""
