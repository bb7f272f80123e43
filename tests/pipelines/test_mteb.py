"""`mmssl evaluate RUN --mteb FILE.py` on tasks of a user's own; where mteb is not installed, the extra is named."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from tests.pipelines.conftest import World

TASKS = Path(__file__).parents[1] / "evaluation" / "mteb_local_tasks.py"


@pytest.mark.skipif(importlib.util.find_spec("mteb") is not None, reason="mteb is installed")
def test_the_extra_is_named(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.mmssl("evaluate", world.run, "--mteb", "STS12") == 2
    assert "the extra `mteb`" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")  # of mteb and datasets
def test_own_tasks_are_measured_and_kept(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mteb", reason="the extra `mteb` is not installed")
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "test.npz", pictures=rng.integers(0, 255, (4, 8, 8, 3)).astype(np.uint8), classes=np.array([0, 1, 0, 1]),
        captions=np.array([[f"a thing {i}"] * 2 for i in range(4)]), names=np.array(["one", "two"]),
    )  # fmt: skip
    monkeypatch.setenv("MTEB_LOCAL_SAMPLES", str(tmp_path))
    text = TASKS.read_text()
    own = tmp_path / "tasks.py"  # without the tasks of other samples
    own.write_text(text[: text.index("class ZeroShot")] + text[text.index("class Pairs") :])
    out = tmp_path / "results"
    for _ in range(2):
        assert world.mmssl("evaluate", world.run, "--mteb", own, "--out", out) == 0
    found = json.loads((out / "mteb.json").read_text())
    assert 0 <= found["scores"]["LocalPairs"] <= 1
    assert "done before" in capsys.readouterr().err
    own.write_text("tasks = []")
    assert world.mmssl("evaluate", world.run, "--mteb", own) == 2
    assert "has no task: wanted a class derived from one of mteb's" in capsys.readouterr().err
