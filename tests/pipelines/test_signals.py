"""A run that is told to stop saves itself, says so by its exit code, and goes on bit for bit as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmssl.core.batch import Batch
from mmssl.training.checkpoints.read import load_weights, resolve
from mmssl.training.steps.plain import PlainStep
from tests.pipelines.conftest import World

ROOT = Path(__file__).resolve().parents[2]
OVERRIDES = ["duration=60 steps", "log.every=1 steps", "save.every=25 steps", "evaluators={}", "data.workers=1"]


def stopped_by(world: World, output: Path, number: signal.Signals) -> int:
    """Start the command as a user would, signal it when its first step is logged, return its exit code."""
    command = [sys.executable, "-m", "pipelines.pretrain", str(world.recipe), f"output={output}", *OVERRIDES]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step  3/60"):
                process.send_signal(number)
                break
        process.communicate(timeout=120)
        return process.returncode


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stop_save_and_go_on(world: World, tmp_path: Path, number: signal.Signals, code: int) -> None:
    assert stopped_by(world, tmp_path / "cut", number) == code
    saved = resolve(tmp_path / "cut/tiny", "last")
    step = int(saved.name.removeprefix("step_"))
    assert 3 <= step < 60
    assert world.pretrain(f"output={tmp_path / 'cut'}", *OVERRIDES, "data.workers=0") == 0
    assert world.pretrain(f"output={tmp_path / 'whole'}", *OVERRIDES) == 0
    cut, whole = (load_weights(resolve(tmp_path / name / "tiny", "last")) for name in ("cut", "whole"))
    assert cut.keys() == whole.keys()
    assert all(cut[name].equal(tensor) for name, tensor in whole.items()), "every tensor is bit-equal"
    curves = [(tmp_path / name / "tiny/metrics.jsonl").read_text().splitlines() for name in ("cut", "whole")]
    losses = [[(r["step"], r["loss"], r["grad_norm"]) for r in map(json.loads, curve)] for curve in curves]
    assert losses[0] == losses[1]
    assert [step for step, *_ in losses[0]] == list(range(1, 61))


@pytest.mark.parametrize(("at", "said"), [(0, "tiny holds no checkpoint yet"), (4, "tiny/checkpoints/step_00000003")])
def test_an_interrupt_at_once_says_what_is_saved(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], at: int, said: str
) -> None:
    original = PlainStep.gradients

    def interrupted(self: PlainStep, batch: Batch, step: int, total_steps: int) -> object:
        if step == at:
            raise KeyboardInterrupt
        return original(self, batch, step, total_steps)

    monkeypatch.setattr(PlainStep, "gradients", interrupted)
    assert world.pretrain(f"output={tmp_path}") == 130
    assert (
        f"stopped by SIGINT at once; {'the newest checkpoint is ' if at else ''}{tmp_path}/{said}"
        in capfd.readouterr().err
    )
