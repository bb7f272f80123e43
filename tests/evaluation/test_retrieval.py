"""Retrieval: known models, several captions, repeated captions, and the naive matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from mmssl.core.errors import DataError, NumericError
from mmssl.evaluation.repeated_items import duplicate_count, recall_ceiling
from mmssl.evaluation.retrieval import RetrievalConfig, random_scores, retrieval_scores
from tests.evaluation.world import collected, colour_shards, configured, items, knowing_model, modalities

PAIR = ("image", "text")


def scores_of(image: Tensor, text: Tensor, owner: Tensor | None = None, **more: Any) -> dict[str, Any]:
    data = collected(len(image), image=items(image), text=items(text, owner))
    return retrieval_scores(data, PAIR, **more)[0]


def naive(queries: Tensor, candidates: Tensor, right: Tensor, ks: tuple[int, ...]) -> dict[str, float]:
    """The matrix of all scores, sorted; for queries that have a right candidate. No ties."""
    can = right.any(1)
    order = (queries @ candidates.T)[can].argsort(dim=1, descending=True)
    found = right[can].gather(1, order)
    first = found.int().argmax(1) + 1
    expected = {f"R@{k}": found[:, :k].any(1).double().mean().item() for k in ks}
    expected |= {f"recall@{k}": (found[:, :k].sum(1).double() / found.sum(1)).mean().item() for k in ks}
    expected["MRR"] = (1 / first.double()).mean().item()
    expected["mean_rank"] = first.double().mean().item()
    expected["median_rank"] = int(first.double().quantile(0.5))
    return expected


def test_scores_are_those_of_the_naive_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    owner = torch.arange(150).repeat_interleave(torch.randint(0, 6, (150,), generator=generator))
    image = F.normalize(torch.randn(150, 24, generator=generator), dim=-1)
    text = F.normalize(image[owner] + 0.9 * torch.randn(len(owner), 24, generator=generator), dim=-1)
    scores = scores_of(image, text, owner)
    right = torch.arange(150)[:, None] == owner
    for prefix, expected in (
        ("image_to_text_", naive(image, text, right, (1, 5, 10))),
        ("text_to_image_", naive(text, image, right.T, (1, 5, 10))),
    ):
        assert {name: scores[prefix + name] for name in expected} == pytest.approx(expected, abs=1e-9)
        for name in expected:
            low, high = (scores[f"{prefix}{name}_ci95_{end}"] for end in ("low", "high"))
            if name != "median_rank":
                assert low < scores[prefix + name] < high, name
            assert low <= scores[prefix + name] <= high, name
            chance = scores[f"{prefix}{name}_chance"]
            assert chance > high if name in ("mean_rank", "median_rank") else chance < low, name
    n = len(owner.unique())
    assert (scores["n"], scores["n_excluded"], scores["n_image"], scores["n_text"]) == (n, 150 - n, 150, len(owner))
    assert scores["image_to_text_n_queries"] == n
    assert scores["image_to_text_R@5"] > scores["image_to_text_recall@5"]


def test_chance_is_the_mean_over_all_orders() -> None:
    """Queries with one and with two right ones of five candidates."""
    from itertools import permutations

    orders = torch.tensor([*permutations(range(5))])
    scores = [naive_of_orders(orders, right) for right in (1, 2, 2)]
    mean = {f"{name}_chance": sum(one[name] for one in scores) / 3 for name in scores[0]}
    found = random_scores(torch.tensor([1, 2, 2]), 5, (1, 3, 9))
    ranks = [(orders < right).int().argmax(1) + 1 for right in (1, 2, 2)]
    assert found.pop("median_rank_chance") == int(torch.cat(ranks).median()), (
        "of the ranks of all queries in all orders"
    )
    assert found == pytest.approx(mean)


def naive_of_orders(orders: Tensor, right: int) -> dict[str, float]:
    found = orders < right
    first, rank = found.int().argmax(1) + 1, torch.arange(1, 6)
    return {
        **{f"R@{k}": found[:, :k].any(1).double().mean().item() for k in (1, 3, 9)},
        **{f"recall@{k}": (found[:, :k].sum(1) / right).double().mean().item() for k in (1, 3, 9)},
        "mAP@9": ((found.cumsum(1) / rank * found).sum(1) / right).double().mean().item(),
        "MRR": (1 / first.double()).mean().item(),
        "mean_rank": first.double().mean().item(),
    }


def test_pairs_score_as_in_open_clip() -> None:
    from open_clip_train.train import get_clip_metrics

    generator = torch.Generator().manual_seed(1)
    image = F.normalize(torch.randn(200, 16, generator=generator), dim=-1)
    text = F.normalize(image + 0.8 * torch.randn(200, 16, generator=generator), dim=-1)
    expected = get_clip_metrics(image, text, torch.tensor(1.0))
    scores = scores_of(image, text)
    assert {name: scores[name] for name in expected} == pytest.approx({k: float(v) for k, v in expected.items()})


def test_a_perfect_model_scores_one() -> None:
    scores = scores_of(torch.eye(40), torch.eye(40))
    assert all(scores[f"{way}_R@1"] == 1 == scores[f"{way}_MRR"] for way in ("image_to_text", "text_to_image"))


def test_a_random_model_scores_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(2, 2000, 8, generator=generator), dim=-1)
    scores = scores_of(x[0], x[1], resamples=100)
    assert scores["image_to_text_R@1_chance"] == pytest.approx(1 / 2000)
    assert scores["text_to_image_R@10"] < 0.015
    assert scores["text_to_image_mean_rank"] == pytest.approx(1000, rel=0.06)
    assert scores["image_to_text_median_rank_chance"] == 1000
    for name in ("mean_rank", "median_rank"):
        low, high = (scores[f"image_to_text_{name}_ci95_{end}"] for end in ("low", "high"))
        assert low < scores[f"image_to_text_{name}_chance"] < high


def test_chance_counts_the_captions_of_a_picture() -> None:
    """Five pictures with 1, 2, 3, 2 and no captions: a random caption of the 8 is right for a picture with c of them in c / 8."""
    owner = torch.tensor([0, 1, 1, 2, 2, 2, 3, 3])
    scores = scores_of(torch.eye(5), torch.eye(8)[:, :5] + 0.1, owner)
    assert scores["image_to_text_R@1_chance"] == pytest.approx((1 + 2 + 3 + 2) / 4 / 8)
    assert scores["text_to_image_R@1_chance"] == pytest.approx(1 / 5)


def test_captions_that_succeed_or_fail_together_count_as_one_draw_of_the_interval() -> None:
    """Of 40 pictures with five captions each, 20 are found by all of theirs: half-width 1.96 / sqrt(4 * 40), not sqrt(4 * 200)."""
    found = torch.arange(40) % 2 == 0
    points_to = torch.where(found, torch.arange(40), (torch.arange(40) + 1) % 40)
    owner = torch.arange(40).repeat_interleave(5)
    scores = scores_of(torch.eye(40), torch.eye(40)[points_to[owner]], owner)
    low, high = (scores[f"text_to_image_R@1_ci95_{end}"] for end in ("low", "high"))
    assert scores["text_to_image_R@1"] == 0.5
    assert (0.5 - low, high - 0.5) == pytest.approx((0.155, 0.155), abs=0.03)


@pytest.mark.parametrize("captions", [1, 5])
def test_a_collapsed_model_scores_chance(captions: int) -> None:
    n = 60
    point = F.normalize(torch.randn(48, generator=torch.Generator().manual_seed(0)), dim=0)
    owner = torch.arange(n).repeat_interleave(captions)
    scores = scores_of(point.expand(n, -1), point.expand(len(owner), -1), owner)
    assert scores["image_to_text_R@1"] == scores["text_to_image_R@1"] == pytest.approx(1 / n)
    assert scores["image_to_text_tie_rate"] == scores["text_to_image_tie_rate"] == 1


def test_recall_and_hit_rate_differ_with_several_captions() -> None:
    """The picture's five captions: one points to it, four point away."""
    image = torch.eye(2)
    text = torch.tensor([[1.0, 0], *[[-1.0, 0]] * 4, *[[0, 1.0]] * 5])
    scores = scores_of(image, text, torch.arange(2).repeat_interleave(5))
    assert scores["image_to_text_R@1"] == 1
    assert scores["image_to_text_recall@1"] == pytest.approx(0.2)
    assert scores["image_to_text_recall@5"] == pytest.approx((0.2 + 1) / 2)


def test_k_beyond_the_candidates_is_not_measured() -> None:
    """Six captions of three pictures: k of 5 goes one way only."""
    owner = torch.arange(3).repeat_interleave(2)
    scores = scores_of(torch.eye(3), torch.eye(3)[owner], owner, ks=(1, 5, 50), dual_softmax=0.1)
    missing = {name for name, value in scores.items() if value is None}
    ways = ("image_to_text", "text_to_image")
    assert missing == {f"{way}_{name}@50" for way in ways for name in ("R", "recall", "mAP")} | {
        f"text_to_image_{name}@5" for name in ("R", "recall")
    }
    assert not [name for name in scores if name.startswith(tuple(f"{one}_" for one in missing))], (
        "no interval or chance"
    )
    assert scores["note"] == (
        "not measured, because k is above the number of candidates: image_to_text 50 of 6, text_to_image 5 of 3, "
        "text_to_image 50 of 3; lower `ks`"
    )
    assert scores["image_to_text_R@5"] == scores["text_to_image_R@1"] == 1
    assert "note" not in scores_of(torch.eye(3), torch.eye(3), ks=(1, 3))


@pytest.mark.parametrize(("ks", "first"), [([1, 5], 1), ([10, 5], 5), ([50], 50)])
def test_the_headline_is_the_least_k(ks: list[int], first: int) -> None:
    evaluator = configured(RetrievalConfig, shards=["a"], pair=["picture", "words"], ks=ks).build(modalities())
    assert evaluator.headlines == (f"picture_to_words_R@{first}", f"words_to_picture_R@{first}")


def test_repeated_captions_are_counted_and_bound_the_score() -> None:
    """Four pictures; the caption "x" stands for the first three, and the second has one of its own besides."""
    owner = torch.tensor([0, 1, 1, 2, 3])
    text = items(torch.eye(5), owner, digest=torch.tensor([7, 7, 8, 7, 9]))
    image = items(torch.eye(4), digest=torch.arange(4))
    assert (duplicate_count(text), duplicate_count(image)) == (3, 0)
    assert recall_ceiling(text, image) == 3 / 5  # of the three "x" one can be right; the two others both
    assert recall_ceiling(image, text) == 3 / 4  # the third picture's only caption loses the tie with the first "x"


def test_captions_repeated_within_a_sample_are_no_duplicates() -> None:
    text = items(torch.eye(3), torch.tensor([0, 0, 1]), digest=torch.tensor([5, 5, 6]))
    assert duplicate_count(text) == 0
    assert recall_ceiling(text, items(torch.eye(2))) == 1


def test_the_ceiling_is_reached() -> None:
    """A perfect model on repeated captions scores exactly the ceiling, both ways."""
    owner = torch.arange(30)
    digest = torch.arange(30) % 12
    text = torch.eye(12)[digest]
    image = F.normalize(text + 0.1 * torch.eye(30)[:, :12].roll(1, 1), dim=-1)
    data = collected(30, image=items(image), text=items(text, owner, digest))
    scores, _ = retrieval_scores(data, PAIR)
    for way in ("image_to_text", "text_to_image"):
        assert scores[f"{way}_R@1"] <= scores[f"{way}_R@1_ceiling"] == 12 / 30
    assert scores["image_to_text_R@1"] == 12 / 30


def test_embeddings_that_are_not_finite_are_refused_by_key() -> None:
    text = torch.eye(4)
    text[3, 0] = torch.inf
    with pytest.raises(NumericError, match="'text' of key 'key3'"):
        scores_of(torch.eye(4), text)


def test_no_pair_at_all_is_an_error() -> None:
    data = collected(2, image=items(torch.eye(2)[:1]), text=items(torch.eye(2)[:1], torch.tensor([1])))
    with pytest.raises(DataError, match="no sample has both 'image' and 'text'"):
        retrieval_scores(data, PAIR)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"pair": ["a", "a"]}, "two different"),
        ({"pair": ["a", "b"], "ks": [0]}, r"ks\n *Value error, got \[0\], wanted different numbers of at least 1"),
        ({"pair": ["a", "b"], "ks": [1, 1]}, "different numbers"),
    ],
)
def test_bad_configs_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        configured(RetrievalConfig, shards=["x"], **values)


def test_from_shards_to_scores(tmp_path: Path) -> None:
    """Sixteen pictures of eight colours with one to three captions: the model knows the colour, and no more."""
    config = configured(RetrievalConfig, shards=colour_shards(tmp_path, 16), pair=["picture", "words"], batch_size=5)
    scores = dict(config.build(modalities()).evaluate(knowing_model()))
    assert (scores["n"], scores["n_picture"], scores["n_words"]) == (16, 16, 31)
    assert scores["n_duplicate_picture"] == 0
    assert scores["words_to_picture_R@5"] == 1
    assert scores["words_to_picture_R@1"] <= scores["words_to_picture_R@1_ceiling"] < 1


def test_dual_softmax_is_that_of_the_whole_matrix() -> None:
    image = F.normalize(torch.randn(80, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    text = F.normalize(image + 0.7 * torch.randn(80, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    scores = scores_of(image, text, dual_softmax=0.1, resamples=100)
    logits = (image @ text.T) / 0.1
    both = logits.log_softmax(0) + logits.log_softmax(1)
    for way, matrix in (("image_to_text", both), ("text_to_image", both.T)):
        expected = int((matrix.argmax(1) == torch.arange(80)).sum()) / 80
        assert scores[f"{way}_R@1_dual_softmax"] == pytest.approx(expected)
        low, high = (scores[f"{way}_R@1_dual_softmax_ci95_{end}"] for end in ("low", "high"))
        assert low < expected < high
        assert scores[f"{way}_R@1_dual_softmax_chance"] == pytest.approx(1 / 80)
    assert scores["image_to_text_R@1"] == scores_of(image, text, resamples=100)["image_to_text_R@1"], "apart"


def test_average_precision_at_ten_and_the_table_of_queries() -> None:
    """Two captions of each picture, at ranks 1 and 3 of the first picture: (1 / 1 + 2 / 3) / 2; six more texts have no picture."""
    image = torch.tensor([[1.0, 0], [0, 1]])
    text = torch.tensor([[1.0, 0], [0.6, 0.8], [0.8, 0.6], [0, 1.0], *[[-0.6, -0.8]] * 6])
    data = collected(8, image=items(image), text=items(text, torch.tensor([0, 0, 1, 1, *range(2, 8)])))
    scores, tables = retrieval_scores(data, PAIR, ks=(1, 10), resamples=100)
    assert scores["image_to_text_mAP@10"] == pytest.approx((1 + 2 / 3) / 2)
    queries = tables["text_to_image"]
    assert queries.columns["key"] == ["key0", "key0", "key1", "key1"]
    assert queries.columns["item"] == [0, 1, 0, 1]
    assert queries.columns["rank"] == [1, 2, 2, 1]
    assert queries.columns["found_key"] == ["key0", "key1", "key0", "key1"]
    assert queries.columns["found_score"] == pytest.approx([1, 0.8, 0.8, 1])
    assert queries.columns["score"] == pytest.approx([1, 0.6, 0.6, 1])
    pictures = tables["image_to_text"].columns
    assert (pictures["found_key"], pictures["found_item"]) == (["key0", "key1"], [0, 1])
    assert queries.outcomes == ("R@1", "MRR"), "two pictures are fewer than ten"
    pictures_outcomes = tables["image_to_text"].outcomes
    assert pictures_outcomes == ("R@1", "R@10", "recall@1", "recall@10", "mAP@10", "MRR")
    for outcome in pictures_outcomes:
        values = [float(value or 0) for value in pictures[outcome]]
        assert sum(values) / 2 == pytest.approx(scores[f"image_to_text_{outcome}"])
    for outcome in queries.outcomes:
        values = [float(value or 0) for value in queries.columns[outcome]]
        assert sum(values) / 4 == pytest.approx(scores[f"text_to_image_{outcome}"])
