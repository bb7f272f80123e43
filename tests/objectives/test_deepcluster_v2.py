"""DeepCluster v2: epochs of the paper's algorithm as plain torch; what has no cluster; memory of a loaded model; configs."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from mmssl.core.batch import Batch
from mmssl.core.objective import Learner, Reduction
from mmssl.core.plan import Plan
from mmssl.losses.deepcluster import UNASSIGNED
from mmssl.objectives.deepcluster_v2 import DeepClusterV2Config, DeepClusterV2Objective
from tests.contracts import toys
from tests.contracts.case import FIVE, SIZE, Case

CONFIG: dict[str, Any] = {
    "kind": "deepcluster_v2", "modality": "picture", "view": "crop", "prototypes": 3, "clusterings": 3, "temperature": 0.3,
    "every": "2 steps", "iterations": 3, "embedding": 6, "head": {"hidden": 20, "norm": "batch"},
}  # fmt: skip
LOCAL = {"head": {"hidden": 20, "norm": "none"}}
MULTI = {"local_view": "small", "local_views": 2}
# Batch norm makes zeros of samples that are alike: all cosines are 0.
CENTRED = CONFIG | {"head": {"hidden": 20, "norm": "batch", "norm_last": True}}
PLAN = Plan(4, SIZE, SIZE)
CASES = {
    "deepcluster_v2": Case(json.dumps(CENTRED), Reduction.STATISTIC, {"cluster": math.log(3)}, plan=PLAN),
    "deepcluster_v2, local views": Case(
        json.dumps(CENTRED | MULTI), Reduction.STATISTIC, {"cluster": math.log(3)}, plan=PLAN
    ),
    "deepcluster_v2, absent": Case(json.dumps(CENTRED), Reduction.STATISTIC, {"cluster": math.log(3)}, FIVE, plan=PLAN),
}
SAMPLES = 8


def build(plan: Plan | None = None, **changes: Any) -> tuple[Learner, DeepClusterV2Objective]:
    torch.manual_seed(0)
    encoder = toys.Patches()
    config = DeepClusterV2Config.model_validate_json(json.dumps(CONFIG | changes))
    objective = config.build({"picture": encoder}, plan or Plan(6, 4, SAMPLES))
    return Learner({"picture": encoder}, objective).double(), objective


def data(epoch: int) -> Batch:
    """All samples with the views of an epoch."""
    return toys.batch(SAMPLES, seed=epoch)


def refreshed(learner: Learner, step: int, batches: list[Batch]) -> None:
    with torch.no_grad():
        assert learner.objective.refresh(batches, learner.context(step, 6)) == []


class Paper:
    """`main_deepclusterv2.py` on one process: memory by sample, k-means from random rows, three sets of centroids, one head."""

    def __init__(self, learner: Learner) -> None:
        self.learner, self.head = learner, learner.objective.head
        self.memory: list[dict[int, Tensor]] = [{}, {}]
        self.centroids: list[list[Tensor]] = []
        self.clusters: list[dict[int, int]] = []

    def embed(self, views: list[Tensor]) -> Tensor:
        encoder: nn.Module = self.learner.encoders["picture"]
        rows = torch.cat([encoder(x).pooled for x in views])
        return F.normalize(self.head(rows), dim=1).unflatten(0, (len(views), -1))

    @torch.no_grad()
    def init_memory(self, whole: Batch) -> None:
        for crop in range(2):
            rows = self.embed([whole["picture"][f"crop{crop}"]])[0]
            self.memory[crop] = dict(enumerate(rows))

    @torch.no_grad()
    def cluster(self, random: torch.Generator) -> None:
        self.centroids, self.clusters = [], []
        for number in range(3):
            memory = self.memory[number % 2]
            centroids = [memory[i] for i in torch.randperm(SAMPLES, generator=random)[:3].tolist()]
            for iteration in range(4):
                clusters = {i: max(range(3), key=lambda k, x=x: float(x @ centroids[k])) for i, x in memory.items()}
                if iteration == 3:
                    break
                for k in range(3):
                    rows = [x for i, x in memory.items() if clusters[i] == k]
                    if rows:
                        centroids[k] = F.normalize(torch.stack(rows).mean(0), dim=0)
            self.centroids.append(centroids)
            self.clusters.append(clusters)

    def loss(self, batch: Batch, views: list[str]) -> Tensor:
        z = self.embed([batch["picture"][name] for name in views])
        losses = []
        for centroids, clusters in zip(self.centroids, self.clusters, strict=True):
            targets = torch.tensor([clusters[i] for i in batch.index.tolist()]).repeat(len(views))
            losses.append(F.cross_entropy(z.flatten(0, 1) @ torch.stack(centroids).T / 0.3, targets))
        for crop in range(2):
            self.memory[crop] |= dict(zip(batch.index.tolist(), z[crop].detach(), strict=True))
        return torch.stack(losses).mean()


@pytest.mark.parametrize("changes", [{}, MULTI, LOCAL])
def test_three_epochs_are_those_of_the_paper(changes: dict[str, Any]) -> None:
    """Losses, weights, memory, centroids and assignments; batches of 4 of 8 samples, in another order in each epoch."""
    (learner, objective), (other, _) = build(**changes), build(**changes)
    paper, views = Paper(other), objective.crops.views
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.5) for one in (learner, other)]
    refreshed(learner, 0, [*data(0).chunks(3)])
    paper.init_memory(data(0))
    for epoch in range(3):
        ctx = learner.context(2 * epoch, 6)
        if epoch > 0:
            refreshed(learner, 2 * epoch, [])
        paper.cluster(ctx.generator("starts"))
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(epoch))
        for half in range(2):
            rows = order[4 * half : 4 * half + 4]
            part = data(epoch).map(lambda x, rows=rows: x[rows])
            out, latents = learner(part)
            expected = paper.loss(part, views)
            torch.testing.assert_close(out.terms["cluster"], expected)
            for loss, optimizer in zip((out.terms["cluster"], expected), optimizers, strict=True):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            learner.after_update({name: x.detach() for name, x in latents.items()} | out.kept, ctx)
        for ours, theirs in zip(learner.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)
        for crop in range(2):
            torch.testing.assert_close(
                objective.bank.rows[:, crop], torch.stack([*map(paper.memory[crop].get, range(SAMPLES))])
            )
        torch.testing.assert_close(
            objective.clusterings.prototypes, torch.stack([torch.stack(c) for c in paper.centroids])
        )
        expected_clusters = [[clusters[i] for clusters in paper.clusters] for i in range(SAMPLES)]
        assert objective.clusterings.clusters.tolist() == expected_clusters
        assert len({tuple(row) for row in expected_clusters}) > 1


def test_before_the_first_clustering_every_loss_is_zero_and_every_parameter_is_reached() -> None:
    learner, _ = build()
    loss = learner(data(0))[0].terms["cluster"]
    assert loss.item() == 0
    loss.backward()
    assert all(parameter.grad is not None for parameter in learner.parameters())


def test_samples_that_were_not_read_have_no_cluster_until_a_step_has_them() -> None:
    learner, objective = build(**LOCAL)
    refreshed(learner, 0, [data(0).rows(0, 6)])
    assert objective.clusterings.clusters[6:].unique().tolist() == [UNASSIGNED]
    assert (objective.clusterings.clusters[:6] >= 0).all()
    whole, some = learner(data(0))[0], learner(data(0).rows(0, 6))[0]
    torch.testing.assert_close(whole.total, some.total * 6 / 8)
    learner.after_update(whole.kept, learner.context(1, 6))
    refreshed(learner, 2, [])
    assert (objective.clusterings.clusters >= 0).all()


def test_without_batch_norm_the_loss_is_a_mean_over_samples() -> None:
    learner, objective = build(**LOCAL)
    assert objective.reduction is Reduction.LOCAL
    assert objective.least_samples == 1
    refreshed(learner, 0, [data(0)])
    parts = [learner(part)[0].terms["cluster"] for part in data(1).chunks(4)]
    torch.testing.assert_close(learner(data(1))[0].terms["cluster"], torch.stack(parts).mean())


def test_a_model_that_is_not_trained_holds_nothing_of_samples() -> None:
    learner, objective = build(Plan.unknown())
    assert objective.bank.rows.shape == (0, 2, 6)
    assert objective.clusterings.clusters.shape == (0, 3)
    assert {name for name, x in learner.state_dict().items() if x.numel() == 0} == {
        "objective.bank.rows",
        "objective.clusterings.clusters",
    }


def test_the_interval_is_in_steps_and_the_views_are_the_global_ones() -> None:
    _, objective = build(every="1 epochs", **MULTI)
    assert objective.refresh_every() == 2
    assert objective.refresh_needs() == {"picture": {"crop": 2}}
    _, objective = build(view=["crop", "small"])
    assert objective.refresh_needs() == {"picture": {"crop": 1, "small": 1}}
    assert build(Plan.unknown())[1].refresh_every() == 1


def test_chance_is_ln_k() -> None:
    headline = build()[1].headline({"perplexity": 2.5, "agreement": 0.5})
    assert headline.chance == pytest.approx(math.log(3))
    assert headline.figures == {"perplexity": 2.5, "agreement": 0.5}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"prototypes": 1}, "greater than or equal to 2"),
        ({"clusterings": 0}, "greater than or equal to 1"),
        ({"temperature": 0}, "greater than 0"),
        ({"every": "0 steps"}, "got '0 steps', wanted more than 0"),
        ({"iterations": 0}, "greater than or equal to 1"),
        ({"local_view": "small"}, "wanted both or neither"),
        ({"head": {"kind": "linear"}}, "'mlp'"),
    ],
)
def test_config_refuses(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        build(**changes)


def test_more_prototypes_than_samples_are_refused_at_build() -> None:
    with pytest.raises(ValueError, match="prototypes: got 9, wanted at most 8, the number of training samples"):
        build(prototypes=9)
    build(Plan.unknown(), prototypes=9)
