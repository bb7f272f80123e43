"""Tiled ranks against the slow definition, with ties, several items a sample, and every shape of tile."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.evaluation.ranking import NEVER, Ranks, choice_accuracy, class_ranks, pair_ranks
from mmssl.evaluation.tiles import exact_products


def slow(a: Tensor, owner_a: Tensor, b: Tensor, owner_b: Tensor, depth: int) -> tuple[list[list[int]], list[bool]]:
    """The definition, query by query. Scores of small whole numbers are exact, so ties are ties."""
    scores = (a.double() @ b.double().T).tolist()
    ranks, tied = [], []
    for query, row in enumerate(scores):
        own = owner_b == owner_a[query]
        right = sorted((j for j in range(len(row)) if own[j]), key=lambda j: (-row[j], j))
        wrong = [j for j in range(len(row)) if not own[j]]
        ranks.append(
            [
                1 + r + sum(row[j] > row[p] or (row[j] == row[p] and j < p) for j in wrong)
                for r, p in enumerate(right[:depth])
            ]
        )
        tied.append(bool(right) and any(row[j] == row[right[0]] for j in wrong))
    return ranks, tied


def listed(result: Ranks) -> tuple[list[list[int]], list[bool]]:
    return [[rank for rank in row if rank != NEVER] for row in result.ranks.tolist()], result.tied.tolist()


@pytest.mark.parametrize("tile", [(1, 1), (3, 5), (7, 64), (16, 16), None])
def test_ranks_are_those_of_the_definition(tile: tuple[int, int] | None) -> None:
    generator = torch.Generator().manual_seed(0)
    samples = torch.arange(30)
    owner_a = samples.repeat_interleave(torch.randint(0, 3, (30,), generator=generator))
    owner_b = samples.repeat_interleave(torch.randint(0, 5, (30,), generator=generator))
    a = torch.randint(-1, 2, (len(owner_a), 4), generator=generator).float()
    b = torch.randint(-1, 2, (len(owner_b), 4), generator=generator).float()
    forward, backward = pair_ranks(a, owner_a, b, owner_b, depth=3, tile=tile)
    assert listed(forward) == slow(a, owner_a, b, owner_b, 3)
    assert listed(backward) == slow(b, owner_b, a, owner_a, 3)
    assert any(forward.tied.tolist())
    assert 0 in forward.positives
    scores = torch.where(owner_a[:, None] == owner_b, a @ b.T, -torch.inf).amax(1)
    assert torch.equal(forward.best, scores)
    for found, all_scores in ((forward, a @ b.T), (backward, b @ a.T)):
        assert torch.equal(found.found, all_scores.argmax(1)), "the first of equals"
        assert torch.equal(found.found_score, all_scores.amax(1))


@pytest.mark.parametrize("n", [5, 100, 777])
def test_a_collapsed_model_ranks_by_position(n: int) -> None:
    """All embeddings are one vector, whose products are not exact: equal pairs must score equally in every tile."""
    point = F.normalize(torch.randn(96, generator=torch.Generator().manual_seed(n)), dim=0)
    owner = torch.arange(n)
    several = owner.repeat_interleave(5)
    forward, backward = pair_ranks(point.expand(n, -1), owner, point.expand(5 * n, -1), several, tile=(64, 128))
    assert forward.ranks[:, 0].tolist() == [5 * i + 1 for i in range(n)]
    assert backward.ranks[:, 0].tolist() == [i + 1 for i in several.tolist()]
    assert bool(forward.tied.all())
    assert bool(backward.tied.all())


def test_a_perfect_model_ranks_first() -> None:
    a = torch.eye(50)
    forward, backward = pair_ranks(a, torch.arange(50), a, torch.arange(50), tile=(16, 32))
    assert bool((forward.ranks == 1).all())
    assert bool((backward.ranks == 1).all())
    assert not bool(forward.tied.any())


def test_owners_must_ascend() -> None:
    x = torch.eye(3)
    with pytest.raises(ValueError, match="wanted them ascending"):
        pair_ranks(x, torch.tensor([0, 2, 1]), x, torch.arange(3))


def test_class_ranks_are_those_of_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randint(-1, 2, (60, 3), generator=generator).float()
    classifier = torch.randint(-1, 2, (9, 3), generator=generator).float()
    labels = torch.randint(0, 9, (60,), generator=generator)
    found = class_ranks(embeddings, classifier, labels)
    scores = (embeddings @ classifier.T).tolist()
    assert found.predicted.tolist() == [row.index(max(row)) for row in scores], "the first of equals"
    for row, label, rank, tie in zip(scores, labels.tolist(), found.ranks, found.tied, strict=True):
        equal = [c for c in range(9) if row[c] == row[label] and c != label]
        assert int(rank) == 1 + sum(score > row[label] for score in row) + sum(c < label for c in equal)
        assert bool(tie) == bool(equal)
    assert found.scores.tolist() == [[max(row), row[label]] for row, label in zip(scores, labels.tolist(), strict=True)]
    assert found.probabilities is None
    chances = torch.tensor(scores).mul(0.5).softmax(1)
    both = class_ranks(embeddings, classifier, labels, scale=0.5).probabilities
    assert both is not None
    assert torch.allclose(both, torch.stack([chances.amax(1), chances.gather(1, labels[:, None])[:, 0]], 1))


def test_precision_settings_come_back() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        convolutions = torch.backends.cudnn.conv.fp32_precision
        with exact_products():
            assert torch.get_float32_matmul_precision() == "highest"
            assert torch.backends.cudnn.conv.fp32_precision != "tf32"
            assert not torch.backends.cudnn.allow_tf32  # which torch refuses to say while its switches disagree
        with pytest.raises(ZeroDivisionError), exact_products():
            1 / 0  # noqa: B018
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.conv.fp32_precision == convolutions
        assert torch.backends.cudnn.allow_tf32 == (convolutions == "tf32")
    finally:
        torch.set_float32_matmul_precision(before)


def test_autocast_around_does_not_reach_the_scores() -> None:
    """In bfloat16 these two candidates tie, and the wrong one would win by position."""
    query = torch.tensor([[1.0, 1.0]])
    candidates = torch.tensor([[1.0, 0.0], [1.0, 1e-4]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, backward = pair_ranks(candidates, torch.tensor([0, 1]), query, torch.tensor([1]))
        found = class_ranks(query, candidates, torch.tensor([1]))
    assert backward.ranks[0, 0] == found.ranks[0] == 1
    assert not bool(backward.tied[0])
    assert not bool(found.tied[0])


def test_choices_that_tie_earn_their_share() -> None:
    scores = torch.tensor([[2.0, 1, 0], [1, 1, 0], [1, 1, 1], [1, 2, 0], [1, 1, 2], [0, 1, 1]])
    earned, tied = choice_accuracy(scores)
    assert earned.tolist() == pytest.approx([1, 1 / 2, 1 / 3, 0, 0, 0])
    assert tied.tolist() == [False, True, True, False, True, False]
