"""Every tool answers --help, and the benchmarks run on sizes that take a second: their figures mean nothing then."""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bench_cached
import bench_loader
import bench_loss
import bench_train
import compare_flips
import open_clip
import peer_env
import pytest
import recorded
import run

from mmssl.recipe.recipe import Recipe
from mmssl.recipe.shipped import find_recipe
from pipelines import cli
from pipelines.command import guarded
from pipelines.quickstart import CLIPS
from tests.tools.conftest import RunTool

TOOLS = Path(__file__).resolve().parents[2] / "tools"
NAMES = sorted(path.stem for path in TOOLS.glob("*.py"))
PROGRAMS = [name for name in NAMES if "__main__" in (TOOLS / f"{name}.py").read_text()]
FEW = ("--threads", 1, "--repeats", 1)
SMALL: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def test_there_are_tools() -> None:
    assert set(NAMES) - set(PROGRAMS) == {
        "captions",
        "device_views",
        "learning_data",
        "learning_rows",
        "learning_rows_clips",
        "learning_rows_pairs",
        "learning_rows_series",
        "learning_rows_speech",
        "learning_rows_text",
        "learning_runs",
        "recorded",
    }
    assert len(PROGRAMS) >= 10


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in ("peer_env", "run")])
def test_help(run_tool: RunTool, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_tool(name, "--help")
    assert caught.value.code == 0
    assert "--json" in capsys.readouterr().out or name == "pack_spoken_digits"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[str]:
    """A model that open_clip knows by name while a test runs."""
    path = tmp_path / "small.json"
    path.write_text(json.dumps(SMALL))
    open_clip.add_model_config(path)
    yield "small"
    path.unlink()
    open_clip.factory._MODEL_CONFIG_PATHS.remove(path)
    open_clip.factory._rescan_model_configs()


def read(path: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(path.read_text())
    return figures


def test_steps_beside_the_peers(run_tool: RunTool, small: str, tmp_path: Path) -> None:
    run_tool("bench_step", "--model", small, "--batch", 4, *FEW, "--json", tmp_path / "step.json")
    figures = read(tmp_path / "step.json")
    assert [row["precision"] for row in figures["rows"]] == ["fp32", "bf16"]
    assert figures["ratio"] == pytest.approx(figures["peer"] / figures["ours"])
    assert figures["rows"][0]["difference"] < 1e-5, "both steps compute the same loss"


def test_what_the_second_objective_of_a_sum_costs(run_tool: RunTool, tmp_path: Path) -> None:
    small = [f"encoders.{name}.{key}=16" for name in ("image", "text") for key in ("width", "heads")]
    small += [f"encoders.{name}.depth=1" for name in ("image", "text")]
    small += ["objective.objectives.simclr.objective.head.hidden=8"]
    recipes = ("image_text/slip_vit_b_16", "image_text/slip_shared_vit_b_16")
    run_tool("bench_sums", *recipes, "--batch", 4, *FEW, "--json", tmp_path / "sums.json", "--set", *small)
    figures = read(tmp_path / "sums.json")
    assert [row["recipe"] for row in figures["rows"]] == [*recipes]
    assert figures["first"] == "clip"
    assert figures["cost"] == pytest.approx(figures["ours"] / figures["peer"]) == pytest.approx(1 / figures["ratio"])


def test_classifiers_beside_the_peers(run_tool: RunTool, small: str, tmp_path: Path) -> None:
    run_tool("bench_zero_shot", "--model", small, "--classes", 2, *FEW, "--json", tmp_path / "zero.json")
    figures = read(tmp_path / "zero.json")
    assert figures["prompts"] == 2 * len(open_clip.OPENAI_IMAGENET_TEMPLATES)
    assert figures["difference"] < 1e-5


def test_bench_probe_and_retrieval(run_tool: RunTool, tmp_path: Path) -> None:
    sizes = ("--samples", 300, "--width", 8, "--classes", 3, "--penalties", 2)
    run_tool("bench_probe", *sizes, "--json", tmp_path / "probe.json")
    figures = json.loads((tmp_path / "probe.json").read_text())
    assert figures["ratio"] == figures["peer"] / figures["ours"]
    assert figures["objective_excess"] < 1e-4
    run_tool(
        "bench_retrieval", "--images", 30, "--width", 8, *FEW, "--peers", "dense", "--json", tmp_path / "found.json"
    )
    assert json.loads((tmp_path / "found.json").read_text())["difference"] == 0


def test_losses_beside_the_peers(run_tool: RunTool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_loss, "memory", lambda *given: max(1, bench_loss.memory_here(*given)))
    given = ("--batches", 8, 16, "--peer-up-to", 8, *FEW)
    run_tool("bench_loss", *given, "--json", tmp_path / "loss.json")
    figures = read(tmp_path / "loss.json")
    assert figures["name"] == "info_nce at 8", "the headline is the largest batch that both ran"
    assert [(row["loss"], row["batch"]) for row in figures["rows"]] == [
        (loss, batch) for loss in bench_loss.LOSSES for batch in (8, 16)
    ]


def test_cached_steps_beside_plain_ones(run_tool: RunTool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def here(kind: str, pairs: int, arguments: argparse.Namespace) -> dict[str, Any]:
        return {**bench_cached.measure(kind, pairs, arguments.micro_batch, arguments.threads), "mebibytes": 1.0}

    monkeypatch.setattr(bench_cached, "in_a_process", here)
    given = ("--pairs", 8, "--micro-batch", 4, "--threads", 1)
    assert run_tool("bench_cached", *given, "--json", tmp_path / "cached.json") == 0
    (row,) = read(tmp_path / "cached.json")["rows"]
    assert row["difference"] < 1e-4, "both steps have the same loss and gradients"


def test_our_side_of_the_loaders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_loader, "SIZE", 32)
    shards = bench_loader.make_shards(tmp_path, 8, 2)
    batches = bench_loader.our_batches([str(path) for path in shards], 4, 0)
    assert next(batches)["image"]["crop0"].shape == (4, 3, 32, 32)
    clock = bench_loader.CpuClock()
    rounds = [bench_loader.one_round(batches, clock, 1, 0) for _ in range(2)]
    batches.close()
    figures = bench_loader.summary({"ours": rounds, "peer": rounds}, 4)
    assert figures["cpu"]["ratio"] == figures["wall"]["ratio"] == 1
    assert bench_loader.decode_rate(shards) > 0


def test_our_side_of_a_training_run(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The recipe runs, and says a line at every step that the tool finds."""
    monkeypatch.setattr(bench_train, "WARMUP", 1)
    bench_train.make_shards(tmp_path / "shards", 8)
    bench_train.make_weights(small, tmp_path / "weights.pt", 0)
    setting = argparse.Namespace(model=small, samples=8, batch=4, workers=0, precision="fp32")
    assert guarded(cli.full(), ["pretrain", str(bench_train.write_recipe(setting, tmp_path, 0))]) == 0
    assert len(bench_train.STEPS["ours"].findall(capfd.readouterr().err)) == 2
    compared = bench_train.compare({"ours": [[3.0, 2.0], [3.0, 4.0]], "peer": [[1.0, 1.0], [1.0, 3.0]]})
    assert (compared["apart"], compared["agree"]) == (1, True)
    assert not bench_train.compare({"ours": [[9.0], [9.1]], "peer": [[1.0], [1.1]]})["agree"]


def test_open_clip_on_the_batches_of_our_run_has_its_losses(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Step for step, in float32, with the same weights, schedule and decay."""
    monkeypatch.setattr(bench_train, "WARMUP", 2)
    monkeypatch.setattr(bench_train, "RATE", 1e-2)  # so that a wrong step shows
    bench_train.make_shards(tmp_path / "shards", 24)
    bench_train.make_weights(small, tmp_path / "weights.pt", 0)
    setting = argparse.Namespace(model=small, samples=24, batch=4, workers=0, precision="fp32")
    recipe = bench_train.write_recipe(setting, tmp_path, 0)
    assert guarded(cli.full(), ["pretrain", str(recipe)]) == 0
    ours = [float(loss) for loss in bench_train.STEPS["ours"].findall(capfd.readouterr().err)]
    rates = {"rate": 1e-2, "decay": bench_train.DECAY, "warmup": 2, "precision": "fp32"}
    batches = list(recorded.recorded_batches(recipe, 6))
    peer = recorded.peer_losses(small, tmp_path / "weights.pt", batches, 6, rates)
    assert ours == pytest.approx(peer, abs=2e-3)
    wrong = recorded.peer_losses(small, tmp_path / "weights.pt", batches, 6, rates | {"rate": 2e-2})
    assert ours != pytest.approx(wrong, abs=2e-3)
    found = recorded.compare_recorded([[1.0, 2.0]], [[1.0, 2.5]])
    assert (found["largest"], found["mean"], found["apart"]) == (0.5, 0.25, -0.5)


def test_every_shard_of_a_training_benchmark_has_all_captions_alike() -> None:
    """Else a side whose batches come from one shard has a higher floor."""
    kinds = bench_train.caption_numbers(1280)
    shards = [kinds[number :: bench_train.SHARDS] for number in range(bench_train.SHARDS)]
    assert all(len(set(shard)) >= 30 for shard in shards)
    floors = [bench_train.floor_loss(shard, 32, 500) for shard in shards]
    assert max(floors) - min(floors) < 0.05
    assert bench_train.floor_loss(kinds, 32, 500) == pytest.approx(0.55, abs=0.04)
    assert bench_train.floor_loss([0] * 8, 4, 1) == pytest.approx(math.log(4))


def test_flips_are_compared(
    run_tool: RunTool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def small(name: str, changes: list[str]) -> Recipe:
        return find_recipe(name, [*changes, "batch_size=8", "data.workers=0"])

    monkeypatch.setattr(compare_flips, "CLIPS", {**CLIPS, "train": 8, "validation": 0, "test": 8})
    monkeypatch.setattr(compare_flips, "find_recipe", small)
    given = ("--arms", "one_sided", "--epochs", 1, "--out", tmp_path)
    run_tool("compare_flips", *given, "--json", tmp_path / "flips.json")
    scores = read(tmp_path / "flips.json")["one_sided"]
    assert set(compare_flips.SCORES) <= scores.keys()
    assert "one_sided" in capsys.readouterr().out


@pytest.mark.parametrize("tool", [run, peer_env])
def test_environments_explain_themselves(tool: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--help"]) == 0
    assert "python3 tools/" in capsys.readouterr().out


def test_the_environment_is_made_again_when_what_it_is_made_from_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []

    def install(wanted: str) -> None:
        made.append(wanted)
        run.STAMP.write_text(wanted)

    (tmp_path / "pyproject.toml").write_text("[project]")
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("torch==2.14.1")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "BIN", tmp_path)
    monkeypatch.setattr(run, "STAMP", tmp_path / "stamp")
    monkeypatch.setattr(run, "CONSTRAINTS", constraints)
    monkeypatch.setattr(run, "install", install)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("VIRTUAL_ENV", "")
    for _ in range(2):
        assert run.main(["no-such-command"]) == 127
    assert len(made) == 1
    constraints.write_text("torch==2.11.0")
    assert run.main(["no-such-command"]) == 127
    assert len(set(made)) == 2
    assert "no command 'no-such-command' in" in capsys.readouterr().err

    def fail(wanted: str) -> None:
        raise subprocess.CalledProcessError(1, ["pip", "install"])

    constraints.write_text("")
    monkeypatch.setattr(run, "install", fail)
    assert run.main(["no-such-command"]) == 1
    assert "setting up failed: pip install ended with 1; nothing was run" in capsys.readouterr().err


def test_an_environment_of_peers_shares_the_packages_of_the_projects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tool that runs in one and asks for it must not set it up anew under its own feet."""
    folder = tmp_path / ".peers"
    folder.mkdir()
    (folder / peer_env.SHARED).write_text("/project/bin/python")
    made = peer_env.Environment(folder, tmp_path / "pins.txt")
    monkeypatch.setattr(peer_env, "ENVIRONMENTS", {"open_clip": made})
    assert peer_env.project_python() == Path(sys.executable)
    monkeypatch.setattr(sys, "prefix", str(folder))
    assert peer_env.project_python() == Path("/project/bin/python")


def test_a_link_in_place_of_the_environment_is_replaced_and_its_target_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv, elsewhere = tmp_path / ".venv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    venv.symlink_to(elsewhere)

    def made(command: list[str], check: bool) -> None:
        venv.mkdir(exist_ok=True)

    monkeypatch.setattr(run, "VENV", venv)
    monkeypatch.setattr(run, "STAMP", venv / "stamp")
    monkeypatch.setattr(run.subprocess, "run", made)
    run.install("wanted")
    assert not venv.is_symlink()
    assert (venv / "stamp").read_text() == "wanted"
    assert [path.name for path in elsewhere.iterdir()] == ["kept"]


def test_the_peers_environment_that_cannot_be_made_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[peer_env.Environment] = []

    def fail(environment: peer_env.Environment) -> Path:
        asked.append(environment)
        raise peer_env.SetupError("pip ended with 1")

    monkeypatch.setattr(peer_env, "ensure", fail)
    assert peer_env.main(["python"]) == peer_env.main(["--env", "loaders", "python"]) == 1
    assert re.match(r"peer_env: pip ended with 1; nothing was run", capsys.readouterr().err)
    assert asked == [peer_env.ENVIRONMENTS["open_clip"], peer_env.ENVIRONMENTS["loaders"]]
    assert all(environment.constraints.is_file() for environment in asked)
    assert peer_env.main(["--env", "others", "python"]) == 2
    assert "got --env 'others', wanted one of open_clip, loaders" in capsys.readouterr().err
