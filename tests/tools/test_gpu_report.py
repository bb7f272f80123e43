"""tools/gpu_report.py: every path runs on toy sizes; a section that hangs, fails or dies costs itself alone; a cut run goes on."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_report
import pytest
import torch
from gpu_sections import models
from gpu_sections.bench import Bench, Figures, Rows

from tests.tools.conftest import RunTool
from tests.tools.test_reproductions import pictures as pictures

Report = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def report(run_tool: RunTool, tmp_path: Path) -> Report:
    """Runs the tool on toy sizes with options; returns the rows of its file."""

    def run(*options: object) -> list[dict[str, Any]]:
        assert run_tool("gpu_report", "--device", "cpu", "--tiny", "--json", tmp_path / "gpu.jsonl", *options) == 0
        return [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]

    return run


def only(monkeypatch: pytest.MonkeyPatch, *rows: tuple[str, Callable[[], Figures]]) -> None:
    """Make the section `card` of these rows."""

    def made(bench: Bench) -> Rows:
        yield from rows

    monkeypatch.setattr("gpu_sections.card.rows", made)


def hang() -> Figures:
    time.sleep(60)
    raise AssertionError("the cap ends it")


def die() -> Figures:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def fail() -> Figures:
    raise torch.OutOfMemoryError("of 256 | GiB\nsecond line")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_it_needs_a_gpu_and_says_so(run_tool: RunTool, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("gpu_report") == 3
    assert capsys.readouterr().err == "gpu_report needs a CUDA device, and torch sees none here: nothing was measured\n"


def test_figures_stand_beside_what_the_card_allows(
    report: Report, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fast: Figures = {"value": 500.0, "unit": "TFLOP/s", "roofline": 1000.0, "graphs": 4}
    slow: Figures = {"value": 20.0, "unit": "ms", "roofline": 5.0}
    only(monkeypatch, ("product", lambda: fast), ("loss", lambda: slow), ("broken", fail))
    rows = report("--sections", "card")
    assert [row["row"] for row in rows] == ["product", "loss", "broken"]
    out = capsys.readouterr().out
    assert "| card | product | 500 TFLOP/s | 1000 | 50% | graphs 4 |" in out
    assert "| card | loss | 20 ms | 5 | 25% |  |" in out
    assert "| card | broken | OutOfMemoryError: of 256 \\| GiB second line | – | – |  |" in out


@pytest.mark.parametrize(
    ("last", "cap", "why"),
    [(hang, 1.0, "ended at its cap of 1 s"), (die, 60.0, "ended with code -9")],
    ids=["hang", "death"],
)
def test_a_section_that_hangs_or_dies_keeps_its_rows_and_the_next_run_goes_on(
    report: Report, monkeypatch: pytest.MonkeyPatch, last: Callable[[], Figures], cap: float, why: str, tmp_path: Path
) -> None:
    good: Figures = {"value": 1.0, "unit": "s"}
    monkeypatch.setattr(gpu_report, "SECTIONS", {"card": gpu_report.SECTIONS["card"]._replace(cap=cap)})
    only(monkeypatch, ("first", lambda: good), ("last", last))
    rows = report("--sections", "card")
    assert [(row["row"], row.get("error")) for row in rows] == [("first", None), ("section", why)]
    with (tmp_path / "gpu.jsonl").open("a") as file:
        file.write('{"section": "card", "ro')  # a line that a crash cut
    (tmp_path / "gpu.jsonl").rename(tmp_path / "have.jsonl")
    only(monkeypatch, ("first", die), ("last", lambda: good))
    rows = report("--sections", "card", "--have", tmp_path / "have.jsonl")
    assert [(row["row"], row["value"]) for row in rows] == [("last", 1.0)]


def test_what_no_time_is_left_for_is_said(report: Report) -> None:
    (row,) = report("--sections", "steps", "--seconds", "0")
    assert (row["section"], row["row"], row["error"]) == ("steps", "section", "0 s are left, it needs 15")


def test_a_table_is_at_most_sixty_lines() -> None:
    rows = [
        {"section": "card", "row": str(number), "value": 1.0, "unit": "s", "more": "x" * 999} for number in range(99)
    ]
    table = gpu_report.table(rows)
    assert table.count("\n") == 59
    assert "more rows in the file" in table
    assert len(table) < 12_000


@pytest.mark.slow
def test_every_path_runs(report: Report, pictures: Path) -> None:
    rows = report("--data", pictures, "--seconds", "6000")
    assert {row["section"] for row in rows} == {*gpu_report.SECTIONS}
    assert not [row for row in rows if "error" in row]
    exact = [row for row in rows if row["section"] == "exact"]
    assert all(row["value"] <= row["roofline"] for row in exact if row["roofline"] is not None)
    (choice,) = (row for row in rows if row["row"] == "image")
    assert choice["math"]
    assert report("--seconds", "6000", "--data", pictures) == rows, "nothing is measured twice"


def test_a_step_of_each_side_on_toy_sizes(tmp_path: Path) -> None:
    from gpu_sections import steps

    bench = Bench(torch.device("cpu"), True, tmp_path, None, 0, 60.0)
    ((name, measure),) = steps.rows(bench)
    figures = measure()
    assert name == "tiny, eager"
    assert figures["value"] / figures["open_clip"] == pytest.approx(figures["ratio"], rel=0.05)


def test_texts_are_as_long_as_in_a_run() -> None:
    batch = models.random_batch(models.TINY["tiny"], 64, torch.device("cpu"))
    assert models.trimmed(batch)["text"]["tokens0"].shape == (64, 24)
    assert models.trimmed(batch)["image"] is batch["image"]


@pytest.mark.parametrize(
    ("name", "padded", "short"), [("ViT-B/32", 44.3e9, 0.66), ("ViT-B/16", 123.3e9, 0.88), ("ViT-L/14", 526e9, 0.94)]
)
def test_operations_are_those_of_the_profile(name: str, padded: float, short: float) -> None:
    """open_clip's published profile at 77 tokens; the share that is left at 13."""
    model = models.MODELS[name]
    full = model.operations(torch.tensor([77]))
    assert full == pytest.approx(padded, rel=0.01)
    assert model.operations(torch.tensor([13])) / full == pytest.approx(short, abs=0.01)


def test_captions_are_as_long_as_real_ones() -> None:
    batch = models.random_batch(models.TINY["tiny"], 512, torch.device("cpu"))
    lengths = models.caption_lengths(batch)
    assert float(lengths.float().mean()) == pytest.approx(12.9, abs=0.3)
    ends = batch["text"]["tokens0"][torch.arange(512), lengths - 1]
    assert set(ends.tolist()) == {models.WORDS - 1}
