"""A profiled run: the trace and the table of its steps; its numbers stay."""

from __future__ import annotations

import json
from pathlib import Path

from tests.training.toys import assert_equal, make_run, tensors


def test_chosen_steps_are_profiled_and_the_run_stays_the_same(tmp_path: Path) -> None:
    plain, seen = make_run(tmp_path / "plain", 6), make_run(tmp_path / "seen", 6, profile={"start": 2, "steps": 2})
    for run in (plain, seen):
        run.train()
    assert_equal(tensors(seen), tensors(plain))
    trace = json.loads((tmp_path / "seen/profile/trace_0.json").read_text())
    steps = {event["name"] for event in trace["traceEvents"] if str(event.get("name")).startswith("ProfilerStep#")}
    assert steps == {"ProfilerStep#2", "ProfilerStep#3"}
    table = (tmp_path / "seen/profile/kernels_0.txt").read_text()
    assert "aten::addmm" in table
    assert not (tmp_path / "plain/profile").exists()
