"""Parts of a report from the results of `mmssl evaluate --out FOLDER`: each where some task has it, and nothing invented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmssl.core.errors import DataError
from mmssl.reporting.figures import PERFECT, Chart, chart_png, chart_uri
from mmssl.reporting.measures import (
    MOST_ROWS,
    ScoreInterval,
    comparison,
    measured_elsewhere,
    read_records,
    report_parts,
)
from mmssl.reporting.report import write_report
from mmssl.reporting.run_report import write_figures
from tests.reporting.test_report import ALLOWED, HOSTILE, Page


def record(**parts: Any) -> dict[str, Any]:
    return {"task": "t", "scores": {"acc1": 0.5, "n": 10, "n_excluded": 2}, **parts}


RECORDS = {
    "card": record(
        card=[{"evaluator": "sides", "score": "acc", "value": 0.75, "ci95_low": 0.7, "ci95_high": 0.8, "n": 8}]
    ),
    "zero_shot": record(
        groups=[{"outcome": "acc1", "group": g, "n": 5, "value": v} for g, v in (("x", 0.2), ("y", 0.8))],
        corruptions=[
            {
                "corruption": kind,
                "severity": s,
                "acc1": 0.5 - s / 10,
                "acc1_ci95_low": 0.0,
                "acc1_ci95_high": 1.0,
                "acc1_n": 10,
            }
            for kind in ("jpeg", "mp3")
            for s in range(1, 6)
        ],
        confusions=[{"true": "cat", "predicted": "dog", "number": 3}],
        classes=[{"class": "dog", "recall": 0.9}, {"class": "owl", "recall": None}, {"class": "cat", "recall": 0.1}],
    ),
    "calibration": record(curve=[{"cosine": c / 10, "probability": c / 10} for c in range(5)]),
}


def test_each_part_stands_where_a_task_has_it() -> None:
    parts = {part.title: part for part in report_parts(RECORDS)}
    assert list(parts) == [
        "Subgroups", "Robustness", "Confusions", "Classes", "Calibration", "Samples that took no part"
    ], "a relation card stands among the scores, and once"  # fmt: skip
    (severities,) = parts["Robustness"].grids
    assert (severities.name, severities.columns) == (
        "zero_shot: acc1, n 10",
        ["corruption", "0", "1", "2", "3", "4", "5"],
    )
    assert [row[0] for row in severities.rows] == ["jpeg", "mp3"]
    assert severities.rows[1][1:3] == [0.5, ScoreInterval(0.4, 0.0, 1.0)], "the first without corruption"
    assert [row[0] for row in parts["Classes"].grids[0].rows] == ["cat", "dog", "owl"], "the lowest recall first"
    (curve,) = parts["Calibration"].charts
    assert (curve.x, curve.curves["probability"][-1]) == ("cosine", (0.4, 0.4))
    assert parts["Samples that took no part"].grids[0].rows[0] == ("card", 10, 2, None, None, None)
    assert report_parts({"empty": {"task": "empty", "scores": {"acc1": 0.5}}}) == []
    for name, shown in (("classes", MOST_ROWS), ("confusions", 12)):
        grid = report_parts({"t": record(**{name: [{"true": str(i)} for i in range(MOST_ROWS + 5)]})})[0].grids[0]
        assert len(grid.rows) == shown
        assert grid.name == f"t, the first {shown} of {MOST_ROWS + 5}"
    alone = record(groups=[{"outcome": "acc1", "group": "x", "n": 5, "value": 0.2}])
    assert [part.title for part in report_parts({"t": alone})] == ["Samples that took no part"], (
        "one group is no comparison"
    )


def test_reliability_stands_as_a_figure_and_a_table() -> None:
    bins = [
        {"probabilities": name, "from": 0.4, "to": 0.6, "n": 8, "confidence": 0.5, "accuracy": share}
        | {"accuracy_ci95_low": 0.1, "accuracy_ci95_high": 0.9}
        for name, share in (("before", 0.25), ("after", 0.5), ("scale100", 0.25))
    ]
    part = report_parts({"zero": record(reliability=bins), **RECORDS})
    (calibration,) = (one for one in part if one.title == "Calibration")
    (reliable, curve) = calibration.charts
    assert (reliable.title, reliable.x) == ("zero: accuracy by confidence", "confidence")
    assert reliable.curves == {"before": [(0.5, 0.25)], "after": [(0.5, 0.5)], PERFECT: [(0.0, 0.0), (1.0, 1.0)]}
    assert curve.title == "calibration: probability of a match"
    (grid,) = calibration.grids
    assert grid.rows[1] == ("after", "0.40 to 0.60", 8, 0.5, ScoreInterval(0.5, 0.1, 0.9))
    assert chart_uri(reliable).startswith("data:image/svg+xml;base64,")


def test_two_runs_beside_each_other() -> None:
    scores = {
        "a": {"acc1": 0.5, "acc1_ci95_low": 0.4, "n": 10, "own": 0.1, "lr": 0.1, "chance": 0.1},
        "b": {"acc1": 0.2},
    }
    part = comparison(
        "one", scores, "two", {"a": {"acc1": 0.25, "acc1_ci95_low": 0.1, "n": 10, "lr": 0.2, "chance": 0.1}}
    )
    (grid,) = part.grids
    assert list(grid.rows) == [("acc1", 0.5, 0.25, 0.25)]
    assert grid.columns == ("score", "one", "two", "difference")


def test_two_runs_without_a_score_in_common_say_so() -> None:
    part = comparison("one", {"a": {"acc1": 0.5}}, "two", {"b": {"acc1": 0.5}})
    assert not part.grids
    assert part.note.startswith("one and two have no score in common")


def test_a_folder_of_results_is_read_and_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no results: wanted a folder that `mmssl evaluate RUN --out FOLDER` wrote"):
        read_records(tmp_path / "nowhere")
    (tmp_path / "zero.json").write_text(json.dumps(record()))
    (tmp_path / "other.json").write_text("[1]")
    assert list(read_records(tmp_path)) == ["t"]
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match=r"broken\.json is no JSON"):
        read_records(tmp_path)


def test_hostile_words_stay_words_in_parts_too(tmp_path: Path) -> None:
    hostile = {
        word: record(confusions=[{word: word, "predicted": word}], curve=RECORDS["calibration"]["curve"])
        for word in HOSTILE
    }
    write_report(tmp_path / "report.html", title="t", parts=report_parts(hostile))
    page = Page((tmp_path / "report.html").read_text())
    assert {tag for tag, _ in page.elements} <= ALLOWED
    assert all(word in page.text for word in HOSTILE)
    targets = {attributes["href"] for tag, attributes in page.elements if tag == "a"}
    assert targets == {"#" + str(attributes["id"]) for _, attributes in page.elements if "id" in attributes}


def test_figures_are_written_as_png_and_scores_beside(tmp_path: Path) -> None:
    dots = Chart("Map: a/b", {"a": [(0.0, 1.0), (1.0, 0.0)], "b": [(1.0, 1.0)]}, x="56 % of the variance", dots=True)
    assert chart_uri(dots).startswith("data:image/svg+xml;base64,")
    assert chart_png(dots).startswith(b"\x89PNG")
    write_figures(tmp_path / "figures", [dots], {"zero_shot": {"acc1": 0.5}})
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["00_Map_a_b.png", "metrics.json"]
    assert json.loads((tmp_path / "figures/metrics.json").read_text()) == {"zero_shot": {"acc1": 0.5}}


def test_one_file_of_results_is_read_as_a_folder(tmp_path: Path) -> None:
    record = {"task": "t", "scores": {"acc1": 0.5}}
    (tmp_path / "one.json").write_text(json.dumps({"checkpoint": "c", "t": {"acc1": 0.5}, "records": {"t": record}}))
    assert read_records(tmp_path / "one.json") == {"t": record}


def test_results_of_another_model_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, other = tmp_path / "first", tmp_path / "second"
    for folder in (run, other):
        (folder / "checkpoints/step_1").mkdir(parents=True)
    places = {
        "own": run / "checkpoints/step_1",
        "moved": tmp_path / "gone/first/checkpoints/step_1",
        "other": other / "checkpoints/step_1",
        "untrained": "untrained",
    }
    records = {task: {"task": task, "scores": {}, "checkpoint": str(place)} for task, place in places.items()}
    (part,) = measured_elsewhere(records, run)
    assert [row[0] for row in part.grids[0].rows] == ["other", "untrained"]
    assert f"results of another model than {run}" in caplog.text
    assert measured_elsewhere({"own": records["own"], "moved": records["moved"]}, run) == []
