"""What is due when, what is logged, which checkpoints stay."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from mmssl.core.config import Duration
from mmssl.core.context import StepContext
from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError, RecipeError
from mmssl.core.evaluator import Evaluator, Score
from mmssl.core.objective import Latents, LossOutput
from mmssl.training.beats import Every
from mmssl.training.checkpoints.read import load_weights, resolve
from mmssl.training.checkpoints.write import CheckpointStore
from mmssl.training.runtime.jsonl import JsonLines
from tests.distributed.processes import Processes
from tests.training.toys import Agree, Distance, Match, Stream, assert_equal, make_learner, make_run

BEST = {"every": "2 steps", "minutes": None, "keep_last": 2, "best": {"metric": "given/score"}}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_steps_and_minutes() -> None:
    clock = Clock()
    every = Every(4, 2.0, clock)
    assert [step for step in range(1, 10) if every.due(step, every.wish())] == [4, 8]
    clock.now += 120
    assert every.wish()
    assert every.due(9, every.wish())
    assert not every.wish()
    clock.now += 119
    assert every.due(12, every.wish())  # by steps: the minutes start anew
    clock.now += 2
    assert not every.wish()
    assert not Every(None, None, clock).due(1, False)
    assert Every(None, None, clock).due(1, True)  # another process wished
    with pytest.raises(ValueError, match="got a beat every 0 steps"):
        Every(0)


def test_minutes_save_too(tmp_path: Path) -> None:
    run = make_run(tmp_path, save={"every": None, "minutes": 1e-9, "keep_last": 20})
    run.train()
    assert [path.name for path in sorted((tmp_path / "checkpoints").glob("step_*"))] == [
        f"step_{step:08d}" for step in range(1, 11)
    ]


def test_what_is_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, learner=make_learner(Match), log={"every": "5 steps", "trackers": []})
    run.train()
    records = JsonLines(tmp_path / "metrics.jsonl").read()
    assert [record["step"] for record in records] == [5, 10]
    last = records[-1]
    assert last.keys() == {
        "step", "progress", "loss", "chance", "chance_loss", "spread/first", "norm/first",
        "grad_norm", "grad_norm/a", "grad_norm/b", "grad_norm/objective", "lr", "samples",
        "skipped_steps", "skipped/undecodable", "notes/turn: no_handle", "samples_per_second", "data_wait",
    }  # fmt: skip
    assert (last["samples"], last["skipped/undecodable"], last["skipped_steps"]) == (80, 3, 0)
    assert [record["progress"] for record in records] == [0.5, 1]
    assert last["chance_loss"] == last["chance"] == pytest.approx(math.log(8))
    assert 0 < last["spread/first"] <= 1
    assert last["lr"] == pytest.approx(0.01 * run.updates.rate(9))
    assert last["samples_per_second"] > 0
    assert 0 < last["data_wait"] < 1
    said = capsys.readouterr().err
    first = next(line for line in said.splitlines() if line.startswith("step  5/10"))
    loss, gradient = records[0]["loss"], records[0]["grad_norm"]
    assert first.startswith(f"step  5/10 | loss {loss:.3f} (chance 2.079) | gradient {gradient:.3f} | ")
    assert "ETA 0:00:0" in first
    assert "grad_norm" not in said, "what is no headline is in the file only"
    assert "samples skipped: 3 undecodable" in said
    assert "noted: 10 turn: no_handle" in said
    assert "undecodable 'a' of key 'bad-1'" in " ".join(said.split())


def test_a_run_is_called_input_bound_where_that_lasts_and_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    run.log.start(run.state)
    verdicts = []
    for waited in (3.0, 0.01, 3.0, 0.34, 0.33, 3.0):
        batch = next(iter(run.state.stream))
        report = run.step(run.state, batch)
        run.state.advance(batch)
        run.log.timed(waited, 1.0)
        run.log.once(run.state, report)
        said = capsys.readouterr().err
        assert f"{8 / (waited + 1):.0f} samples/s" in said
        verdicts.append("input-bound: 25% of the time waiting for data" in said if waited == 0.34 else "-bound" in said)
    assert verdicts == [False, False, False, True, False, False]
    assert "ETA 0:00:16" in said


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    make_run(tmp_path, log={"every": "5 steps", "trackers": ["tensorboard"]}).train()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard" / "mmssl"))
    events.Reload()
    logged = [record["loss"] for record in JsonLines(tmp_path / "metrics.jsonl").read()]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(logged)
    assert [event.step for event in events.Scalars("grad_norm/a")] == [5, 10]


def test_a_tracker_that_fails_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Failing:
        name = "service"
        calls = 0

        def log(self, values: dict[str, float], step: int) -> None:
            self.calls += 1
            raise ConnectionError("no route")

        def finish(self) -> None:
            raise AssertionError("left out, and called again")

    run, tracker = make_run(tmp_path), Failing()
    run.launch._trackers.append(tracker)  # type: ignore[arg-type]
    run.train()
    assert tracker.calls == 1
    assert "tracker 'service' failed and is now disabled: ConnectionError: no route" in capsys.readouterr().err


class Given(Evaluator):
    """Scores that were decided before."""

    def __init__(self, *scores: Score) -> None:
        self.scores = iter(scores)

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        assert not model.training
        yield "score", next(self.scores)
        yield "name", "x"


class Keeping(Given):
    """Keeps something between its runs, until it is closed."""

    held = False
    closed = 0

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        assert self.closed == 0
        self.held = True
        yield from super().evaluate(model)

    def close(self) -> None:
        self.held = False
        self.closed += 1


@pytest.mark.parametrize("fails", [False, True])
def test_evaluators_are_closed_once_at_the_end_of_a_run_however_it_ends(tmp_path: Path, fails: bool) -> None:
    class Ending(Stream):
        def act(self, step: int) -> None:
            if fails and step == 5:
                raise DataError("the data end here")

    evaluator = Keeping(1, 2, 3, 4, 5)
    run = make_run(tmp_path, stream=Ending(), evaluators={"kept": (evaluator, Duration("2 steps"))})
    with pytest.raises(DataError, match="end here") if fails else nullcontext():
        run.train()
    assert (evaluator.held, evaluator.closed) == (False, 1)


def names(folder: Path) -> list[str]:
    return sorted(path.name[-2:] for path in (folder / "checkpoints").glob("step_*"))


def test_the_best_checkpoint_stays(tmp_path: Path) -> None:
    run = make_run(tmp_path, save=BEST, evaluators={"given": (Given(0.1, 0.9, 0.9, None, 0.2), Duration("2 steps"))})
    scores = run.train()
    assert scores == {"given/score": 0.2, "given/name": "x"}
    assert names(tmp_path) == ["04", "08", "10"]
    assert resolve(tmp_path).name == "step_00000004"
    assert resolve(tmp_path, "last").name == "step_00000010"
    assert run.state.best is not None
    assert (run.state.best.step, run.state.best.value) == (4, 0.9)
    evaluated = [r for r in JsonLines(tmp_path / "metrics.jsonl").read() if "given/score" in r]
    assert [(r["step"], r["given/score"]) for r in evaluated] == [(2, 0.1), (4, 0.9), (6, 0.9), (8, None), (10, 0.2)]


def test_a_new_best_is_saved_at_its_step(tmp_path: Path) -> None:
    lowest = {**BEST, "every": None, "best": {"metric": "given/score", "mode": "min"}}
    run = make_run(tmp_path, save=lowest, evaluators={"given": (Given(0.5, 0.3, 0.4), Duration("3 steps"))}, total=8)
    run.train()
    assert names(tmp_path) == ["06", "08"]
    assert resolve(tmp_path).name == "step_00000006"


def test_a_damaged_best_falls_back_unless_strict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, save=BEST, evaluators={"given": (Given(1, 2, 0, 0, 0), Duration("2 steps"))}).train()
    (tmp_path / "checkpoints" / "step_00000004" / "model.safetensors").write_bytes(b"")
    assert resolve(tmp_path).name == "step_00000010"
    assert "skipping the best checkpoint" in capsys.readouterr().err


def test_pinned_checkpoints_stay(tmp_path: Path) -> None:
    make_run(tmp_path, total=4).train()
    (tmp_path / "checkpoints" / "step_00000004" / "PINNED").touch()
    make_run(tmp_path, total=30, save={"every": "5 steps", "minutes": None, "keep_last": 2}).train()
    assert names(tmp_path) == ["04", "25", "30"]


def test_a_watched_metric_must_be_there(tmp_path: Path) -> None:
    wrong = {**BEST, "best": {"metric": "given/scores"}}
    run = make_run(tmp_path, save=wrong, evaluators={"given": (Given(1), Duration("2 steps"))})
    with pytest.raises(RecipeError, match=r"got 'given/scores', did you mean 'given/score'"):
        run.train()
    with pytest.raises(RecipeError, match=r"wanted '<evaluator>/<metric>' of an evaluator of this recipe: it has none"):
        make_run(tmp_path, save=BEST)


def test_evaluators_see_the_average_in_evaluation_mode_and_training_goes_on(tmp_path: Path) -> None:
    evaluator = Distance()
    run = make_run(tmp_path, evaluators={"far": (evaluator, Duration("3 steps"))})
    run.train()
    assert evaluator.seen == [False] * 4
    learner = run.state.learner
    assert learner.training
    assert learner.encoders["a"].norm.training
    learner.load_state_dict(load_weights(resolve(tmp_path)))
    model = EmbeddingModel(dict(learner.encoders.items()), learner.objective.heads()).eval()
    assert dict(Distance().evaluate(model))["distance"] == run.state.scores["far/distance"]


def test_frozen_encoders_keep_their_statistics_over_an_evaluation(tmp_path: Path) -> None:
    learner = make_learner()
    learner.encoders["b"].requires_grad_(False)
    before = {n: t.clone() for n, t in learner.encoders["b"].state_dict().items()}
    make_run(tmp_path, learner=learner, ema=None, evaluators={"far": (Distance(), Duration("3 steps"))}).train()
    assert_equal(learner.encoders["b"].state_dict(), before)
    assert (learner.encoders["a"].norm.training, learner.encoders["b"].norm.training) == (True, False)
    assert learner.encoders["a"].norm.num_batches_tracked == 10


def test_stores_need_room_and_a_spare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="got keep_last 1, wanted at least 2"):
        CheckpointStore(tmp_path, "", keep_last=1)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(RecipeError, match=r"0\.00 GB free, and checkpoints need"):
        make_run(tmp_path / "run").train()


class Heavy(Agree):
    """Nearly all of its bytes are in two tensors, of which one is frozen and has neither gradients nor moments."""

    def __init__(self) -> None:
        super().__init__()
        self.ballast = torch.nn.Parameter(torch.zeros(200_000))
        self.frozen = torch.nn.Parameter(torch.zeros(100_000), requires_grad=False)

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        made = super().criterion(latents, ctx)
        return LossOutput({**made.terms, "ballast": self.ballast.square().sum()}, made.measure)


@pytest.mark.parametrize("ema", [None, {"decay": 0.9, "warmup": True}])
def test_a_run_starts_where_two_checkpoints_have_room_and_goes_on_where_one_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: dict[str, Any] | None
) -> None:
    def train(name: str, free: float, total: int = 1) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": free})())
        make_run(tmp_path / name, total, learner=make_learner(Heavy), ema=ema).train()

    train("measured", 1e9)
    files = (tmp_path / "measured/checkpoints/step_00000001").iterdir()
    size = sum(file.stat().st_size for file in files)
    assert size > 2_000_000
    with pytest.raises(RecipeError, match="GB free, and checkpoints need"):
        train("new", 1.95 * size)
    train("new", 2.05 * size)
    with pytest.raises(RecipeError, match="GB free, and checkpoints need"):
        train("new", 0.95 * size, total=2)
    train("new", 1.05 * size, total=2)


def test_metrics_are_json(tmp_path: Path) -> None:
    make_run(tmp_path, stream=Stream(poison=(4,))).train()
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"not JSON: {name}"))


class Statistics(Evaluator):
    """The running statistics that this process evaluates with."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        self.seen.append(torch.cat([buffer.float().reshape(-1) for buffer in model.buffers()]))
        yield "n", 1


def statistics(folder: str, ema: dict[str, Any] | None) -> list[torch.Tensor]:
    watch = Statistics()
    make_run(Path(folder), 4, evaluators={"watch": (watch, Duration("2 steps"))}, ema=ema).train()
    return watch.seen


@pytest.mark.parametrize("ema", [None, {"decay": 0.9}])
def test_all_processes_evaluate_one_model(two_processes: Processes, tmp_path: Path, ema: dict[str, Any] | None) -> None:
    """Batch normalisation that is not synchronised follows each process' own samples."""
    first, second = two_processes.run(statistics, [(str(tmp_path), ema)] * 2)
    assert len(first) == 2
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert first[0].abs().sum() > 0


class Failing(Evaluator):
    """Fails in its evaluations of these numbers."""

    def __init__(self, *numbers: int) -> None:
        self.numbers, self.count = numbers, 0

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        self.count += 1
        yield "score", self.count
        if self.count in self.numbers:
            raise DataError("no sample has 'a'")


def test_an_evaluator_that_fails_costs_no_other_its_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluators = {"failing": (Failing(1, 3), Duration("4 steps")), "far": (Distance(), Duration("4 steps"))}
    run = make_run(tmp_path, evaluators=evaluators)
    scores = run.train()
    assert scores["failing/error"] == "no sample has 'a'"
    assert "failing/score" not in scores, "an older score would pass for one of this step"
    assert isinstance(scores["far/distance"], float)
    assert {name: type(error) for name, error in run.state.failures.items()} == {"failing": DataError}
    records = [r for r in JsonLines(tmp_path / "metrics.jsonl").read() if any(k.startswith("failing/") for k in r)]
    assert records == [
        {"step": 4, "failing/error": "no sample has 'a'"},
        {"step": 8, "failing/score": 2},
        {"step": 10, "failing/error": "no sample has 'a'"},
    ]
    assert "step  4/10 | evaluators.failing failed: no sample has 'a'" in capsys.readouterr().err
    again = make_run(tmp_path, evaluators={"failing": (Failing(), Duration("4 steps"))})
    assert again.train()["failing/score"] == 1, "what failed is tried again by the command that goes on"
    assert not again.state.failures


def test_a_watched_evaluator_that_fails_ends_the_run(tmp_path: Path) -> None:
    watched = {**BEST, "best": {"metric": "failing/score"}}
    run = make_run(tmp_path, save=watched, evaluators={"failing": (Failing(3), Duration("2 steps"))})
    with pytest.raises(
        DataError, match=r"no sample has 'a'\n  save.best.metric: 'failing/score' has no value at step 6"
    ):
        run.train()
    assert "06" in names(tmp_path), "the step is saved"
    assert resolve(tmp_path).name == "step_00000004", "the best of those that have a score"
    again = make_run(tmp_path, save=watched, evaluators={"failing": (Failing(3), Duration("2 steps"))})
    assert again.train()["failing/error"].startswith("no sample has 'a'"), "at its end a run is complete without"
    assert (again.state.step, again.state.best and again.state.best.step) == (10, 4), (
        "the best stays that of the scores there are"
    )
