"""kNN classification: scikit-learn's votes, ties in the order of the data, one result at any tile size, honest counts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from mmssl.core.errors import DataError
from mmssl.evaluation.labelled.base import Labelled, classifier_scores
from mmssl.evaluation.labelled.knn import KnnConfig, nearest_rows, neighbours, votes
from tests.evaluation.world import NAMES, colour_shards, configured, knowing_model, modalities

CLASSES = 5


def config(**values: Any) -> KnnConfig:
    return configured(KnnConfig, **{"shards": ["x"], "train_shards": ["y"], "modality": "m", **values})


def knn_scores(train: Labelled, test: Labelled, *settings: Any) -> dict[str, Any]:
    answers, said = neighbours(train, *settings)(test)
    return classifier_scores(train, test, answers) | said


def features(n: int, seed: int) -> tuple[Tensor, Tensor]:
    centres = torch.randn(CLASSES, 8, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    return centres[labels] + 1.5 * torch.randn(n, 8, generator=generator), labels


@pytest.mark.parametrize(("k", "temperature"), [(20, 0.07), (1, 0.07), (50, 0.5), (150, 0.02)])
def test_the_votes_are_scikit_learns(k: int, temperature: float) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    (x, labels), (queries, wanted) = features(150, 0), features(80, 1)

    def weights(distance: np.ndarray) -> np.ndarray:
        return np.exp((1 - distance) / temperature)

    oracle = KNeighborsClassifier(k, metric="cosine", weights=weights).fit(x.double().numpy(), labels.numpy())
    shares = torch.from_numpy(oracle.predict_proba(queries.double().numpy()))
    true = shares.gather(1, wanted[:, None])
    order = torch.arange(CLASSES)
    expected = 1 + (shares > true).sum(1) + ((shares == true) & (order < wanted[:, None])).sum(1)
    normalised = F.normalize(queries, dim=1), wanted, F.normalize(x, dim=1), labels
    found = votes(*normalised, CLASSES, (k,), temperature)
    assert torch.equal(found.ranks[:, 0], expected)
    assert torch.allclose(found.scores[:, 0], torch.cat([shares.amax(1, keepdim=True), true], 1), atol=1e-4)


def test_the_votes_are_those_of_dinov2() -> None:
    """Its formula, query by query: a softmax over the largest number of neighbours, of which the first k are summed by class."""
    (x, labels), (queries, wanted) = features(120, 0), features(60, 1)
    bank, asked, ks, temperature = F.normalize(x, dim=1), F.normalize(queries, dim=1), (5, 10, 20, 100), 0.07
    found = votes(asked, wanted, bank, labels, CLASSES, ks, temperature)
    for i, query in enumerate(asked.double()):
        cosines = [float(query @ row) for row in bank.double()]
        order = sorted(range(len(cosines)), key=lambda place: -cosines[place])[: max(ks)]
        powers = [math.exp(cosines[place] / temperature) for place in order]
        for column, k in enumerate(ks):
            shares = [0.0] * CLASSES
            for place, power in list(zip(order, powers, strict=True))[:k]:
                shares[int(labels[place])] += power / sum(powers)
            assert int(found.predicted[i, column]) == shares.index(max(shares))
            assert int(found.ranks[i, column]) == 1 + sum(share > shares[int(wanted[i])] for share in shares) + (
                shares[: int(wanted[i])].count(shares[int(wanted[i])])
            )


@pytest.mark.parametrize("tile", [7, 64, 1000])
def test_tiles_find_what_a_sort_of_all_finds(tile: int) -> None:
    """Products of small whole numbers are exact, and most of them tie."""
    generator = torch.Generator().manual_seed(0)
    bank, queries = (torch.randint(-2, 3, (n, 3), generator=generator).float() for n in (200, 30))
    values, rows = nearest_rows(queries, bank, 20, tile)
    products, order = (queries @ bank.T).sort(dim=1, descending=True, stable=True)
    assert torch.equal(rows, order[:, :20])
    assert torch.equal(values, products[:, :20])


def test_several_ks_are_as_if_each_were_alone() -> None:
    train, test = Labelled(*features(150, 0)), Labelled(*features(300, 1), excluded=3, skipped=1)
    together = knn_scores(train, test, (10, 3, 100))
    assert (together["k"], together["n"], together["n_train"], together["classes"]) == (10, 300, 150, CLASSES)
    assert (together["n_excluded"], together["n_skipped"], together["n_unseen"]) == (3, 1, 0)
    for k, name in ((10, "acc1"), (3, "acc1_k3"), (100, "acc1_k100")):
        alone = knn_scores(train, test, (k,))
        for part in ("", "_ci95_low", "_ci95_high"):
            assert together[name + part] == alone["acc1" + part]
    assert len({together["acc1"], together["acc1_k3"], together["acc1_k100"]}) == 3


def test_closer_neighbours_count_more_at_low_temperatures() -> None:
    """Two neighbours of class 1 are less alike than one of class 0: heads decide at a high temperature, likeness at a low one."""
    train = Labelled(torch.tensor([[1.0, 0.1], [1.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 1, 1]))
    test = Labelled(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert knn_scores(train, test, (3,), 0.07)["acc1"] == 1
    assert knn_scores(train, test, (3,), 10.0)["acc1"] == 0


def test_a_collapsed_model_scores_chance() -> None:
    labels = torch.arange(400) % 4
    scores = knn_scores(Labelled(torch.ones(400, 8), labels), Labelled(torch.ones(400, 8), labels), (20,))
    assert scores["acc1"] == scores["chance"] == 0.25


def test_a_very_low_temperature_stays_finite() -> None:
    train, test = Labelled(*features(150, 0)), Labelled(*features(80, 1))
    assert knn_scores(train, test, (20,), 1e-6)["acc1"] == knn_scores(train, test, (1,))["acc1"]


def test_labels_that_training_never_showed_are_errors() -> None:
    (x, labels), test = features(150, 0), features(80, 1)
    seen = labels < CLASSES - 1
    scores = knn_scores(Labelled(x[seen], labels[seen]), Labelled(*test), (5, 3))
    assert scores["n_unseen"] == int((test[1] == CLASSES - 1).sum()) > 0
    assert scores["classes"] == CLASSES - 1
    assert scores["acc1"] <= 1 - scores["n_unseen"] / 80
    right = (1 - scores["n_unseen"] / 80) / (CLASSES - 1)
    assert scores["chance"] == scores["acc1_k3_chance"] == pytest.approx(right), "a guess is wrong there, too"
    assert scores["acc5"] is None, "four classes can be answered"
    rows = neighbours(Labelled(x[seen], labels[seen]), (5,))(Labelled(*test, keys=["key"] * 80))[0].tables()["samples"]
    assert rows.outcomes == ("acc1",)
    assert [score is None for score in rows.columns["true_score"]] == (test[1] == CLASSES - 1).tolist()
    assert None not in rows.columns["score"]


@pytest.mark.parametrize(
    ("n", "labels", "says"), [(9, [0] * 9, "1 class"), (4, [0, 1, 0, 1], "5 neighbours for 4 training samples")]
)
def test_too_little_to_vote_is_refused(n: int, labels: list[int], says: str) -> None:
    train = Labelled(torch.ones(n, 3), torch.tensor(labels))
    with pytest.raises(DataError, match=says):
        knn_scores(train, Labelled(torch.ones(2, 3), torch.tensor([0, 1])), (5,))


@pytest.mark.parametrize("values", [{"ks": []}, {"ks": [0]}, {"ks": [5, 5]}, {"temperature": 0}])
def test_impossible_settings_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="|".join(values)):
        config(**values)


def test_from_shards_to_scores(tmp_path: Path) -> None:
    values = {"modality": "picture", "batch_size": 7, "max_train_samples": 60, "max_samples": 10, "ks": [5, 1]}
    train, test = colour_shards(tmp_path / "train", 64), colour_shards(tmp_path / "test", 16)
    with config(train_shards=train, shards=test, **values).build(modalities()) as evaluator:
        scores = dict(evaluator.evaluate(knowing_model()))
    assert scores["acc1"] == scores["acc1_k1"] == 1
    assert (scores["n_train"], scores["n"], scores["n_excluded"], scores["n_train_excluded"]) == (48, 8, 2, 12)


def test_tables_have_the_names_beside_the_shards(tmp_path: Path) -> None:
    """A name of two classes has their numbers, and a class without a name its number alone."""
    train, test = colour_shards(tmp_path / "train", 40), colour_shards(tmp_path / "test", 16)
    settings = {"modality": "picture", "ks": [1], "train_shards": train, "shards": test}
    seen: list[set[object]] = []
    for names in ([*NAMES], [*NAMES[:5], "green", "cyan"], None):
        if names is not None:
            (tmp_path / "classnames.txt").write_text("\n".join(names))
        else:
            (tmp_path / "classnames.txt").unlink()
        with config(**settings).build(modalities()) as evaluator:
            dict(evaluator.evaluate(knowing_model()))
            tables = evaluator.tables
        assert list(tables["samples"].columns["class"]) == list(tables["samples"].columns["predicted"])
        seen.append({*tables["classes"].columns["class"]})
    assert seen[0] == {*NAMES}
    assert seen[1] == {"black", "red", "green (2)", "blue", "yellow", "green (5)", "cyan", "7"}
    assert seen[2] == {*map(str, range(8))}
