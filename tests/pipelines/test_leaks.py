"""`mmssl shards check TRAIN --against TEST --run RUN`: what a run takes for alike stands in the report, and is no proof alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipelines.conftest import World


def test_a_run_compares_by_its_features(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = world.shards / "train", world.shards / "test"
    out = tmp_path / "leaks.json"
    code = world.mmssl("shards", "check", train, "--against", test, "--run", world.run, "--cosine", "-1", "--json", out)
    found = json.loads(out.read_text())
    assert code == (0 if found["counts"]["equal"] + found["counts"]["alike"] == 0 else 3)
    near = [leak for leak in found["leaks"] if leak["kind"] == "near"]
    assert len(near) == 32, "every test sample has a nearest one, and all cosines count"
    assert {leak["field"] for leak in near} == {"image"}
    assert found["notes"][0].startswith("image: near is a cosine from -1; 99 % of the test samples lie below ")
    assert "have features of a model that lie near" in capsys.readouterr().out


def test_a_run_alone_is_refused(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.mmssl("shards", "check", world.shards / "train", "--run", world.run) == 2
    assert "--run has no effect without --against" in capsys.readouterr().err.replace("\n", " ")
