"""Measures beside those of torchmetrics, and neighbours beside faiss' exact index, on random embeddings without ties: to 1e-6.

They need these: `python3 tools/peer_env.py --env referees python -m pytest -n 0 tests/evaluation/test_metric_referees.py`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.evaluation.calibration_error import calibration_error, random_halves
from mmssl.evaluation.class_retrieval import class_retrieval_scores
from mmssl.evaluation.classification import class_figures, classification_scores
from mmssl.evaluation.labelled.knn import nearest_rows
from mmssl.evaluation.labelled.multi_label import MultiLabelZeroShotConfig, multi_label_scores
from mmssl.evaluation.labelled.temperature import class_calibration
from mmssl.evaluation.labelled.zero_shot import macro_auroc
from mmssl.evaluation.ranking import class_ranks
from mmssl.evaluation.retrieval import retrieval_scores
from tests.evaluation.world import collected, configured, items

pytestmark = pytest.mark.filterwarnings("ignore")  # of torchmetrics
CLASSES, N = 12, 500
EXACT = 1e-6


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture
def classified() -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings [N, E], class weights [K, E] and labels [N]: some are right."""
    weights, labels = unit(CLASSES, 16, seed=0), torch.arange(N) % CLASSES
    return F.normalize(weights[labels] + 1.2 * unit(N, 16, seed=1), dim=1), weights, labels


def claims(embeddings: Tensor, weights: Tensor) -> Tensor:
    """Cosines moved to 0 ... 1 [N, K] float64: torchmetrics takes a softmax of other scores, which orders samples anew."""
    return ((embeddings @ weights.T).double() + 1) / 2


def test_accuracy_recall_and_f1(classified: tuple[Tensor, Tensor, Tensor]) -> None:
    measures = pytest.importorskip("torchmetrics.functional.classification")
    embeddings, weights, labels = classified
    predictions, scores = class_ranks(embeddings, weights, labels), claims(embeddings, weights)
    found = classification_scores(predictions, labels, [str(i) for i in range(CLASSES)])
    theirs = {
        "acc1": measures.multiclass_accuracy(scores, labels, CLASSES, average="micro"),
        "acc5": measures.multiclass_accuracy(scores, labels, CLASSES, average="micro", top_k=5),
        "mean_per_class_recall": measures.multiclass_recall(scores, labels, CLASSES, average="macro"),
        "macro_f1": measures.multiclass_f1_score(scores, labels, CLASSES, average="macro"),
    }
    assert {name: found[name] for name in theirs} == pytest.approx({k: float(v) for k, v in theirs.items()}, abs=EXACT)
    figures = class_figures(predictions.predicted, labels, CLASSES)
    for name, measure in (("recall", "recall"), ("precision", "precision"), ("f1", "f1_score")):
        each = getattr(measures, f"multiclass_{measure}")(scores, labels, CLASSES, average="none")
        assert figures[name] == pytest.approx(each.tolist(), abs=EXACT)


def test_areas_of_classes(classified: tuple[Tensor, Tensor, Tensor]) -> None:
    measures = pytest.importorskip("torchmetrics.functional.classification")
    embeddings, weights, labels = classified
    data = collected(N, m=items(embeddings), label=items(labels))
    expected = measures.multiclass_auroc(claims(embeddings, weights), labels, CLASSES, average="macro")
    assert macro_auroc(data, "m", "label", weights)[0]["AUROC"] == pytest.approx(float(expected), abs=EXACT)


def test_several_labels(classified: tuple[Tensor, Tensor, Tensor]) -> None:
    measures = pytest.importorskip("torchmetrics.functional.classification")
    embeddings, weights, labels = classified
    several = F.one_hot(labels, CLASSES).bool() | (
        torch.rand(N, CLASSES, generator=torch.Generator().manual_seed(2)) < 0.1
    )
    vectors = items(several.long().flatten(), torch.arange(N).repeat_interleave(CLASSES))
    names = [str(i) for i in range(CLASSES)]
    config = configured(
        MultiLabelZeroShotConfig, shards=["x"], modality="m", labels="y", classnames=names, resamples=100
    )
    found, _ = multi_label_scores(collected(N, m=items(embeddings), y=vectors), weights, names, config)
    for name, measure in (("mAP", "average_precision"), ("AUROC", "auroc"), ("LRAP", "ranking_average_precision")):
        expected = getattr(measures, f"multilabel_{measure}")(claims(embeddings, weights), several.long(), CLASSES)
        assert found[name] == pytest.approx(float(expected), abs=EXACT), name


def test_calibration_error(classified: tuple[Tensor, Tensor, Tensor]) -> None:
    measures = pytest.importorskip("torchmetrics.functional.classification")
    embeddings, weights, labels = classified
    found, _ = class_calibration(embeddings, weights, labels, 7.0)
    other = random_halves(N, 0, "class_calibration")[1]
    for name, scale in (
        ("ece", 7.0),
        ("ece_scale100", 100.0),
        ("ece_calibrated", 7.0 / float(found["temperature"] or 0)),
    ):
        probabilities = (scale * (embeddings[other] @ weights.T).double()).softmax(1)
        expected = measures.multiclass_calibration_error(probabilities, labels[other], CLASSES, n_bins=15, norm="l1")
        assert found[name] == pytest.approx(float(expected), abs=EXACT), name
    chances = torch.rand(N, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    truth = torch.rand(N, generator=torch.Generator().manual_seed(4)) < chances**2
    expected = measures.binary_calibration_error(chances, truth.long(), n_bins=15, norm="l1")
    ours = calibration_error(chances.numpy(), truth.numpy(), np.full(N, 1 / N))
    assert ours == pytest.approx(float(expected), abs=EXACT)


def flat(scores: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, right ones and numbers of the queries, one after the other; only queries that have a right candidate.

    Scores are the places of a query's candidates, the worst 1: torchmetrics takes candidates with a score below 0 for wrong ones.
    """
    scores = scores.argsort(1).argsort(1) + 1.0
    can = right.any(1)
    number = torch.arange(int(can.sum()))[:, None].expand(-1, right.shape[1])
    return scores[can].flatten(), right[can].flatten(), number.flatten()


def test_retrieval_both_ways() -> None:
    measures = pytest.importorskip("torchmetrics.retrieval")
    owner = torch.arange(80).repeat_interleave(torch.arange(80) % 4)  # every fourth picture has no caption
    image = unit(80, 12, seed=5)
    text = F.normalize(image[owner] + 1.1 * unit(len(owner), 12, seed=6), dim=1)
    data = collected(80, image=items(image), text=items(text, owner))
    right = torch.arange(80)[:, None] == owner
    for way, scores, wanted in (("image_to_text", image @ text.T, right), ("text_to_image", text @ image.T, right.T)):
        given, ks = flat(scores, wanted), (1, 5, 10, scores.shape[1])  # the last: all candidates
        found, _ = retrieval_scores(data, ("image", "text"), ks=ks, resamples=100)
        theirs = {"MRR": measures.RetrievalMRR()(*given), f"mAP@{max(ks)}": measures.RetrievalMAP()(*given)}
        for k in ks[:3]:
            theirs[f"R@{k}"] = measures.RetrievalHitRate(top_k=k)(*given)
            theirs[f"recall@{k}"] = measures.RetrievalRecall(top_k=k)(*given)
        ours = {name: found[f"{way}_{name}"] for name in theirs}
        assert ours == pytest.approx({name: float(value) for name, value in theirs.items()}, abs=EXACT)


def test_retrieval_by_class() -> None:
    measures = pytest.importorskip("torchmetrics.retrieval")
    labels = torch.arange(90) % 7
    centres = unit(7, 12, seed=7)
    a, b = (F.normalize(centres[labels] + 1.3 * unit(90, 12, seed=seed), dim=1) for seed in (8, 9))
    data = collected(90, a=items(a), b=items(b), label=items(labels))
    found, _ = class_retrieval_scores(data, ("a", "b"), "label", resamples=100)
    given = flat(a @ b.T, labels[:, None] == labels)
    assert found["a_to_b_mAP"] == pytest.approx(float(measures.RetrievalMAP()(*given)), abs=EXACT)
    for k in (1, 5, 10):
        assert found[f"a_to_b_R@{k}"] == pytest.approx(float(measures.RetrievalHitRate(top_k=k)(*given)), abs=EXACT)


@pytest.mark.parametrize("tile", [100, 4096])
def test_neighbours_are_those_of_a_flat_index(tile: int) -> None:
    faiss = pytest.importorskip("faiss")
    bank, queries = unit(1000, 32, seed=10), unit(70, 32, seed=11)
    index = faiss.IndexFlatIP(32)
    index.add(bank.numpy())
    products, places = index.search(queries.numpy(), 20)
    ours, rows = nearest_rows(queries, bank, 20, tile)
    assert np.array_equal(rows.numpy(), places)
    assert ours.numpy() == pytest.approx(products, abs=EXACT)


def test_recalls_are_those_of_a_flat_index() -> None:
    faiss = pytest.importorskip("faiss")
    image = unit(600, 24, seed=12)
    text = F.normalize(image + 2.5 * unit(600, 24, seed=13), dim=1)
    found, _ = retrieval_scores(collected(600, image=items(image), text=items(text)), ("image", "text"), resamples=100)
    for way, queries, candidates in (("image_to_text", image, text), ("text_to_image", text, image)):
        index = faiss.IndexFlatIP(24)
        index.add(candidates.numpy())
        right = index.search(queries.numpy(), 10)[1] == np.arange(600)[:, None]
        for k in (1, 5, 10):
            assert found[f"{way}_R@{k}"] == pytest.approx(right[:, :k].any(1).mean(), abs=EXACT)
