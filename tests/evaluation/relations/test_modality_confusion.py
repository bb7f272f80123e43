"""What another modality changes of a class decision: against a slow loop, and of models whose scores are known."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core.errors import DataError, NumericError, RecipeError
from mmssl.core.evaluator import Score, Table
from mmssl.data.modalities.image import ImageConfig
from mmssl.evaluation.collect import Items
from mmssl.evaluation.relations.modality_confusion import (
    ModalityConfusionConfig,
    class_mean_weights,
    confusion_scores,
    one_a_sample,
    subsets,
)
from tests.evaluation.world import collected, colour_shards, configured, items, modalities, model

NAMES = ("a", "b", "c")
CLASSES = ("one", "two", "three", "four")


def random(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def seen(x: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] -> their mean colour."""
    return x.float().mean((2, 3)) / 127.5 - 1


def measure(labels: Tensor, classifier: Tensor, **rows: Tensor) -> tuple[dict[str, Score], dict[str, Table]]:
    data = collected(len(labels), label=items(labels), **{name: items(x) for name, x in rows.items()})
    classifiers = dict.fromkeys(subsets(list(rows)), classifier)
    return confusion_scores(data, list(rows), "label", classifiers, CLASSES[: len(classifier)])


def test_scores_are_those_of_the_slow_loop() -> None:
    n, classifier = 40, random(4, 6, seed=9)
    labels = torch.arange(n) % 4
    rows = {
        name: F.normalize(classifier[labels] + (0.6 + 0.2 * i) * random(n, 6, seed=i), dim=1)
        for i, name in enumerate(NAMES)
    }
    scores, tables = measure(labels, classifier, **rows)

    def right(some: tuple[str, ...], i: int) -> bool:
        mean = [sum(float(rows[name][i, d]) for name in some) / len(some) for d in range(6)]
        near = [sum(m * float(w) for m, w in zip(mean, row, strict=True)) for row in classifier]
        return near.index(max(near)) == int(labels[i])

    sets = [some for size in (1, 2, 3) for some in combinations(NAMES, size)]
    hits = {some: [right(some, i) for i in range(n)] for some in sets}
    for some, of in hits.items():
        assert scores[f"acc1_{'+'.join(some)}"] == sum(of) / n
    assert 0.25 < sum(hits["a",]) / n < 1, "neither chance nor perfect, or the test shows little"
    for name in NAMES:
        before = hits[tuple(other for other in NAMES if other != name)]
        pairs = list(zip(before, hits[NAMES], strict=True))
        assert scores[f"broken_by_{name}"] == sum(old and not new for old, new in pairs) / n
        assert scores[f"mended_by_{name}"] == sum(new and not old for old, new in pairs) / n
    additions = tables["additions"].columns
    assert len(additions["n"]) == 9, "three to each one, and one to each pair: 3 * 2 + 3"
    for some, added, broken in zip(*(additions[name] for name in ("modalities", "added", "broken")), strict=True):
        before = hits[tuple(str(some).split("+"))]
        after = hits[tuple(name for name in NAMES if name in f"{some}+{added}")]
        assert broken == sum(old and not new for old, new in zip(before, after, strict=True)) / n
    samples = tables["samples"]
    for outcome in samples.outcomes:
        assert sum(int(x or 0) for x in samples.columns[outcome]) / n == scores[outcome]


def test_a_modality_that_says_another_class_breaks_right_answers() -> None:
    """a is right of all; b shouts another class in half of the samples, in the others it says nothing against a."""
    classifier, labels = torch.eye(4)[:3], torch.arange(12) % 3
    wrong = (labels + 1) % 3
    half = (torch.arange(12) < 6)[:, None]
    a = F.normalize(classifier[labels] + 0.9 * torch.eye(4)[3], dim=1)
    b = torch.where(half, classifier[wrong], torch.eye(4)[3].expand(12, 4))
    scores, _ = measure(labels, classifier, a=a, b=b)
    assert (scores["acc1_a"], scores["acc1_a+b"]) == (1, 0.5)
    assert (scores["broken_by_b"], scores["mended_by_b"]) == (0.5, 0)
    # b alone is right of the first class where it says nothing: there all classes tie, and the first of them wins.
    assert scores["acc1_b"] == pytest.approx(2 / 12)
    assert (scores["broken_by_a"], scores["mended_by_a"]) == (0, pytest.approx(4 / 12))


def test_known_models() -> None:
    classifier, labels = torch.eye(4), torch.arange(400) % 4
    perfect, _ = measure(labels, classifier, a=classifier[labels], b=classifier[labels])
    assert [perfect[f"acc1_{name}"] for name in ("a", "b", "a+b")] == [1, 1, 1]
    assert [perfect[f"{change}_by_a"] for change in ("broken", "mended")] == [0, 0]
    same = F.normalize(torch.ones(400, 4), dim=1)
    collapsed, _ = measure(labels, classifier, a=same, b=same)
    assert collapsed["acc1_a+b"] == collapsed["acc1_a+b_chance"] == 0.25
    assert (collapsed["broken_by_a"], collapsed["tie_rate"]) == (0, 1)
    guessed, _ = measure(labels, classifier, a=random(400, 4, seed=0), b=random(400, 4, seed=1))
    assert guessed["acc1_a"] == pytest.approx(0.25, abs=0.08)
    assert guessed["broken_by_a_chance"] == 3 / 16
    low, high = guessed["acc1_a_ci95_low"], guessed["acc1_a_ci95_high"]
    assert float(low or 0) < 0.25 < float(high or 0)


def test_what_cannot_be_measured_is_refused() -> None:
    eye, labels = torch.eye(4), torch.arange(4)
    nan = eye.clone()
    nan[2] = torch.nan
    with pytest.raises(NumericError, match="the embedding of 'b' of key 'key2'"):
        measure(labels, eye, a=eye, b=nan)
    with pytest.raises(DataError, match=r"key 'key3' \(sample 3\) has the label 7, wanted 0 ... 3 for 4 class names"):
        measure(torch.tensor([0, 1, 2, 7]), eye, a=eye, b=eye)
    data = collected(4, label=items(labels), a=Items(eye[:2], torch.tensor([0, 1])), b=Items(eye[2:], labels[2:]))
    with pytest.raises(DataError, match="no sample has 'a', 'b' and 'label'"):
        confusion_scores(data, ("a", "b"), "label", dict.fromkeys(subsets(("a", "b")), eye), CLASSES)


def test_several_captions_of_a_sample_count_as_their_mean() -> None:
    """Two of three captions of the first sample name its class, and so does their mean."""
    eye = torch.eye(4)
    captions = Items(eye[[0, 0, 3, 1, 2, 2]], torch.tensor([0, 0, 0, 1, 2, 3]))
    data = collected(4, label=items(torch.arange(4)), a=items(eye[[0, 1, 2, 3]]), b=captions)
    classifiers = dict.fromkeys(subsets(("a", "b")), eye)
    scores, tables = confusion_scores(data, ("a", "b"), "label", classifiers, CLASSES)
    assert (scores["n"], scores["acc1_a"], scores["acc1_b"]) == (4, 1, 3 / 4)
    assert tables["samples"].columns["predicted_b"] == ["one", "two", "three", "three"]
    weighed = one_a_sample(captions)
    assert torch.allclose(weighed.rows[0], torch.tensor([2.0, 0, 0, 1]) / 5**0.5)
    assert weighed.owner.tolist() == [0, 1, 2, 3]
    # A sample weighs as much as every other one in the mean of a class, however many captions it has.
    same = collected(4, label=items(torch.tensor([0, 0, 1, 1])), a=items(eye), b=captions)
    means = class_mean_weights(same, ("b",), "label")[1][("b",)]
    assert torch.allclose(means[0], F.normalize(weighed.rows[0] + eye[1], dim=0))


def test_class_means_of_a_training_set_decide_where_there_is_no_text(tmp_path: Path) -> None:
    """Against the slow loop, and from shards; some classes occur in one of the sets alone."""
    train = random(30, 5, seed=0)
    labels = torch.arange(30) % 3 * 3 + 1
    data = collected(30, label=items(labels), a=items(train), b=items(train.flip(1)))
    classes, means, n = class_mean_weights(data, ("a", "b"), "label")
    assert (classes.tolist(), n) == ([1, 4, 7], 30)
    for some, rows in ((("a",), train), (("a", "b"), train + train.flip(1))):
        for number, label in enumerate((1, 4, 7)):
            mean = sum(row for row, one in zip(rows, labels, strict=True) if one == label)
            assert torch.allclose(means[some][number], F.normalize(mean, dim=0))
    with pytest.raises(DataError, match="the training samples have 1 class, wanted at least two"):
        class_mean_weights(
            collected(3, label=items(labels[:1].expand(3)), a=items(train[:3]), b=items(train[:3])), ("a", "b"), "label"
        )
    shards, other = colour_shards(tmp_path / "train", 24), colour_shards(tmp_path / "test", 9)
    again = {**modalities(), "again": configured(ImageConfig, size=8).build("again")}
    config = {"shards": other, "train_shards": shards, "modalities": ["picture", "again"], "max_train_samples": 7}
    evaluator = configured(ModalityConfusionConfig, **config).build(again)
    with evaluator:
        scores = dict(evaluator.evaluate(model(3, picture=seen, again=seen)))
    # Of seven training samples the fifth has no label, as of nine test samples; the eighth colour occurs in the test set alone.
    assert (scores["n_train"], scores["n_unseen"], scores["n"], scores["n_excluded"]) == (6, 1, 7, 2)
    assert (scores["acc1_picture"], scores["acc1_picture+again"], scores["acc1_again_chance"]) == (1, 1, 1 / 6)


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"modalities": ["picture"]}, ValueError, "at least 2"),
        ({"modalities": ["picture", "picture"]}, ValueError, "wanted different ones"),
        ({"modalities": ["picture", "sound"]}, RecipeError, "got the modality 'sound'"),
        ({"prompts": "picture"}, RecipeError, "prompts: got modality 'picture', wanted one of kind text"),
    ],
)
def test_wrong_settings_are_refused(changed: dict[str, Any], error: type[Exception], said: str) -> None:
    usual = {"shards": ["x"], "modalities": ["picture", "words"], "prompts": "words", "classnames": ["one", "two"]}
    with pytest.raises(error, match=said):
        configured(ModalityConfusionConfig, **{**usual, **changed}).build(modalities())
