"""The same command on one process and on two gives the same run: parameters, curve and scores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmssl.training.checkpoint import load_weights, resolve
from tests.pipelines.conftest import World

# Sums over other orders of float32 numbers, through six steps of AdamW. Its epsilon is raised: attention does not depend on the
# bias of its keys, whose gradient is rounding noise alone, and Adam would make whole steps of that.
TOLERANCE = 1e-5
OVERRIDES = ["optimizer.eps=1e-4"]
TWO = ["--num_processes", "2", "--main_process_port", "0"]


def launched(world: World, output: Path, launcher: list[str]) -> None:
    command = [sys.executable, "-m", *launcher, "-m", "pipelines.pretrain", str(world.recipe), f"output={output}"]
    command += OVERRIDES
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
        ["accelerate.commands.launch", "--config_file", "configs/accelerate/multi_gpu.yaml", *TWO],
        ["accelerate.commands.launch", "--config_file", "configs/accelerate/fsdp2.yaml", *TWO],
    ],
    ids=["torchrun", "accelerate", "fsdp2"],
)
def test_two_processes_are_one(world: World, tmp_path: Path, launcher: list[str]) -> None:
    assert world.pretrain(f"output={tmp_path / 'one'}", *OVERRIDES) == 0
    launched(world, tmp_path / "two", launcher)
    runs = [tmp_path / "one/tiny", tmp_path / "two/tiny"]
    one, two = (load_weights(resolve(run, "last")) for run in runs)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(
            two[name], tensor, atol=TOLERANCE, rtol=TOLERANCE, msg=lambda text, n=name: f"{n}: {text}"
        )
    curves = []
    for run in runs:
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        curves.append([value for record in records for name, value in sorted(record.items()) if name in WATCHED])
    assert len(curves[0]) >= 6
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)


WATCHED = {"loss", "grad_norm", "grad_norm/image", "grad_norm/text", "retrieval/image_to_text_R@1", "retrieval/n"}
