"""Retrieval at the level of classes: scikit-learn's average precision, known models, and shards."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torch import Tensor

from mmssl.core.errors import DataError
from mmssl.evaluation.class_retrieval import ClassRetrievalConfig, average_precision, class_retrieval_scores
from tests.evaluation.world import NAMES, collected, colour_shards, configured, items, knowing_model, modalities

PAIR = ("image", "text")


def scores_of(image: Tensor, text: Tensor, labels: Tensor, **more: Any) -> dict[str, Any]:
    data = collected(len(image), image=items(image), text=items(text), label=items(labels))
    return class_retrieval_scores(data, PAIR, "label", resamples=100, **more)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_average_precision_is_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmssl.evaluation.class_retrieval._SCORES_AT_ONCE", 300)
    queries, candidates = unit(40, 8), unit(60, 8, seed=1)
    wanted, classes = torch.arange(40) % 4, torch.arange(60) % 5
    precision, first, tied = average_precision(queries, wanted, candidates, classes)
    assert not tied.any()
    for i in range(40):
        row, right = queries[i] @ candidates.T, classes == wanted[i]
        assert float(precision[i]) == pytest.approx(average_precision_score(right.numpy(), row.numpy()), abs=1e-12)
        assert int(first[i]) == 1 + int((row > row[right].max()).sum())


def test_a_model_that_knows_the_classes_scores_one() -> None:
    labels = torch.arange(30) % 3
    scores = scores_of(torch.eye(3)[labels], torch.eye(3)[labels], labels)
    for way in ("image_to_text", "text_to_image"):
        assert (scores[f"{way}_mAP"], scores[f"{way}_R@1"], scores[f"{way}_n_queries"]) == (1, 1, 30)
        assert scores[f"{way}_R@1_chance"] == pytest.approx(1 / 3)
    assert scores["n_classes"] == 3


def test_a_random_model_scores_chance() -> None:
    labels = torch.arange(1500) % 5
    scores = scores_of(unit(1500, 16), unit(1500, 16, seed=1), labels)
    assert scores["image_to_text_mAP"] == pytest.approx(scores["image_to_text_mAP_chance"], abs=0.004)
    for name in ("mAP", "R@1", "R@5", "R@10"):
        low, chance, high = (scores[f"image_to_text_{name}_{part}"] for part in ("ci95_low", "chance", "ci95_high"))
        assert low < chance < high, name
        assert low < scores[f"image_to_text_{name}"] < high
    assert scores["image_to_text_R@5_chance"] == pytest.approx(1 - 0.8**5, abs=0.001)
    assert scores["n"] == 1500


def test_chance_knows_how_large_each_class_is() -> None:
    """Three samples of one class and one of another: the mean over the places of the odd one out, by hand."""
    scores = scores_of(unit(4, 8), unit(4, 8, seed=1), torch.tensor([5, 5, 9, 5]))
    three_of_four = (1 + (1 + 1 + 3 / 4) / 3 + (1 + 2 / 3 + 3 / 4) / 3 + (1 / 2 + 2 / 3 + 3 / 4) / 3) / 4
    one_of_four = (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4
    for way in ("image_to_text", "text_to_image"):
        assert scores[f"{way}_R@1_chance"] == pytest.approx((3 * 3 / 4 + 1 / 4) / 4)
        assert scores[f"{way}_mAP_chance"] == pytest.approx((3 * three_of_four + one_of_four) / 4)


def test_captions_of_one_sample_count_as_one_draw_of_the_interval() -> None:
    """Of 40 samples with five captions each, 20 find their class by all of theirs: half-width 1.96 / sqrt(4 * 40)."""
    labels, owner = torch.arange(40) % 4, torch.arange(40).repeat_interleave(5)
    seen = torch.where(torch.arange(40) < 20, labels, (labels + 1) % 4)
    data = collected(
        40, image=items(torch.eye(4)[labels]), text=items(torch.eye(4)[seen[owner]], owner), label=items(labels)
    )
    scores = class_retrieval_scores(data, PAIR, "label")
    low, high = (float(scores[f"text_to_image_R@1_ci95_{end}"] or 0) for end in ("low", "high"))
    assert scores["text_to_image_R@1"] == 0.5
    assert (0.5 - low, high - 0.5) == pytest.approx((0.155, 0.155), abs=0.03)


def test_of_equal_candidates_all_orders_count_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmssl.evaluation.class_retrieval._SCORES_AT_ONCE", 12)
    candidates = torch.tensor([1.0, 0, 2, 1, 1, 0])[:, None]
    classes = torch.tensor([0, 0, 1, 1, 0, 1])
    queries, wanted = torch.tensor([[1.0], [-1], [0], [1], [-1]]), torch.tensor([0, 0, 0, 1, 1])
    precision, first, tied = average_precision(queries, wanted, candidates, classes)
    for i in range(5):
        scores, right = queries[i] @ candidates.T, classes == wanted[i]
        every = []
        for order in permutations(range(6)):
            if (scores[list(order)].diff() <= 0).all():
                found = right[list(order)]
                every.append(float((found.cumsum(0) / torch.arange(1, 7) * found).sum() / right.sum()))
        assert float(precision[i]) == pytest.approx(sum(every) / len(every), abs=1e-6)
        order = scores.sort(descending=True, stable=True).indices
        assert int(first[i]) == 1 + int(right[order].int().argmax())
        assert bool(tied[i]) == bool((scores[~right] == scores[right].max()).any())


def test_a_collapsed_model_scores_chance_however_the_data_are_sorted() -> None:
    point = unit(1, 16).expand(60, -1)
    for labels in (torch.arange(60) // 20, torch.arange(60) % 3):
        scores = scores_of(point, point, labels)
        for way in ("image_to_text", "text_to_image"):
            assert scores[f"{way}_mAP"] == pytest.approx(scores[f"{way}_mAP_chance"])
            assert scores[f"{way}_R@1"] == pytest.approx(scores[f"{way}_R@1_chance"])
            assert scores[f"{way}_tie_rate"] == 1


def test_queries_without_a_candidate_of_their_class_are_left_out() -> None:
    data = collected(
        4,
        image=items(torch.eye(4)[:3], torch.tensor([0, 1, 2])),
        text=items(torch.eye(4)[:2], torch.tensor([0, 3])),
        label=items(torch.tensor([7, 7, 8, 7])),
    )
    scores = class_retrieval_scores(data, PAIR, "label", resamples=100)
    assert (scores["image_to_text_n_queries"], scores["text_to_image_n_queries"], scores["n_classes"]) == (2, 2, 1)
    assert scores["n_excluded"] == 0, "a sample with one of the pair has a part"


def test_samples_without_label_or_pair_are_excluded_and_counted() -> None:
    data = collected(
        5,
        image=items(torch.eye(4)[:2], torch.tensor([0, 4])),
        text=items(torch.eye(4)[:2], torch.tensor([0, 1])),
        label=items(torch.zeros(4, dtype=torch.long), torch.tensor([0, 1, 2, 3])),
    )
    assert class_retrieval_scores(data, PAIR, "label", resamples=100)["n_excluded"] == 3


def test_no_common_class_is_an_error() -> None:
    data = collected(
        2,
        image=items(torch.eye(2)[:1], torch.tensor([0])),
        text=items(torch.eye(2)[:1], torch.tensor([1])),
        label=items(torch.tensor([0, 1])),
    )
    with pytest.raises(DataError, match="no class has both 'image' and 'text'"):
        class_retrieval_scores(data, PAIR, "label")


def test_from_shards(tmp_path: Path) -> None:
    config = configured(
        ClassRetrievalConfig, pair=["picture", "words"], shards=colour_shards(tmp_path, 20), resamples=100
    )
    scores = dict(config.build(modalities()).evaluate(knowing_model()))
    assert (scores["picture_to_words_mAP"], scores["words_to_picture_R@1"]) == (1, 1)
    assert (scores["n_excluded"], scores["n_classes"]) == (4, len(NAMES))
