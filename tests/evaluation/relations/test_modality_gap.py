"""The modality gap and the alignment of two modalities: values that can be written down, slow loops, counts."""

from __future__ import annotations

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
