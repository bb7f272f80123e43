"""The same promises on a GPU, in every precision."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmssl.core.batch import Batch
from mmssl.encoders.text_transformer import TextTransformerConfig, trim_padding
from mmssl.training.run import Run
from mmssl.training.steps.prefetch import DeviceStream
from tests.training.steps.test_cached import noisy
from tests.training.toys import Stream, assert_equal, make_batch, make_learner, make_run, tensors

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


def test_batches_arrive_whole_while_steps_run() -> None:
    device = torch.device("cuda")
    stream = DeviceStream(PinnedStream(512), make_learner(), device)
    work = torch.randn(2048, 2048, device=device)
    for number, (ours, theirs) in enumerate(zip(stream, Stream(512), strict=False)):
        assert ours["a"]["view0"].device.type == "cuda"
        for _ in range(20):  # the next batch is copied meanwhile
            work = torch.tanh(work @ work)
        assert torch.equal(ours["a"]["view0"].cpu(), theirs["a"]["view0"])
        assert torch.equal(ours.index.cpu(), theirs.index)
        if number == 5:
            break


class PinnedStream(Stream):
    """As the loader gives it."""

    def __iter__(self) -> Iterator[Batch]:
        return (batch.pin_memory() for batch in super().__iter__())


@pytest.mark.parametrize("settings", [{}, {"pool": "mean", "causal": False}])
def test_trimmed_texts_on_a_gpu_are_packed_texts_on_the_cpu(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    size = {"vocab_size": 40, "context_length": 40, "width": 32, "depth": 3, "heads": 4}
    encoder = TextTransformerConfig.model_validate(size | settings).build().double()
    ids = torch.randint(1, 39, (6, 40))
    for row, end in enumerate((3, 19, 7, 7, 1, 12)):
        ids[row, end], ids[row, end + 1 :] = 39, 0
    packed = encoder(ids, pooled_only=True).pooled
    trimmed = trim_padding(ids)
    assert trimmed.shape[1] == 24
    on_gpu = encoder.cuda()(trimmed.cuda(), pooled_only=True).pooled
    torch.testing.assert_close(on_gpu.cpu(), packed, atol=1e-10, rtol=1e-10)
