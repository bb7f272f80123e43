"""`mmssl evaluate`: options reach every evaluator or are refused, and one evaluator that fails costs no other's scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmssl.data.shards.writer import write_shard
from mmssl.evaluation import collect
from tests.pipelines.conftest import World


def suite(path: Path, **evaluators: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"evaluators": evaluators}))
    return path


def retrieval(shards: Path, **more: Any) -> dict[str, Any]:
    return {"kind": "retrieval", "shards": [str(shards)], "pair": ["image", "text"], **more}


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Batch size and workers of every evaluation stream that is opened."""
    seen: list[tuple[int, int]] = []
    real = collect.EvalStream

    def noted(index: Any, modalities: Any, needs: Any, batch_size: int, workers: int, **options: Any) -> Any:
        seen.append((batch_size, workers))
        return real(index, modalities, needs, batch_size, 0, **options)

    monkeypatch.setattr(collect, "EvalStream", noted)
    return seen


def test_sizes_reach_all_evaluators(world: World, tmp_path: Path, streams: list[tuple[int, int]]) -> None:
    listed = suite(tmp_path / "suite.yaml", mine=retrieval(world.shards / "test", batch_size=5))
    flags = ["--retrieval", world.shards / "test"]
    sizes = ["--batch-size", "7", "--workers", "3"]
    assert world.mmssl("evaluate", world.run, listed, *flags, *sizes) == 0
    assert world.mmssl("evaluate", world.run, *sizes) == 0, "the recipe's own"
    assert streams == [(7, 3)] * 3
    assert world.mmssl("evaluate", world.run, listed, *flags) == 0
    assert streams[3:] == [(5, 0), (256, 0)], "where the flags say nothing, the configs do"


@pytest.mark.parametrize(
    ("flags", "partner"),
    [
        (["--classnames", "a,b"], "--zero-shot or --relations"),
        (["--templates", "plain"], "--zero-shot or --relations"),
        (["--pair", "image,text"], "--retrieval or --calibrate"),
        (["--modality", "image"], "--zero-shot or --linear-probe"),
    ],
)
def test_options_without_their_partner_are_refused(
    world: World, capfd: pytest.CaptureFixture[str], flags: list[str], partner: str
) -> None:
    assert world.mmssl("evaluate", world.run, *flags) == 2
    said = " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert f"{flags[0]} has no effect without {partner}: add" in said


def test_options_of_trained_models_are_refused_for_recipes(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    for flags in (["--which", "last"], ["--no-ema"]):
        assert world.mmssl("evaluate", world.recipe, *flags) == 2
        assert "has no effect without a run" in " ".join(capfd.readouterr().err.replace("│", " ").split())


def test_two_evaluators_of_one_name_are_refused(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    listed = suite(tmp_path / "suite.yaml", retrieval=retrieval(world.shards / "test"))
    assert world.mmssl("evaluate", world.run, listed, "--retrieval", world.shards / "test") == 2
    assert "--retrieval makes another" in " ".join(capfd.readouterr().err.replace("│", " ").split())


def three(world: World, folder: Path) -> Path:
    """Two evaluators that cannot be computed, and one that can between them."""
    return suite(
        folder / "suite.yaml",
        lost=retrieval(folder / "nowhere"),
        fine=retrieval(world.shards / "test"),
        strange={**retrieval(world.shards / "test"), "pair": ["image", "sound"]},
    )


def test_unusual_settings_stand_beside_the_scores(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changed = {"lengths": {"text": 0.5}, "precision": "bf16", "max_samples": 24}
    shards = world.shards / "test"
    listed = suite(tmp_path / "suite.yaml", short={**retrieval(shards), **changed}, usual=retrieval(shards))
    assert world.mmssl("evaluate", world.run, listed, "--out", tmp_path / "all.json") == 0
    found = json.loads((tmp_path / "all.json").read_text())
    assert changed.items() <= found["short"].items()
    assert not changed.keys() & found["usual"].keys()
    assert "short ... (1 of 2; lengths: {'text': 0.5}; precision: bf16; max_samples: 24)" in capfd.readouterr().err
    (tmp_path / "folder").mkdir()
    assert world.mmssl("evaluate", world.run, listed, "--out", tmp_path / "folder") == 0
    precision = [
        json.loads((tmp_path / "folder" / f"{name}.json").read_text())["precision"] for name in ("short", "usual")
    ]
    assert precision == ["bf16", "float32"]


def test_a_failure_is_its_own_row(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results.json"
    listed = three(world, tmp_path)
    assert world.mmssl("evaluate", world.run, listed, "--out", out) == 3, "the exit code of the first that failed"
    said = capfd.readouterr().err
    results = json.loads(out.read_text())
    assert list(results) == ["checkpoint", "lost", "fine", "strange", "records"]
    assert list(results["records"]) == ["fine"]
    assert results["fine"]["n"] == 32
    assert "nowhere" in results["lost"]["error"]
    assert "'sound'" in results["strange"]["error"]
    assert results["lost"].keys() == results["strange"].keys() == {"error"}
    for word in ("nowhere", "'sound'"):
        assert said.index(word) < said.index("fine ..."), "what cannot be built or opened is said before the work"
    assert "2 evaluators failed; the scores of the others are complete" in said
    assert "evaluators.lost: " in said
    assert "Traceback" not in said
    lost = suite(tmp_path / "lost.yaml", lost=retrieval(tmp_path / "nowhere"), fine=retrieval(world.shards / "test"))
    assert world.mmssl("evaluate", world.run, lost, "--out", out) == 3
    assert json.loads(out.read_text())["fine"] == results["fine"]


def test_a_run_is_reported_without_the_evaluator_that_failed(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damaged = [{"__key__": f"{i}", "jpg": b"no picture", "txt": b"a caption"} for i in range(2)]
    write_shard(tmp_path, "damaged.tar", 0, 2, damaged)
    lost = json.dumps(retrieval(tmp_path / "damaged.tar"))
    fine = json.dumps(retrieval(world.shards / "test", max_samples=20))
    more = (f"output={tmp_path}", "duration=2 steps", "save.every=2 steps")
    assert world.pretrain(f"evaluators={{lost: {lost}, fine: {fine}}}", *more) == 3
    said = capfd.readouterr().err
    assert said.index("finished; report in") < said.index("1 evaluator failed; the scores of the others are complete")
    report = (tmp_path / "tiny/report.html").read_text()
    assert "damaged.tar" in report
    assert "image to text" in report, "the gallery is that of the one that did not fail"
