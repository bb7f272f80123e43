"""The modality gap and the alignment of two modalities: values that can be written down, slow loops, counts."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch

from mmssl.core.errors import DataError
from mmssl.evaluation.relations.modality_gap import ModalityGapConfig, gap_scores
from tests.evaluation.world import collected, colour_shards, configured, items, knowing_model, modalities

PAIR = ("a", "b")


def test_the_gap_is_the_distance_of_the_means() -> None:
    a = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    data = collected(2, a=items(a), b=items(-a))
    scores = gap_scores(data, PAIR)
    assert scores["gap"] == pytest.approx(2**0.5)
    assert scores["alignment"] == pytest.approx(4)
    assert scores["alignment_chance"] == pytest.approx(2)
    same = gap_scores(collected(2, a=items(a), b=items(a)), PAIR)
    assert (same["gap"], same["alignment"], same["alignment_chance"]) == (0, 0, 2)


def test_chance_of_the_gap_is_the_root_mean_square_over_all_swaps() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(6, 3, generator=generator), dim=1) for _ in range(2))
    scores = gap_scores(collected(6, a=items(a), b=items(b)), PAIR)
    signs = torch.tensor([*product((1.0, -1.0), repeat=6)])
    gaps = (signs @ (a - b) / 6).norm(dim=1)
    assert scores["gap_chance"] == pytest.approx(float(gaps.square().mean().sqrt()), rel=1e-5)


def test_intervals_are_those_of_a_bootstrap_over_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.nn.functional.normalize(torch.randn(300, 4, generator=generator), dim=1)
    b = torch.nn.functional.normalize(a + 0.5 * torch.randn(300, 4, generator=generator) + 0.7, dim=1)
    scores = gap_scores(collected(300, a=items(a), b=items(b)), PAIR)
    drawn = [torch.randint(0, 300, (300,), generator=generator) for _ in range(2000)]
    slow = {
        "gap": [float((a[i].mean(0) - b[i].mean(0)).norm()) for i in drawn],
        "alignment": [float((a[i] - b[i]).square().sum(1).mean()) for i in drawn],
    }
    for name, values in slow.items():
        found = [scores[f"{name}_ci95_{end}"] for end in ("low", "high")]
        assert found == pytest.approx(torch.tensor(values).quantile(torch.tensor([0.025, 0.975])).tolist(), abs=0.01)
        assert scores[f"{name}_chance"] not in (None, scores[name])


def test_samples_with_several_items_and_without_one() -> None:
    """The slow loop over pairs of items of each sample; sample 1 lacks b, sample 3 lacks a."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(8, 4, generator=generator), dim=1)
    a, b = items(rows[:3], torch.tensor([0, 1, 2])), items(rows[3:], torch.tensor([0, 0, 2, 2, 3]))
    scores = gap_scores(collected(5, a=a, b=b), PAIR)

    def distance(first: int, second: int) -> float:
        pairs = [
            float((x - y).square().sum())
            for x, i in zip(a.rows, a.owner, strict=True)
            for y, j in zip(b.rows, b.owner, strict=True)
            if (i, j) == (first, second)
        ]
        return sum(pairs) / len(pairs)

    assert scores["alignment"] == pytest.approx((distance(0, 0) + distance(2, 2)) / 2, rel=1e-5)
    assert scores["alignment_chance"] == pytest.approx((distance(0, 2) + distance(2, 0)) / 2, rel=1e-5)
    assert (scores["n"], scores["n_excluded"]) == (2, 3)


def test_one_sample_has_no_chance_to_compare_with() -> None:
    scores = gap_scores(collected(1, a=items(torch.eye(2)[:1]), b=items(torch.eye(2)[1:])), PAIR)
    assert scores["alignment_chance"] is None
    assert "alignment_ci95_low" not in scores
    assert scores["alignment"] == pytest.approx(2)


def test_modalities_without_a_common_sample_are_refused() -> None:
    data = collected(2, a=items(torch.eye(2)[:1]), b=items(torch.eye(2)[1:], torch.tensor([1])))
    with pytest.raises(DataError, match="no sample has both"):
        gap_scores(data, PAIR)


def test_a_knowing_model_has_no_gap(tmp_path: Path) -> None:
    gap = configured(ModalityGapConfig, shards=colour_shards(tmp_path, 16), pair=["picture", "words"], batch_size=3)
    with gap.build(modalities()) as evaluator:
        scores = dict(evaluator.evaluate(knowing_model()))
    assert scores["alignment"] < 0.05 < 1 < scores["alignment_chance"]
    assert scores["n"] == 16
