"""Search in a pool of all modalities: against a slow loop, and of models whose scores are known."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core.errors import DataError, NumericError
from mmssl.core.evaluator import Score
from mmssl.evaluation.collect import Collected, Items
from mmssl.evaluation.relations.target_modality import TargetModalityConfig, target_scores
from tests.evaluation.world import collected, colour_shards, configured, items, knowing_model, modalities

NAMES = ("a", "b", "c")


def random(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def slow(data: Collected, names: Sequence[str]) -> dict[str, Score]:
    """Every query against every candidate, in plain Python; ties share the query equally."""
    whole = set.intersection(*(set(data[name].owner.tolist()) for name in names))

    def rows(name: str) -> list[tuple[int, Tensor]]:
        of = data[name]
        return [(i, x.double()) for i, x in zip(of.owner.tolist(), of.rows, strict=True) if i in whole]

    scores: dict[str, Score] = {"n": len(whole)}
    for query in names:
        for target in names:
            if target == query:
                continue
            earned: dict[str, list[Fraction]] = {"modality@1": [], "R@1_mixed": [], "R@1": []}
            for own, x in rows(query):
                pool = [
                    (round(float(x @ y), 6), name, i)
                    for name in names
                    for i, y in rows(name)
                    if name != query or i != own
                ]
                alone = [one for one in pool if one[1] == target]
                near = [one for one in pool if one[0] == max(pool)[0]]
                near_alone = [one for one in alone if one[0] == max(alone)[0]]
                earned["modality@1"].append(Fraction(sum(one[1] == target for one in near), len(near)))
                earned["R@1_mixed"].append(Fraction(sum(one[1:] == (target, own) for one in near), len(near)))
                earned["R@1"].append(Fraction(sum(one[2] == own for one in near_alone), len(near_alone)))
            scores |= {f"{query}_to_{target}_{name}": float(sum(all_) / len(all_)) for name, all_ in earned.items()}
    return scores


def test_scores_are_those_of_the_slow_loop() -> None:
    """Several items of a sample, samples that lack one, and rows that lie near those of their sample."""
    owner = torch.arange(14).repeat_interleave(torch.arange(14) % 3)
    base = random(14, 6, seed=0)
    data = collected(
        14,
        a=items(F.normalize(base + 1.1 * random(14, 6, seed=1), dim=1)),
        b=items(F.normalize(base[owner] + 0.7 * random(len(owner), 6, seed=2), dim=1), owner),
        c=items(F.normalize(base[2:] + 0.9 * random(12, 6, seed=3), dim=1), torch.arange(2, 14)),
    )
    scores, tables = target_scores(data, NAMES, resamples=100)
    expected = slow(data, NAMES)
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    assert (scores["n"], scores["n_excluded"]) == (8, 6)
    assert 0 < float(scores["a_to_b_R@1_mixed"] or 0) < float(scores["a_to_b_R@1"] or 0) < 1
    for direction, table in tables.items():
        for name in table.outcomes:
            column = [float(value or 0) for value in table.columns[name]]
            assert sum(column) / len(column) == pytest.approx(scores[f"{direction}_{name}"])
            low, high = (float(scores[f"{direction}_{name}_ci95_{end}"] or 0) for end in ("low", "high"))
            assert low <= float(scores[f"{direction}_{name}"] or 0) <= high


def test_equal_embeddings_share_the_query() -> None:
    """Of sample 0, one of a's two nearest is b's; the other is a's of sample 1. Exact products: rows of the identity."""
    x, y, z = torch.eye(3)
    data = collected(2, a=items(torch.stack([x, x])), b=items(torch.stack([x, y])), c=items(torch.stack([z, z])))
    scores, _ = target_scores(data, NAMES, resamples=100)
    expected = slow(data, NAMES)
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    assert scores["a_to_b_modality@1"] == 0.5
    assert scores["a_to_b_R@1_mixed"] == 0.25
    assert scores["a_own_modality@1"] == 0.5
    assert (scores["a_to_b_tie_rate"], scores["c_to_a_tie_rate"]) == (1, 0)


def test_known_models() -> None:
    """Perfect: the nearest is of the sample, and of one of the others. Apart: nobody leaves its own modality. Collapsed: chance."""
    n, eye = 16, torch.eye(16)
    perfect, _ = target_scores(collected(n, a=items(eye), b=items(eye)), ("a", "b"), resamples=100)
    assert [perfect[f"a_to_b_{name}"] for name in ("modality@1", "R@1_mixed", "R@1")] == [1, 1, 1]
    same = torch.ones(n, 1)
    for names in (("a", "b"), NAMES):
        data = collected(n, **{name: items(same) for name in names})
        collapsed, _ = target_scores(data, names, resamples=100)
        for a in names:
            for b in names:
                for name in ("modality@1", "R@1_mixed", "R@1") if a != b else ():
                    assert collapsed[f"{a}_to_{b}_{name}"] == pytest.approx(collapsed[f"{a}_to_{b}_{name}_chance"])
    assert collapsed["a_to_b_modality@1_chance"] == pytest.approx(n / (3 * n - 1))
    assert collapsed["a_to_b_R@1_mixed_chance"] == pytest.approx(1 / (3 * n - 1))
    gap = F.normalize(torch.cat([eye, 3 * torch.ones(n, 1)], 1), dim=1)
    other = F.normalize(torch.cat([eye, -3 * torch.ones(n, 1)], 1), dim=1)
    apart, _ = target_scores(collected(n, a=items(gap), b=items(other)), ("a", "b"), resamples=100)
    assert [apart[f"a_to_b_{name}"] for name in ("modality@1", "R@1_mixed", "R@1")] == [0, 0, 1]
    assert apart["a_own_modality@1"] == 1


def test_random_embeddings_are_near_chance() -> None:
    data = collected(300, **{name: items(random(300, 32, seed=i)) for i, name in enumerate(NAMES)})
    scores, _ = target_scores(data, NAMES, resamples=100)
    assert scores["a_to_b_modality@1"] == pytest.approx(1 / 3, abs=0.1)
    assert float(scores["a_to_b_R@1_mixed"] or 0) < 0.03


def test_what_cannot_be_measured_is_refused() -> None:
    nan = torch.eye(3)
    nan[1] = torch.nan
    with pytest.raises(NumericError, match="the embedding of 'b' of key 'key1'"):
        target_scores(collected(3, a=items(torch.eye(3)), b=items(nan)), ("a", "b"))
    apart = collected(4, a=items(torch.eye(2)), b=Items(torch.eye(2), torch.tensor([2, 3])), c=items(torch.eye(4)))
    with pytest.raises(DataError, match="no sample has 'a', 'b' and 'c': of 4, 2 have 'a', 2 have 'b' and 4 have 'c'"):
        target_scores(apart, NAMES)
    with pytest.raises(ValueError, match=r"modalities: got \['a', 'a'\], wanted different ones"):
        configured(TargetModalityConfig, shards=["x"], modalities=["a", "a"])


def test_a_knowing_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = {"shards": colour_shards(tmp_path, 8), "modalities": ["picture", "words"], "batch_size": 3}
    with configured(TargetModalityConfig, **config).build(modalities()) as evaluator:
        scores = dict(evaluator.evaluate(knowing_model()))
    assert scores["picture_to_words_R@1_mixed"] == 1, "eight colours, and the captions of each"
    assert set(evaluator.headlines) <= set(scores)
    assert "ties" not in caplog.text
