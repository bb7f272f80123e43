"""The list of faults of a run on shards with real damage: each fault once, in order, from all processes, after a resume too."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from mmssl.data.modalities.label import LabelConfig
from mmssl.data.shards.index import ShardIndex
from mmssl.data.stream.batches import TrainStream
from mmssl.recipe.shipped import find_recipe
from mmssl.training.runtime.jsonl import JsonLines
from tests.data.make import pairs, write
from tests.distributed.processes import Processes
from tests.pipelines.conftest import RECIPE

BROKEN = {3: "undecodable", 10: "missing", 17: "undecodable"}
G, STEPS, CUT = 16, 6, 5  # four epochs; saved every 3 steps


class CutError(Exception):
    """The power is gone."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    records = pairs(0, 24)
    records[3]["jpg"] = b"nonsense"
    del records[10]["txt"]
    records[17]["jpg"] = records[17]["jpg"][:100]
    write(folder / "0.tar", records[:9])
    write(folder / "1.tar", records[9:])
    return folder


def recipe(folder: Path, shards: Path, name: str) -> str:
    data = {"shards": [str(shards)], "workers": 0, "on_error": "substitute"}
    values = RECIPE | {"name": name, "output": str(folder), "data": data, "log": {"every": "1 steps", "trackers": []}}
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(values))
    return str(path)


def train(path: str, cut: int | None) -> str:
    """Run a recipe in this process, until the batch of step `cut`; what it said."""
    wanted = find_recipe(path)
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        following = TrainStream.__next__

        def guarded(stream: TrainStream) -> Any:
            if stream.step == cut:
                raise CutError
            return following(stream)

        patch.setattr(TrainStream, "__next__", guarded)
        launch = wanted.training.launch()
        with contextlib.suppress(CutError):
            wanted.build(launch).train("auto")
        launch.close()
    return said.getvalue()


def ledger(folder: Path, name: str, world: int) -> list[dict[str, Any]]:
    """Its lines, with the row of the global batch for that of a process."""
    lines = JsonLines(folder / name / "faults.jsonl").read()
    assert all(0 <= line["row"] < G // world for line in lines)
    return [line | {"rank": 0, "row": line["rank"] * G // world + line["row"]} for line in lines]


def test_every_fault_of_all_processes_once_and_in_order(two_processes: Processes, shards: Path, tmp_path: Path) -> None:
    said = train(recipe(tmp_path, shards, "one"), None)
    alone = ledger(tmp_path, "one", 1)
    index = ShardIndex.open([shards], source="train")
    plan = TrainStream(index, {"label": LabelConfig().build("label")}, {"label": {"value": 1}}, batch_size=G, seed=0)
    meant = [
        (step + 1, row, number)
        for step in range(STEPS)
        for row, (_, number) in enumerate(plan.tickets(step))
        if number in BROKEN
    ]
    first = {(line["step"], line["row"]): line for line in reversed(alone)}  # a substitute may be broken, too
    assert sorted(first) == [(step, row) for step, row, _ in meant]
    assert [(first[step, row]["key"], first[step, row]["reason"]) for step, row, _ in meant] == [
        (f"{number:04d}", BROKEN[number]) for *_, number in meant
    ]
    assert all(line["substitute"] and line["shard"].endswith(".tar") and line["offset"] >= 0 for line in alone)
    assert alone == sorted(alone, key=lambda line: (line["step"], line["row"]))

    path = recipe(tmp_path, shards, "two")
    main, other = two_processes.run(train, [(path, None)] * 2)
    assert ledger(tmp_path, "two", 2) == alone
    for told in (said, main):
        assert "skipped samples" in told
        for reason in ("undecodable", "missing"):
            count = sum(line["reason"] == reason for line in alone)
            assert f"{reason} {count} " in " ".join(told.replace("│", " ").split()), told
    assert "skipped samples" not in other  # the table is one process' work


@pytest.mark.parametrize("worlds", [(2, 2), (2, 1), (1, 2)])
def test_a_resume_writes_no_fault_twice(
    two_processes: Processes, shards: Path, tmp_path: Path, worlds: tuple[int, int]
) -> None:
    train(recipe(tmp_path, shards, "whole"), None)
    whole = ledger(tmp_path, "whole", 1)
    path = recipe(tmp_path, shards, "cut")
    run = {1: lambda cut: train(path, cut), 2: lambda cut: two_processes.run(train, [(path, cut)] * 2)}
    run[worlds[0]](CUT)
    before = JsonLines(tmp_path / "cut" / "faults.jsonl").read()
    assert max(line["step"] for line in before) > 3  # it had written faults of steps that are to come again
    run[worlds[1]](None)
    lines = JsonLines(tmp_path / "cut" / "faults.jsonl").read()
    joined = [line | {"rank": 0, "row": line["rank"] * G // worlds[line["step"] > 3] + line["row"]} for line in lines]
    assert joined == whole
