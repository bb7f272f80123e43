"""A run that stops and goes on is the run that never stopped, bit by bit."""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mmssl.core.config import Duration
from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import CheckpointError, RecipeError
from mmssl.core.evaluator import Score
from mmssl.training.run import Run
from mmssl.training.runtime.jsonl import JsonLines
from tests.training.toys import Distance, Match, Stream, assert_equal, make_learner, make_run, tensors

TIMES = ("samples_per_second", "data_wait")


class StopError(BaseException):
    """A power cut between two steps."""


class CutStream(Stream):
    """Cuts the power before the batch of step `at`."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def act(self, step: int) -> None:
        if step == self.at:
            raise StopError


def curve(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k not in TIMES} for r in JsonLines(folder / "metrics.jsonl").read()]


def finish(folder: Path, **changes: Any) -> Run:
    run = make_run(folder, evaluators={"far": (Distance(), Duration("5 steps"))}, **changes)
    run.train()
    return run


DECAY = {"kind": "linear", "start": 0.0, "final": 0.1}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"kind": "adamw", "lr": 0.01, "weight_decay": DECAY},
    "sgd": {"kind": "sgd", "lr": 0.1, "weight_decay": DECAY},
    "lars": {"kind": "lars", "lr": 0.1, "trust": 0.1, "weight_decay": DECAY},
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resume_is_bit_exact_with_every_optimizer(tmp_path: Path, optimizer: str) -> None:
    whole = finish(tmp_path / "whole", optimizer=OPTIMIZERS[optimizer])
    with pytest.raises(StopError):
        finish(tmp_path / "cut", stream=CutStream(6), optimizer=OPTIMIZERS[optimizer])
    resumed = finish(tmp_path / "cut", learner=make_learner(seed=99), optimizer=OPTIMIZERS[optimizer])
    assert_equal(tensors(resumed), tensors(whole))
    assert any(name.startswith("optimizer.") for name in tensors(whole))
    assert resumed.state.optimizer.param_groups[0]["weight_decay"] == pytest.approx(0.09)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")


@pytest.mark.parametrize("cut", [4, 6, 9])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resume_is_bit_exact(tmp_path: Path, cut: int, precision: str) -> None:
    whole = finish(tmp_path / "whole", precision=precision)
    with pytest.raises(StopError):
        finish(tmp_path / "cut", stream=CutStream(cut), precision=precision)
    stopped = tmp_path / "cut" / "checkpoints" / "LATEST"
    assert stopped.read_text() == f"step_{cut // 4 * 4:08d}"
    resumed = finish(tmp_path / "cut", learner=make_learner(seed=99), precision=precision)
    assert_equal(tensors(resumed), tensors(whole))
    assert resumed.state.numbers() == whole.state.numbers()
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    ledger = JsonLines(tmp_path / "whole" / "faults.jsonl").read()
    assert (
        JsonLines(tmp_path / "cut" / "faults.jsonl").read() == ledger
    )  # the same substitutes again, none of them twice
    assert len(ledger) == sum(whole.state.faults.values()) > 0
    assert ledger[0].keys() >= {
        "step",
        "rank",
        "row",
        "key",
        "shard",
        "offset",
        "field",
        "reason",
        "detail",
        "substitute",
    }
    assert [r["step"] for r in curve(tmp_path / "cut") if "loss" in r] == list(range(1, 11))
    files = [tmp_path / name / "checkpoints" / "step_00000010" / "model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_dropout_matters_here(tmp_path: Path) -> None:
    """The test above means something: with another seed of the steps the run differs."""
    one, two = make_run(tmp_path / "1"), make_run(tmp_path / "2")
    two.step.seed = 2
    one.train(), two.train()
    assert not torch.equal(one.state.learner.encoders["a"].first.weight, two.state.learner.encoders["a"].first.weight)


def test_a_finished_run_has_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = finish(tmp_path).state.scores
    before = curve(tmp_path)
    again = make_run(tmp_path, evaluators={"far": (Distance(), Duration("5 steps"))})
    assert again.train() == scores
    assert scores["far/nothing"] is None
    assert isinstance(scores["far/distance"], float)
    assert curve(tmp_path) == before
    assert "has trained 10 of 10 steps: nothing to train" in capsys.readouterr().err


def test_a_finished_run_keeps_the_recipe_that_trained_it(tmp_path: Path) -> None:
    folder = finish(tmp_path).folder
    (folder / "recipe.yaml").write_text("as it was trained")
    make_run(tmp_path).train()
    assert (folder / "recipe.yaml").read_text() == "as it was trained"
    (folder / "recipe.yaml").unlink()
    make_run(tmp_path).train()
    assert (folder / "recipe.yaml").exists()


class FailingOnce(Distance):
    """Fails in its evaluation number `at`, before a score is written: as if the power were cut while evaluating."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        if len(self.seen) + 1 == self.at:
            raise StopError
        yield from super().evaluate(model)


@pytest.mark.parametrize(("at", "step"), [(1, 4), (2, 8), (3, 10)])
def test_an_evaluation_that_was_cut_is_caught_up(tmp_path: Path, at: int, step: int) -> None:
    def run(folder: Path, evaluator: Distance) -> Run:
        save = {"every": "4 steps", "minutes": None, "best": {"metric": "far/distance", "mode": "min"}}
        return make_run(folder, evaluators={"far": (evaluator, Duration("4 steps"))}, save=save)

    whole, folder = run(tmp_path / "whole", Distance()), tmp_path / "cut"
    scores = whole.train()
    with pytest.raises(StopError):
        run(folder, FailingOnce(at)).train()
    assert (folder / "checkpoints" / "LATEST").read_text() == f"step_{step:08d}"  # saved before it was evaluated
    resumed = run(folder, Distance())
    assert resumed.train() == scores
    assert curve(folder) == curve(tmp_path / "whole")
    assert resumed.state.best == whole.state.best
    pointers = [path / "checkpoints" / "BEST" for path in (folder, tmp_path / "whole")]
    assert pointers[0].read_text() == pointers[1].read_text()


def test_hyperparameters_may_change_on_resume(tmp_path: Path) -> None:
    with pytest.raises(StopError):
        make_run(tmp_path, stream=CutStream(5)).train()
    run = make_run(tmp_path, optimizer={"kind": "adamw", "lr": 0.5, "weight_decay": 0.3})
    run.save.store.restore(run.state)
    assert {g["weight_decay"] for g in run.state.optimizer.param_groups} == {0.0, 0.3}
    assert run.state.optimizer.defaults["lr"] == 0.5


def test_resume_never_refuses_a_used_folder(tmp_path: Path) -> None:
    make_run(tmp_path).train(resume="never")
    with pytest.raises(RecipeError, match=r"has checkpoints already \(step_00000010\)"):
        make_run(tmp_path).train(resume="never")


def test_an_earlier_checkpoint_leaves_the_later_ones_aside(tmp_path: Path) -> None:
    whole = make_run(tmp_path)
    whole.train()
    resumed = make_run(tmp_path)
    resumed.train(resume=str(tmp_path / "checkpoints" / "step_00000004"))
    assert_equal(tensors(resumed), tensors(whole))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [
        "LATEST", "step_00000004", "step_00000008", "step_00000008.aside-0", "step_00000010", "step_00000010.aside-0",
    ]  # fmt: skip
    assert [r["step"] for r in curve(tmp_path)] == list(range(1, 11))


def test_another_run_can_be_continued_in_a_folder_of_its_own(tmp_path: Path) -> None:
    first = make_run(tmp_path / "first")
    first.train()
    second = make_run(tmp_path / "second", total=12)
    second.train(resume=str(tmp_path / "first"))
    assert second.state.step == 12
    assert (tmp_path / "second" / "checkpoints" / "step_00000012").is_dir()


def test_an_average_that_starts_later_starts_from_the_weights(tmp_path: Path) -> None:
    make_run(tmp_path, ema=None).train()
    run = make_run(tmp_path)
    run.save.store.restore(run.state)
    assert run.state.ema is not None
    assert_equal(run.state.ema.module.state_dict(), run.state.learner.state_dict())


def test_the_wrong_recipe_is_told_with_both_sides(tmp_path: Path) -> None:
    make_run(tmp_path).train()
    other = make_learner(Match, noise=False)
    other.objective.head = torch.nn.Linear(6, 5)
    with pytest.raises(CheckpointError) as caught:
        make_run(tmp_path, learner=other).train()
    message = str(caught.value)
    assert "6 unexpected in the checkpoint" in message
    assert "encoders.a.norm.running_mean" in message
    assert "objective.head.weight is [6, 6] in the checkpoint and [5, 6] in the recipe" in message
    frozen = make_learner()
    frozen.encoders["a"].requires_grad_(False)
    with pytest.raises(
        CheckpointError, match=r"the saved optimizer has other parameters than the recipe's: a\.first\.bias"
    ):
        make_run(tmp_path, learner=frozen).train()


def test_lines_wait_for_a_disk_that_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = JsonLines(tmp_path / "m.jsonl")
    file.append({"step": 1})

    class Full:
        def __init__(self, *args: Any) -> None:
            self.file = original(*args)

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> None:
            self.file.write(data[:5])
            self.file.flush()
            raise OSError(28, "No space left on device")

    original = builtins.open
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", Full)
        file.append({"step": 2})
        file.append({"step": 3})
    assert "no space is left on the disk; 2 lines wait to be written" in capsys.readouterr().err
    assert file.path.read_text() == '{"step": 1}\n'
    file.append({"step": 4})
    assert [record["step"] for record in file.read()] == [1, 2, 3, 4]


def test_metrics_go_back_to_the_checkpoint(tmp_path: Path) -> None:
    file = JsonLines(tmp_path / "m.jsonl")
    file.rewind(3)  # nothing there yet
    for step in range(1, 6):
        file.append({"step": step, "loss": float("nan") if step == 2 else step / 2})
    file.path.write_bytes(file.path.read_bytes() + b'{"step": 3, "lo')
    file.rewind(3)
    assert file.read() == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}, {"step": 3, "loss": 1.5}]
    assert [json.loads(line)["step"] for line in file.path.read_text().splitlines()] == [1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["m.jsonl"]
