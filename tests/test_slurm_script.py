"""configs/accelerate/slurm.sbatch under a stub of srun: what it starts, when it is queued again, and that a run then goes on."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mmssl.datasets import digit_scenes
from tests.pipelines.conftest import RECIPE

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "configs/accelerate/slurm.sbatch"
TWO_TASKS = """#!{python}
import os, signal, subprocess, sys, threading
tasks = [subprocess.Popen(sys.argv[2:], env=os.environ | {{
    "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "localhost"}}, stderr=subprocess.PIPE if rank == 0 else None, text=True) for rank in range(2)]
for line in tasks[0].stderr:
    sys.stderr.write(line)
    if "step  3/" in line and os.environ.get("WARN"):
        for task in tasks:
            task.send_signal(signal.SIGUSR1)
sys.exit(max(task.wait() for task in tasks))
"""


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def submit(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "41",
        "PYTHON": sys.executable,
    }
    environment = {name: value for name, value in environment.items() if not name.startswith("SLURM_ARRAY")} | variables
    command = ["bash", str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Stubs: srun says what it is told and ends with CODE; scontrol says what it is told."""
    program(tmp_path / "srun", '#!/bin/bash\necho "srun $*"\nexit "${CODE:-0}"\n')
    program(tmp_path / "scontrol", '#!/bin/bash\necho "scontrol $*"\n')
    return tmp_path


def test_a_run_that_was_warned_is_queued_again_and_no_other(folder: Path) -> None:
    done = submit(folder, "image_text/vit_b_32", "batch_size=64")
    started = f"srun --kill-on-bad-exit=1 {sys.executable} -m pipelines.pretrain image_text/vit_b_32 batch_size=64"
    assert (done.returncode, done.stdout) == (0, f"{started}\n")
    warned = submit(folder, "r.yaml", CODE="138")
    assert (warned.returncode, warned.stdout.splitlines()[-1]) == (0, "scontrol requeue 41")
    for code in (1, 2, 143):
        failed = submit(folder, "r.yaml", CODE=str(code))
        assert (failed.returncode, "scontrol" in failed.stdout) == (code, False)


def test_a_task_of_an_array_trains_its_element(folder: Path) -> None:
    array = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_JOB_ID": "40"}
    done = submit(folder, "r.yaml", "--seeds", "4", CODE="138", **array)
    assert done.stdout.splitlines() == [
        f"srun --kill-on-bad-exit=1 {sys.executable} -m pipelines.pretrain r.yaml --seeds 4 --element 3",
        "scontrol requeue 40_3",
    ]


def test_bash_reads_it_and_the_warning_is_one_that_a_run_takes() -> None:
    text = SCRIPT.read_text()
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0
    assert "#SBATCH --signal=USR1@600" in text
    assert "#SBATCH --requeue" in text


@pytest.mark.slow
def test_two_processes_are_saved_before_the_limit_and_go_on(folder: Path) -> None:
    program(folder / "srun", TWO_TASKS.format(python=sys.executable))
    digit_scenes.write(folder / "shards", train=64, validation=0, test=0, shards=2)
    recipe = {
        **RECIPE,
        "name": "job",
        "duration": "12 steps",
        "output": str(folder),
        "log": {"every": "1 steps", "trackers": []},
    }
    recipe["data"] = {"shards": [str(folder / "shards/train")], "workers": 0}
    (folder / "job.yaml").write_text(json.dumps(recipe))
    arguments = [str(folder / "job.yaml")]
    first = submit(folder, *arguments, WARN="1", PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    assert "scontrol requeue 41" in first.stdout, first.stderr
    again = submit(folder, *arguments, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    assert again.returncode == 0, again.stderr
    assert "resumed from" in again.stderr
    assert "2 processes" in again.stderr
