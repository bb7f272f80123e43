"""The same promises on a GPU, in every precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmssl.training.run import Run
from tests.training.test_cached import noisy
from tests.training.toys import Stream, assert_equal, make_batch, make_run, tensors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class CutStream(Stream):
    """Cuts the power before step 6."""

    def act(self, step: int) -> None:
        if step == 6:
            raise ConnectionAbortedError


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_resume_is_bit_exact_on_a_gpu(tmp_path: Path, precision: str) -> None:
    whole = make_run(tmp_path / "whole", device="cuda", precision=precision)
    whole.train()
    with pytest.raises(ConnectionAbortedError):
        make_run(tmp_path / "cut", device="cuda", precision=precision, stream=CutStream()).train()
    resumed = make_run(tmp_path / "cut", device="cuda", precision=precision)
    resumed.train()
    assert {tensor.device.type for tensor in resumed.state.learner.state_dict().values()} == {"cuda"}
    assert_equal(tensors(resumed), tensors(whole))
    assert resumed.state.numbers() == whole.state.numbers()
    assert whole.state.step - whole.state.skipped_steps >= 9


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cached_gradients_resume_bit_exactly_on_a_gpu(tmp_path: Path, precision: str) -> None:
    def run(name: str, seed: int = 0, **changes: Any) -> Run:
        step = {"kind": "cached", "micro_batches": 4}
        return make_run(tmp_path / name, learner=noisy(seed), step=step, device="cuda", precision=precision, **changes)

    whole = run("whole")
    whole.train()
    with pytest.raises(ConnectionAbortedError):
        run("cut", stream=CutStream()).train()
    resumed = run("cut", seed=99)
    resumed.train()
    assert_equal(tensors(resumed), tensors(whole))


def test_each_micro_batch_draws_the_same_numbers_twice_on_a_gpu(tmp_path: Path) -> None:
    run = make_run(tmp_path, learner=noisy(), step={"kind": "cached", "micro_batches": 4}, device="cuda")
    outputs: list[Tensor] = []
    run.state.learner.encoders["a"].dropout.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    run.state.learner.train()
    run.step.gradients(make_batch(0, 8).to("cuda"), 0, 10)
    assert len(outputs) == 8
    assert all(torch.equal(*pair) for pair in zip(outputs[:4], outputs[4:], strict=True))


def test_overflow_in_half_precision_moves_nothing_and_lowers_the_scale(tmp_path: Path) -> None:
    run = make_run(tmp_path, device="cuda", precision="fp16")
    assert run.state.scaler is not None
    run.step(run.state, make_batch(0, 8).to("cuda"))
    scale, before = run.state.scaler.get_scale(), tensors(run)
    assert not run.step(run.state, make_batch(1, 8, poisoned=True).to("cuda")).finite
    assert_equal(tensors(run), before)
    assert run.state.scaler.get_scale() == scale / 2


def test_a_program_may_train_on_one_device_and_then_on_another(tmp_path: Path) -> None:
    for number, device in enumerate(("cuda", "cpu", "auto")):
        run = make_run(tmp_path / str(number), total=2, device=device)
        run.train()
        assert run.launch.device.type == ("cpu" if device == "cpu" else "cuda")
