"""Tables of scores: what stands beside a score, what becomes a column, and what is one row."""

from __future__ import annotations

from mmssl.reporting.measures import ScoreInterval
from mmssl.reporting.score_table import number_text, score_table


def test_interval_and_chance_stand_beside_their_score() -> None:
    values = {
        "acc1": 0.5,
        "acc1_ci95_low": 0.4,
        "acc1_ci95_high": 0.6,
        "chance": 0.1,
        "AUROC": 1.0,
        "AUROC_chance": 0.5,
    }
    assert score_table("zero_shot", values)["plain"] == [
        ("acc1", "0.5 (0.4\xa0to\xa00.6), chance 0.1"),
        ("AUROC", "1, chance 0.5"),
    ]
    assert score_table("t", {"chance": 0.25})["plain"] == [("chance", "0.25")], "of no other score"


def test_figures_with_an_n_of_their_own_are_columns_and_others_keep_interval_and_chance() -> None:
    around = {"ece_ci95_low": 0.1, "ece_ci95_high": 0.3, "ece_n": 50}
    table = score_table(
        "t", {"acc1": 0.5, "acc1_ci95_low": 0.4, "acc1_ci95_high": 0.6, "chance": 0.1, "ece": 0.2, **around}
    )
    assert table["rows"] == [("ece", ["0.2", "0.1 to 0.3", "", "50"])]
    assert table["plain"] == [("acc1", "0.5 (0.4\xa0to\xa00.6), chance 0.1")]


def test_both_directions_of_one_pair_are_columns_and_those_of_more_are_rows() -> None:
    two = {"a_to_b_R@1": 0.1, "b_to_a_R@1": 0.2, "n": 5}
    table = score_table("t", two)
    assert (table["columns"], table["rows"], table["plain"]) == (
        ["a to b", "b to a"],
        [("R@1", ["0.1", "0.2"])],
        [("n", "5")],
    )
    table = score_table("t", {**two, "a_to_c_R@1": 0.3})
    assert (table["columns"], table["rows"]) == ([], [])
    assert ("a to c R@1", "0.3") in table["plain"]


def test_the_severities_of_a_corruption_are_one_row() -> None:
    jpeg = {f"acc1_jpeg_{severity}": severity / 10 for severity in range(1, 6)}
    rows = score_table("t", {"acc1_corrupted": 0.3, **jpeg, "acc1_top_1": 0.7})["plain"]
    assert rows == [
        ("acc1 corrupted", "0.3"),
        ("acc1 jpeg, severity 1 to 5", "0.1, 0.2, 0.3, 0.4, 0.5"),
        ("acc1 top 1", "0.7"),
    ]


def test_numbers_as_text() -> None:
    assert [number_text(x) for x in (None, 0.0, 0.12345, 1e-5, 12, 3e6)] == ["–", "0", "0.1235", "1e-05", "12", "3e+06"]
    assert number_text(ScoreInterval(0.5, 0.25, 1.0)) == "0.5 (0.25\xa0to\xa01)"
    assert number_text(ScoreInterval(None, None, None)) == "–"
