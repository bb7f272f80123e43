"""`mmssl runs` and `--sweep`: the table of runs, and the runs of a sweep in their order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmssl.core.errors import NumericError, RecipeError
from mmssl.recipe.recipe import Recipe
from mmssl.reporting.runs import read_run, recipe_differences, run_folders, runs_table
from pipelines import cli, pretrain
from pipelines.command import guarded

SHIPPED = "quickstart/image_text"


def write_run(folder: Path, recipe: str, *lines: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """One finished, one that goes on, one that has not logged."""
    done = [{"step": 5, "progress": 0.5, "loss": 2.0}, {"step": 10, "progress": 1.0, "loss": 1.25}]
    scores = [{"step": 5, "zero_shot/acc1": 0.25, "zero_shot/acc5": 0.9}, {"step": 10, "zero_shot/acc1": 0.5}]
    write_run(tmp_path / "a", "name: a\noptimizer: {lr: 0.1, kind: sgd}\n", done[0], scores[0], done[1], scores[1])
    write_run(tmp_path / "b", "name: b\noptimizer: {lr: 0.2, kind: sgd}\nema: {decay: 0.9}\n", done[0])
    (tmp_path / "b/.lock").touch()
    write_run(tmp_path / "c", "name: c\noptimizer: {lr: 0.2, kind: sgd}\n")
    (tmp_path / "no run").mkdir()
    return tmp_path


def test_a_table_of_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(cli.full(), ["runs", str(runs)]) == 0
    lines = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["run", "state", "step", "loss", "zero_shot/acc1", "differs in"]
    assert lines[2] == ["a", "finished", "10", "1.25", "0.5", "optimizer.lr=0.1"]
    assert lines[3] == ["b", "running", "5", "2", "–", "optimizer.lr=0.2, ema.decay=0.9"]
    assert lines[4] == ["c", "not begun", "–", "–", "–", "optimizer.lr=0.2"]
    assert len(lines) == 5


def test_figures_may_be_chosen_and_folders_named(runs: Path) -> None:
    rows = [read_run(folder) for folder in run_folders([runs / "a", runs / "c"])]
    assert "zero_shot/acc5" in runs_table(rows, ["zero_shot/acc5"])
    assert recipe_differences([rows[0]]) == [{}]
    (runs / "file").touch()
    for name, got in {"no run": "holds no run folder", "file": "is a file", "nowhere": "does not exist"}.items():
        with pytest.raises(RecipeError, match=rf"{name}', which {got}; wanted a folder with recipe.yaml"):
            run_folders([runs / "a", runs / name])


def test_counts_and_long_lists_of_keys_are_not_shown(tmp_path: Path) -> None:
    scores = {"step": 1, "retrieval/n": 60, "retrieval/R@1": 0.25, "retrieval/R@1_ci95_low": 0.2}
    keys = ", ".join(f"k{i}: {i}" for i in range(12))
    a = write_run(tmp_path / "a", f"name: a\nencoder: {{{keys}}}\n", scores)
    b = write_run(tmp_path / "b", "name: b\n")
    table = runs_table([read_run(a), read_run(b)])
    assert "| retrieval/R@1 |" in table
    assert "retrieval/n" not in table
    assert "encoder.k7=7, 4 more (mmssl recipes diff A B) |" in table
    assert "k8" not in table


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that were trained; that of temperature 0.2 ends by a number that is not finite."""
    names: list[str] = []
    monkeypatch.chdir(tmp_path)

    def run(recipe: Recipe, resume: str = "auto") -> None:
        names.append(recipe.name)
        write_run(recipe.folder, recipe.to_yaml(), {"step": 1, "progress": 1.0, "loss": recipe.seed})
        if "0.2" in recipe.name:
            raise NumericError("loss was not finite")

    monkeypatch.setattr(pretrain, "train_recipe", run)
    return names


def test_a_sweep_trains_one_run_after_the_other_and_shows_them(
    trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ("--sweep", "objective.temperature=0.05,0.2", "--seeds", "2")
    assert guarded(cli.full(), ["pretrain", SHIPPED, "name=x", *sweep]) == 5
    assert trained == [f"x.temperature-{value}.seed-{seed}" for value in (0.05, 0.2) for seed in (0, 1)]
    out, said = capsys.readouterr()
    assert "objective.temperature=0.05" in out
    assert "seed=1" in out
    assert "run 4 of 4" in said


def test_one_element_of_an_array_job(trained: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["pretrain", SHIPPED, "--sweep", "objective.temperature=0.05,0.1", "--element"]
    assert guarded(cli.full(), [*command, "1"]) == 0
    assert trained == ["quickstart_image_text.temperature-0.1"]
    assert guarded(cli.full(), [*command, "2"]) == 2
    assert "--element: got 2, and the sweep has 2 runs, from 0 to 1" in " ".join(capsys.readouterr().err.split())
    assert guarded(cli.full(), ["pretrain", SHIPPED, "--element", "0"]) == 2


def test_a_mistake_in_any_run_shows_before_the_first(trained: list[str]) -> None:
    assert guarded(cli.full(), ["pretrain", SHIPPED, "--sweep", "objective.temperature=0.05,7"]) == 2
    assert trained == []
