"""tools/bench_gpu.py: says when there is no GPU; every path of it runs on toy sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_gpu
import bench_loader
import gpu_steps as gpu
import open_clip.loss
import pytest
import torch

from tests.tools.conftest import RunTool

ROOT = Path(__file__).resolve().parents[2]
Bench = Callable[..., dict[str, Any]]


def program(*arguments: object, path: object = "") -> subprocess.CompletedProcess[str]:
    """The tool as people start it; `path` holds modules that shadow others."""
    command = [sys.executable, "tools/bench_gpu.py", *map(str, arguments)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(path)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_it_needs_a_gpu_and_says_so() -> None:
    done = program()
    assert done.returncode == 3
    assert done.stderr == "bench_gpu needs a CUDA device, and torch sees none here: nothing was measured\n"


def test_a_section_whose_packages_are_missing_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "simplejpeg.py").write_text("raise ModuleNotFoundError(\"No module named 'simplejpeg'\")\n")
    options = ("--sections", "input", "loss", "--json", tmp_path / "gpu.json")
    done = program("--device", "cpu", "--tiny", *options, path=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert figures["left_out"] == {"input": "No module named 'simplejpeg'"}
    assert len(figures["rows"]["loss"]) == 2


@pytest.fixture
def bench(run_tool: RunTool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Runs the tool on toy sizes in this process, with options; returns its figures and leaves gpu.json and gpu.md."""

    def run(*options: str) -> dict[str, Any]:
        monkeypatch.setattr(bench_gpu, "STARTED", time.monotonic())
        monkeypatch.setattr(bench_loader, "SIZE", bench_loader.SIZE)  # toy sizes change it
        figures = tmp_path / "gpu.json"
        given = ("--device", "cpu", "--tiny", "--json", figures, "--markdown", tmp_path / "gpu.md")
        assert run_tool("bench_gpu", *given, *options) == 0
        return json.loads(figures.read_text())  # type: ignore[no-any-return]

    return run


def test_every_path_runs(bench: Bench, tmp_path: Path) -> None:
    figures = bench()
    assert {"ratio", "ours", "peer", "unit", "rows"} <= figures.keys()
    assert figures["ratio"] == pytest.approx(figures["ours"] / figures["peer"])
    assert {section: len(rows) for section, rows in figures["rows"].items()} == {
        "steps": 2, "loss": 2, "largest": 1, "input": 1
    }  # fmt: skip
    assert figures["rows"]["largest"][0]["cached pairs"] == 16
    page = (tmp_path / "gpu.md").read_text()
    assert page.count("| --- |") >= 4
    assert "no measurement" in page


def test_what_was_measured_is_kept_when_time_is_up(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    figures = bench("--budget", "0")
    assert "left out: all after 0 seconds: time is up" in capsys.readouterr().out
    assert figures["left_out"] == {"all after 0 seconds": "time is up"}
    assert figures["rows"].get("largest") is None


def test_a_measurement_that_fails_costs_no_other_one(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such | kernel\nsecond line")

    monkeypatch.setattr(torch, "compile", fail)
    rows = bench("--sections", "steps", "loss")["rows"]
    eager, compiled = rows["steps"]
    assert eager["ratio"] > 0
    assert "notes" not in eager
    assert compiled["notes"] == "; ".join(
        f"{side}: RuntimeError: no such | kernel second line" for side in ("ours", "open_clip")
    )
    assert compiled["ratio"] is None
    assert [row["ratio"] > 0 for row in rows["loss"]] == [True, True]
    assert "no such \\| kernel" in (tmp_path / "gpu.md").read_text()
    assert "Traceback" in capsys.readouterr().err


def test_a_loss_without_memory_is_noted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forward(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("of 256 GiB")

    monkeypatch.setattr(open_clip.loss.ClipLoss, "forward", forward)
    rows = bench("--sections", "loss")["rows"]["loss"]
    assert [row["notes"] for row in rows] == ["open_clip: out of memory"] * 2
    assert all(row["ours ms"] > 0 for row in rows)
    assert "Traceback" not in capsys.readouterr().err


def test_texts_are_as_long_as_in_a_run() -> None:
    batch = gpu.random_batch(gpu.TINY["tiny"], 64, torch.device("cpu"))
    assert gpu.trimmed(batch)["text"]["tokens0"].shape == (64, 24)
    assert gpu.trimmed(batch)["image"] is batch["image"]


@pytest.mark.parametrize(
    ("name", "padded", "short"), [("ViT-B/32", 44.3e9, 0.66), ("ViT-B/16", 123.3e9, 0.88), ("ViT-L/14", 526e9, 0.94)]
)
def test_operations_are_those_of_the_profile(name: str, padded: float, short: float) -> None:
    """open_clip's published profile at 77 tokens; the share that is left at 13."""
    model = gpu.MODELS[name]
    full = model.operations(torch.tensor([77]))
    assert full == pytest.approx(padded, rel=0.01)
    assert model.operations(torch.tensor([13])) / full == pytest.approx(short, abs=0.01)


def test_captions_are_as_long_as_real_ones() -> None:
    batch = gpu.random_batch(gpu.TINY["tiny"], 512, torch.device("cpu"))
    lengths = gpu.caption_lengths(batch)
    assert float(lengths.float().mean()) == pytest.approx(12.9, abs=0.3)
    ends = batch["text"]["tokens0"][torch.arange(512), lengths - 1]
    assert set(ends.tolist()) == {gpu.WORDS - 1}
