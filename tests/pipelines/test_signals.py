"""A run that is told to stop saves itself, says so by its exit code, and goes on bit for bit as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import pytest

from mmssl.core.batch import Batch
from mmssl.training.checkpoints.read import load_weights, resolve
from mmssl.training.steps.plain import PlainStep
from tests.pipelines.conftest import World
from tests.programs import Program

OVERRIDES = ["duration=60 steps", "log.every=1 steps", "save.every=25 steps", "evaluators={}"]


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing stops."""
    output = tmp_path_factory.mktemp("whole")
    assert world.pretrain(f"output={output}", *OVERRIDES, "data.workers=0") == 0
    return output / "tiny"


# tests/faults/test_signals.py has the codes of all signals in the process of the tests.
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_stop_save_and_go_on(world: World, whole: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    cut = tmp_path / "tiny"
    command = ("pipelines.pretrain", world.recipe, f"output={tmp_path}", *OVERRIDES)
    with Program(*command, "data.workers=1", folder=tmp_path) as run:
        run.until("step  3/60", 120)
        run.signal(number)
        assert run.wait(120) == code, run.said()
    step = int(resolve(cut, "last").name.removeprefix("step_"))
    assert 3 <= step < 60
    assert world.pretrain(f"output={tmp_path}", *OVERRIDES, "data.workers=0") == 0
    ours, expected = (load_weights(resolve(run, "last")) for run in (cut, whole))
    assert ours.keys() == expected.keys()
    assert all(ours[name].equal(tensor) for name, tensor in expected.items()), "every tensor is bit-equal"
    curves = [(run / "metrics.jsonl").read_text().splitlines() for run in (cut, whole)]
    losses = [[(r["step"], r["loss"], r["grad_norm"]) for r in map(json.loads, curve)] for curve in curves]
    assert losses[0] == losses[1]
    assert [step for step, *_ in losses[0]] == list(range(1, 61))


def test_a_signal_while_shards_are_opened(world: World, tmp_path: Path) -> None:
    with socket.socket() as closed:  # a port at which nobody answers
        closed.bind(("127.0.0.1", 0))
        shards = f'data.shards=["http://127.0.0.1:{closed.getsockname()[1]}/0.tar"]'
        with Program("pipelines.pretrain", world.recipe, f"output={tmp_path}", shards, folder=tmp_path) as run:
            run.until("attempt 1 failed", 120)
            run.signal(signal.SIGTERM)
            assert run.wait(60) == 143, run.said()
    assert f"stopped by SIGTERM at once; {tmp_path}/tiny holds no checkpoint yet" in run.said()
    assert not list(tmp_path.glob("tiny/**/.*")), "no lock and no half-written file"


@pytest.mark.parametrize(("at", "said"), [(0, "tiny holds no checkpoint yet"), (4, "tiny/checkpoints/step_00000003")])
def test_an_interrupt_at_once_says_what_is_saved(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], at: int, said: str
) -> None:
    original = PlainStep.gradients

    def interrupted(self: PlainStep, batch: Batch, step: int, total_steps: int) -> object:
        if step == at:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch, step, total_steps)

    monkeypatch.setattr(PlainStep, "gradients", interrupted)
    assert world.pretrain(f"output={tmp_path}") == 130
    assert (
        f"stopped by SIGINT at once; {'the newest checkpoint is ' if at else ''}{tmp_path}/{said}"
        in capfd.readouterr().err
    )
