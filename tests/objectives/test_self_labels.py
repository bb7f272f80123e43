"""Self-labelling: golden labels of SeLA, whitening, k-means' clusters as labels, weights, refusals."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mmssl.core.objective import Learner, Reduction
from mmssl.core.plan import Plan
from mmssl.losses.kmeans import normalised_mutual_information
from mmssl.losses.sinkhorn import sinkhorn
from mmssl.objectives.parts.labellings import ClustersConfig, OptimalTransportConfig, whitened
from mmssl.objectives.self_labels import SelfLabelsConfig, SelfLabelsObjective
from tests.contracts import toys
from tests.contracts.case import FIVE, Case
from tests.losses.inputs import sines

CONFIG: dict[str, Any] = {
    "kind": "self_labels", "modality": "picture", "view": "crop", "label_view": "crop", "labels": 3, "every": "2 steps",
    "labelling": {"kind": "optimal_transport", "strength": 10},
}  # fmt: skip
CLUSTERS = CONFIG | {"labelling": {"kind": "clusters", "components": 4}}
PLAN = Plan(total_steps=50, batch_size=8, samples=8)
CASES = {
    "self_labels": Case(json.dumps(CONFIG), Reduction.LOCAL, {"label": math.log(3)}, plan=PLAN),
    "self_labels, clusters": Case(json.dumps(CLUSTERS), Reduction.LOCAL, {"label": math.log(3)}, plan=PLAN),
    "self_labels, absent": Case(json.dumps(CONFIG), Reduction.LOCAL, {"label": math.log(3)}, FIVE, plan=PLAN),
}
SELA_LABELS, SELA_CE, SELA_ENTROPY = [3, 1, 0, 3, 2, 1, 3, 0, 0, 3, 1, 2], 0.7217472823992656, 2.860229313171809
"""Of ssl-golden-values-2.json; labels and entropy of the plan (sela_plan_entropy) are those of POT's sinkhorn."""
NUMBERS, NOBODY = torch.arange(12), torch.zeros(0, dtype=torch.int64)


def build(plan: Plan = PLAN, **changes: Any) -> tuple[Learner, SelfLabelsObjective]:
    torch.manual_seed(0)
    encoder = toys.Patches()
    objective = SelfLabelsConfig.model_validate_json(json.dumps(CONFIG | changes)).build({"picture": encoder}, plan)
    return Learner({"picture": encoder}, objective).double(), objective


def test_golden_labels_of_sela() -> None:
    scores = 3 * F.normalize(sines(12, 16, 1.1, 0.3, 0.37), dim=1)[:, :4]
    labels = OptimalTransportConfig(strength=5.0).labels(NUMBERS, scores, scores, NOBODY)
    assert labels.tolist() == SELA_LABELS
    assert F.cross_entropy(scores, labels).item() == pytest.approx(SELA_CE, rel=1e-12)
    plan = sinkhorn(scores.log_softmax(1), 1 / 5.0, OptimalTransportConfig().iterations) / 12
    assert torch.special.entr(plan).sum().item() == pytest.approx(SELA_ENTROPY, rel=1e-9)
    assert plan.sum(0).tolist() == pytest.approx([1 / 4] * 4)
    extreme = OptimalTransportConfig(strength=25.0).labels(NUMBERS, scores, 40 * scores, NOBODY)
    assert extreme.unique().numel() > 1, "probabilities below 1e-12 do not underflow"


def test_whitened_components_are_uncorrelated_and_of_variance_one() -> None:
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x @ torch.diag(torch.tensor([5.0, 3, 2, 1, 0.5, 0.1], dtype=torch.float64)) + 7
    found = whitened(x, 3)
    assert found.shape == (200, 3)
    assert found.norm(dim=1).tolist() == pytest.approx([1] * 200)
    moments = found.T @ found / 200
    torch.testing.assert_close(moments, torch.eye(3, dtype=torch.float64) / 3, atol=0.05, rtol=0)


def test_clusters_are_labels_whatever_the_process_holds_first() -> None:
    random = torch.Generator().manual_seed(0)
    truth = torch.arange(30) % 3
    x = 4 * torch.eye(5)[truth] + 0.2 * torch.randn(30, 5, generator=random)
    labelling, chosen = ClustersConfig(components=2), torch.tensor([0, 1, 2])
    labels = labelling.labels(torch.arange(30), x, x, chosen)
    assert normalised_mutual_information(labels, truth).item() == pytest.approx(1)
    order = torch.randperm(30, generator=random)
    assert labelling.labels(order, x[order], x, chosen).equal(labels[order])
    with pytest.raises(ValueError, match="1 of 3 samples to start from could not be read"):
        labelling.labels(torch.arange(1, 30), x[1:], x, chosen)


def test_a_refresh_labels_all_samples_and_weighs_small_clusters_up() -> None:
    learner, objective = build(**CLUSTERS)
    batch = toys.batch(8)
    before = objective.head.weight.clone()
    with torch.no_grad():
        made = objective.refresh([*batch.chunks(3)], learner.context())
    assert made == ["head.weight", "head.bias"]
    assert not torch.equal(objective.head.weight, before)
    sizes = torch.bincount(objective.labels, minlength=3)
    assert sizes.sum() == 8
    torch.testing.assert_close(objective.weights, 8 / (3 * sizes.clamp(min=1)).double())
    out, latents = learner(batch)
    scores = objective.head(latents["raw/features"])
    expected = (
        F.cross_entropy(scores, objective.labels, reduction="none") * objective.weights[objective.labels]
    ).mean()
    torch.testing.assert_close(out.terms["label"], expected)
    assert out.metrics["labels_used"] > 1
    with torch.no_grad():
        objective.refresh([batch], learner.context())
    assert objective.agreement.item() == pytest.approx(1)


def test_more_labels_than_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="labels: got 9, wanted at most 8, the number of training samples"):
        build(labels=9)
