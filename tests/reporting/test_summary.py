"""Rows of the table of all tasks: headlines with what stands beside them, and means under corruption beside the clean score."""

from __future__ import annotations

import pytest

from mmssl.reporting.summary import ScoreRow, summary_rows, to_csv
from pipelines.measured import print_scores

SCORES = {
    "acc1": 0.5, "acc1_ci95_low": 0.4, "acc1_ci95_high": 0.6, "chance": 0.1, "n": 90, "macro_f1": 0.4,
    "acc1_jpeg": 0.3, "acc1_jpeg_ci95_low": 0.2, "acc1_jpeg_ci95_high": 0.4,
    "acc1_mosaic": 0.3, "acc1_mosaic_ci95_low": 0.2, "acc1_mosaic_ci95_high": 0.4,
    **{f"acc1_{kind}_{severity}": 0.1 * severity for kind in ("jpeg", "mosaic") for severity in range(1, 6)},
    "acc1_corrupted": 0.3, "acc1_corrupted_ci95_low": 0.2, "acc1_corrupted_ci95_high": 0.4, "acc1_kept": 0.6,
}  # fmt: skip


def test_a_row_for_each_corruption_stands_behind_the_headlines() -> None:
    assert summary_rows("t", SCORES, ("acc1",)) == [
        ScoreRow("t", "acc1", 0.5, 0.4, 0.6, 0.1, 90),
        ScoreRow("t", "acc1_jpeg", 0.3, 0.2, 0.4, 0.1, 90, clean=0.5),
        ScoreRow("t", "acc1_mosaic", 0.3, 0.2, 0.4, 0.1, 90, clean=0.5),
        ScoreRow("t", "acc1_corrupted", 0.3, 0.2, 0.4, 0.1, 90, clean=0.5),
    ]
    assert len(summary_rows("t", SCORES)) == len(SCORES), "without headlines each score is one row"


def test_a_direction_has_its_own_number_of_queries() -> None:
    name = "a_to_b_R@1"
    under = {f"{name}_typos_{severity}": 0.1 for severity in range(1, 6)} | {
        f"{name}_typos": 0.1,
        f"{name}_corrupted": 0.1,
    }
    scores = {name: 0.2, f"{name}_chance": 0.01, "a_to_b_n_queries": 50, "n": 10, **under}
    assert [(row.metric, row.chance, row.n, row.clean) for row in summary_rows("t", scores, (name,))] == [
        (name, 0.01, 50, None),
        (f"{name}_typos", 0.01, 50, 0.2),
    ], "the mean over one corruption is that of its row"


def test_the_console_and_the_file_have_the_clean_score(capsys: pytest.CaptureFixture[str]) -> None:
    rows = summary_rows("t", SCORES, ("acc1",))
    print_scores(rows)
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().err.splitlines()]
    assert ["t", "acc1_jpeg", "0.3000", "0.2000", "to", "0.4000", "0.1", "90", "0.5000"] in lines
    assert ["t", "acc1", "0.5000", "0.4000", "to", "0.6000", "0.1", "90"] in lines
    print_scores(rows[:1])
    assert "clean" not in capsys.readouterr().err
    assert to_csv(rows).splitlines()[2] == "t,acc1_jpeg,0.3,0.2,0.4,0.1,90,0.5"


def test_what_is_not_defined_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    print_scores([ScoreRow("t", "acc1_casing", None, chance=0.1, n=8, clean=0.5)])
    table = capsys.readouterr().err
    assert "–" in table
    assert "None" not in table
