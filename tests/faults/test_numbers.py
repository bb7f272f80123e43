"""NaN and Inf: no bad number reaches a weight or a running statistic, and a run that does not recover ends with a name."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mmssl.core.batch import Batch
from mmssl.core.context import StepContext
from mmssl.core.errors import DataError, MmsslError, NumericError
from mmssl.core.objective import Latents, LossOutput
from mmssl.training.runtime.jsonl import JsonLines
from mmssl.training.steps.plain import PlainStep
from tests.training.toys import Agree, Stream, assert_equal, make_batch, make_learner, make_run, tensors


class Overflowing(Agree):
    """Its loss is infinite at step 3, and its gradients are not."""

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        out = super().criterion(latents, ctx)
        return LossOutput({**out.terms, "far": torch.tensor(math.inf if ctx.step == 3 else 0.0)}, out.measure)


@pytest.mark.parametrize("where", ["loss and gradients", "one gradient", "loss"])
def test_a_bad_step_moves_nothing(tmp_path: Path, where: str) -> None:
    run = make_run(tmp_path, learner=make_learner(Overflowing if where == "loss" else Agree))
    if where == "one gradient":
        run.state.learner.objective.break_gradient = 3
    for step in range(5):
        before = tensors(run)
        batch = make_batch(step, 8, poisoned=where == "loss and gradients" and step == 3)
        report = run.step(run.state, batch)
        run.state.advance(batch)
        assert report.finite == (step != 3)
        if step == 3:
            assert_equal(tensors(run), before)
            assert all(p.grad is None for p in run.state.learner.parameters())
            assert math.isfinite(report.scalars()["loss"]) == (where == "one gradient")
            assert math.isfinite(report.scalars()["grad_norm"]) == (where == "loss")
        else:
            changed = {
                name for name, tensor in tensors(run).items() if not torch.equal(tensor, before.get(name, tensor))
            }
            assert "learner.encoders.a.norm.running_mean" in changed
    assert all(torch.isfinite(tensor).all() for tensor in tensors(run).values())


def test_bad_batches_are_counted_named_and_survived(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, stream=Stream(poison=(2, 3, 7)), max_bad_steps=3)
    run.train()
    assert (run.state.step, run.state.skipped_steps, run.state.bad_in_a_row) == (10, 3, 0)
    assert run.state.ema is not None
    assert run.state.ema.updates == 7
    records = JsonLines(tmp_path / "bad_batches.jsonl").read()
    assert [record["step"] for record in records] == [3, 4, 8]
    assert records[0]["keys"] == [f"2-{i}" for i in range(8)]
    assert records[0]["loss"] is None
    logged = {r["step"]: r for r in JsonLines(tmp_path / "metrics.jsonl").read()}
    assert logged[3]["loss"] is None
    assert [logged[step]["skipped_steps"] for step in (2, 3, 4, 10)] == [0, 1, 2, 3]
    assert "not finite, skipped" in capsys.readouterr().err


def test_too_many_in_a_row_end_the_run_and_the_last_good_checkpoint_stays(tmp_path: Path) -> None:
    with pytest.raises(
        NumericError, match=r"not finite in 3 steps in a row, up to step 8; .*bad_batches\.jsonl"
    ) as caught:
        make_run(tmp_path, stream=Stream(poison=(1, 5, 6, 7, 8, 9)), max_bad_steps=3).train()
    assert caught.value.exit_code == 5
    lines = (tmp_path / "bad_batches.jsonl").read_text().splitlines()
    assert [json.loads(line)["keys"][0] for line in lines] == ["1-0", "5-0", "6-0", "7-0"]
    run = make_run(tmp_path)
    run.save.store.restore(run.state)
    assert run.state.step == 4
    assert all(torch.isfinite(tensor).all() for tensor in tensors(run).values())


def test_bad_steps_in_a_row_are_counted_over_a_resume(tmp_path: Path) -> None:
    with pytest.raises(NumericError, match="3 steps in a row, up to step 5"):
        make_run(tmp_path, stream=Stream(poison=(2, 3, 4)), max_bad_steps=3).train()
    with pytest.raises(NumericError, match="3 steps in a row, up to step 5"):
        make_run(tmp_path, stream=Stream(poison=(4,)), max_bad_steps=3).train()  # from step 4, with 2 in a row


def test_an_absurd_rate_ends_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(NumericError, match="Lower the learning rate"):
        make_run(
            tmp_path,
            total=50,
            learner=make_learner(noise=False),
            optimizer={"kind": "adamw", "lr": 1e30},
            save={"every": "40 steps", "minutes": None},
            max_bad_steps=3,
        ).train()


def test_out_of_memory_is_told_with_what_to_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhaust(*args: object) -> None:
        raise torch.OutOfMemoryError("wanted 20 GiB")

    monkeypatch.setattr(PlainStep, "gradients", exhaust)
    with pytest.raises(MmsslError, match=r"step 0: the device is out of memory with 8 samples .* lower batch_size"):
        make_run(tmp_path).train()


def test_a_stream_that_ends_is_an_error(tmp_path: Path) -> None:
    class Short(Stream):
        def __iter__(self) -> Iterator[Batch]:
            yield from itertools.islice(super().__iter__(), 3)

    with pytest.raises(DataError, match="the training stream ended before the run did"):
        make_run(tmp_path, stream=Short()).train()
