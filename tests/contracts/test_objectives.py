"""The contract of objectives, run over every registered one: what training, resuming and data parallelism rely on.

A new objective lists CASES in its own test file, one of them under a name without ", "; else the first test fails. Everything is in
float64, so that "exact" is 1e-10 and "wrong" is far from it.
"""

from __future__ import annotations

import importlib
import inspect
import io
import json
import math
import pkgutil
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor

import mmssl.objectives
import tests.objectives
from mmssl.core import distributed
from mmssl.core.batch import Batch
from mmssl.core.monitors import monitor
from mmssl.core.objective import Latents, Learner, LossOutput, Reduction
from mmssl.objectives.common import ObjectiveConfig
from mmssl.recipe.unions import ObjectiveUnion
from mmssl.training.steps.groups import parameter_rules
from mmssl.training.steps.report import Flags, StepReport
from tests.contracts import toys
from tests.contracts.case import FIVE, SIZE, Case
from tests.distributed.processes import WORLD, Processes

CONFIGS: TypeAdapter[ObjectiveConfig] = TypeAdapter(ObjectiveUnion)
CLIP = """{"kind": "clip", "pairs": [["picture", "words"]], "views": {"picture": "crop", "words": "tokens"}, "embedding": 8,
           "temperature": 0.07}"""
SIMCLR = """{"kind": "simclr", "modality": "picture", "view": "crop", "temperature": 0.2, "embedding": 6,
             "head": {"hidden": 20, "norm": "batch"}}"""
SIMSIAM = """{"kind": "simsiam", "modality": "picture", "view": "crop", "embedding": 6,
              "head": {"hidden": 20, "norm_last": true}, "predictor": {"hidden": 12}}"""
LEJEPA = """{"kind": "lejepa", "modality": "picture", "view": "crop", "views": 2, "sigreg_weight": 0.05, "directions": 32,
             "embedding": 6, "head": {"hidden": 20, "layers": 3, "norm_last": true}}"""
BARLOW = """{"kind": "barlow_twins", "modality": "picture", "view": "crop", "redundancy_weight": 0.1, "embedding": 6,
             "head": {"hidden": 20, "norm": "batch"}}"""
VICREG = """{"kind": "vicreg", "modality": "picture", "view": "crop", "invariance_weight": 25, "variance_weight": 25,
             "covariance_weight": 1, "embedding": 6, "head": {"hidden": 20, "norm": "batch"}}"""
MAE = """{"kind": "mae", "modality": "picture", "view": "crop", "patch_values": 12,
          "decoder": {"width": 12, "depth": 1, "heads": 2}}"""
THREE = """{"kind": "clip", "pairs": [["picture", "words"], ["sound", "words"],
                                      {"modalities": ["picture", "sound"], "weight": 0.5}],
            "views": {"picture": "crop", "words": "tokens", "sound": "window"}, "embedding": 8, "temperature": 0.1,
            "heads": {"picture": {"kind": "mlp", "hidden": 9, "norm": "layer"}}}"""
STEPS = 4
SOME = {"picture": (5,), "words": (0, 2), "sound": (1, 4, 6)}
"""Absent: of 8 samples 5 have picture and words, 3 sound and words, 4 picture and sound, and never as many in both halves."""
LN_G, LN_2G, ZERO = math.log(SIZE), math.log(2 * SIZE - 1), 11 / 12


def sigmoids(logit: float, size: int = SIZE) -> float:
    """The cost of one logit for all pairs of samples."""
    return math.log1p(math.exp(-logit)) + (size - 1) * math.log1p(math.exp(logit))


def weighted(**parts: tuple[float, str]) -> str:
    inner = [f'"{name}": {{"weight": {weight}, "objective": {config}}}' for name, (weight, config) in parts.items()]
    return f'{{"kind": "weighted", "objectives": {{{", ".join(inner)}}}}}'


CASES: dict[str, Case] = {
    "clip": Case(CLIP, Reduction.GATHER, {"picture-words": LN_G}),
    "clip, tiles": Case(
        CLIP.replace('"temperature"', '"tiles": 3, "temperature"'), Reduction.GATHER, {"picture-words": LN_G}
    ),
    "clip, hard negatives": Case(
        CLIP.replace('"temperature"', '"negatives": {"picture": ["small"]}, "temperature"'),
        Reduction.GATHER,
        {"picture-words": (math.log(5) + math.log(5 + 7)) / 2},
        absent={"picture": (5,), "words": (0, 2)},
    ),
    "clip, sigmoid, hard negatives": Case(
        CLIP.replace(
            '"temperature"', '"loss": "sigmoid", "bias": -2.0, "negatives": {"picture": ["small"]}, "temperature"'
        ),
        Reduction.GATHER,
        {"picture-words": sigmoids(1 / 0.07 - 2, SIZE - 3) + 7 * math.log1p(math.exp(1 / 0.07 - 2))},
        absent={"picture": (5,), "words": (0, 2)},
    ),
    "clip, three pairs": Case(
        THREE, Reduction.GATHER, {"picture-words": LN_G, "sound-words": LN_G, "picture-sound": LN_G / 2}
    ),
    "clip, one temperature": Case(
        THREE.replace('"temperature"', '"shared_temperature": true, "temperature"'),
        Reduction.GATHER,
        {"picture-words": LN_G, "sound-words": LN_G, "picture-sound": LN_G / 2},
    ),
    "clip, sigmoid": Case(
        CLIP.replace('"temperature"', '"loss": "sigmoid", "bias": -2.0, "max_scale": 20, "temperature"'),
        Reduction.GATHER,
        {"picture-words": sigmoids(1 / 0.07 - 2)},
    ),
    "clip, mixed losses": Case(
        THREE.replace(
            '["sound", "words"]', '{"modalities": ["sound", "words"], "loss": "sigmoid", "bias": -2.0}'
        ).replace('"temperature"', '"tiles": false, "temperature"'),
        Reduction.GATHER,
        {"picture-words": LN_G, "sound-words": sigmoids(10 - 2), "picture-sound": LN_G / 2},
    ),
    "clip, absent": Case(
        THREE,
        Reduction.GATHER,
        {"picture-words": math.log(5), "sound-words": math.log(3), "picture-sound": math.log(4) / 2},
        SOME,
    ),
    "clip, absent, tiles": Case(
        THREE.replace('"temperature"', '"tiles": 3, "temperature"'),
        Reduction.GATHER,
        {"picture-words": math.log(5), "sound-words": math.log(3), "picture-sound": math.log(4) / 2},
        SOME,
    ),
    "clip, duplicates": Case(
        CLIP.replace('"temperature"', '"duplicates": "ignore", "temperature"'),
        Reduction.GATHER,
        {"picture-words": (5 * math.log(8) + 3 * math.log(6)) / 8},
        same_words=(1, 2, 6),
    ),
    "simclr": Case(SIMCLR, Reduction.STATISTIC, {"nt_xent": LN_2G}),
    "simclr, no batch norm": Case(SIMCLR.replace('"batch"', '"none"'), Reduction.GATHER, {"nt_xent": LN_2G}),
    "simclr, two kinds": Case(
        SIMCLR.replace('"view": "crop"', '"view": ["crop", "small"]'), Reduction.STATISTIC, {"nt_xent": LN_2G}
    ),
    "barlow_twins": Case(BARLOW, Reduction.STATISTIC, {"invariance": 6, "redundancy": 0}),
    "vicreg": Case(VICREG, Reduction.STATISTIC, {"invariance": 0, "variance": 24.75, "covariance": 0}),
    "vicreg, no batch norm": Case(
        VICREG.replace('"batch"', '"none"'), Reduction.STATISTIC, {"invariance": 0, "variance": 24.75, "covariance": 0}
    ),
    "vicreg, two kinds": Case(
        VICREG.replace('"view": "crop"', '"view": ["small", "crop"]'),
        Reduction.STATISTIC,
        {"invariance": 0, "variance": 24.75, "covariance": 0},
    ),
    # Batch norm makes zeros of samples that are alike; without it, the cosine of a collapse depends on the predictor.
    "simsiam": Case(SIMSIAM, Reduction.STATISTIC, {"negative_cosine": 0}),
    "lejepa": Case(LEJEPA, Reduction.STATISTIC, {"sigreg": 0.05 * 0.402048 * SIZE, "invariance": 0}),
    "lejepa, local views": Case(
        LEJEPA.replace('"views": 2', '"views": 1, "local_view": "small", "local_views": 2'),
        Reduction.STATISTIC,
        {"sigreg": 0.05 * 0.402048 * SIZE, "invariance": 0},
    ),
    "mae": Case(MAE, Reduction.LOCAL, {"reconstruction": ZERO}),
    "simclr, absent": Case(SIMCLR, Reduction.STATISTIC, {"nt_xent": math.log(9)}, FIVE),
    "barlow_twins, absent": Case(BARLOW, Reduction.STATISTIC, {"invariance": 6, "redundancy": 0}, FIVE),
    "vicreg, absent": Case(VICREG, Reduction.STATISTIC, {"invariance": 0, "variance": 24.75, "covariance": 0}, FIVE),
    "simsiam, absent": Case(SIMSIAM, Reduction.STATISTIC, {"negative_cosine": 0}, FIVE),
    "lejepa, absent": Case(LEJEPA, Reduction.STATISTIC, {"sigreg": 0.05 * 0.402048 * 5, "invariance": 0}, FIVE),
    "mae, absent": Case(MAE, Reduction.LOCAL, {"reconstruction": ZERO}, FIVE),
    "weighted: clip and simclr, absent": Case(
        weighted(align=(1.0, CLIP), own=(0.5, SIMCLR)),
        Reduction.STATISTIC,
        {"align/picture-words": math.log(5), "own/nt_xent": math.log(9) / 2},
        FIVE,
    ),
    "weighted: clip and simclr": Case(
        weighted(align=(1.0, CLIP), own=(0.5, SIMCLR)),
        Reduction.STATISTIC,
        {"align/picture-words": LN_G, "own/nt_xent": LN_2G / 2},
    ),
    "weighted: clip and mae": Case(
        weighted(align=(1.0, CLIP), fill=(2.0, MAE)),
        Reduction.GATHER,
        {"align/picture-words": LN_G, "fill/reconstruction": 2 * ZERO},
    ),
}
for _found in pkgutil.iter_modules(tests.objectives.__path__):
    CASES |= getattr(importlib.import_module(f"tests.objectives.{_found.name}"), "CASES", {})
every = pytest.mark.parametrize("name", CASES)
OTHER_STATE = {
    "clip, sigmoid",
    "clip, predictive",
    "clip, predictive and sigmoid, absent",
    "dino, sinkhorn, absent",
    "dino, patches with a head and koleo",
    "latent_prediction, over tokens",
    "masked_prediction, fitted codes, absent",
    "moco_v2, batch norm",
    "nnclr, filled",
    "self_labels, clusters",
    "swav, queue",
}
"""Variants that hold other buffers or couple samples in another way than the first case of their objective does."""
BASIC = {name for name in CASES if ", " not in name}
REPRESENTATIVE = {name for name in CASES if ", " not in name.removesuffix(", absent")} | OTHER_STATE


def others_slow(names: set[str], of: Iterable[str] = CASES) -> pytest.MarkDecorator:
    """For what takes long: all cases, of which those outside `names`, variants of them by settings, run with the slow tests."""
    assert names <= CASES.keys()
    slow = pytest.mark.slow
    return pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in names else slow) for name in of])


representative = others_slow(REPRESENTATIVE)


def build(name: str, seed: int = 0, dropout: float = 0.0) -> Learner:
    """A learner in float64 with the encoders that the objective asks for."""
    torch.manual_seed(seed)
    config = CASES[name].config
    encoders = toys.encoders(dropout, all_five='"pulse"' in config or '"sentence"' in config)
    objective = CONFIGS.validate_json(config).build(encoders, CASES[name].plan)
    needed, absent = {modality: encoders[modality] for modality in objective.needs()}, CASES[name].absent
    learner = Learner(needed, objective, optional=absent).double()
    learner.case = CASES[name]
    refresh(learner, 0)
    return learner


@cache
def shared(name: str) -> Learner:
    """For tests that change nothing in it."""
    return build(name)


def refresh(learner: Learner, step: int) -> None:
    """As the trainer does it, before a step, with this process' share of the samples."""
    every = learner.objective.refresh_every()
    if every is not None and step % every == 0:
        learner.eval()
        with torch.no_grad():
            learner.objective.refresh([*own_rows(batch(learner)).chunks(3)], learner.context(step, STEPS))
        learner.train()


def own_rows(whole: Batch) -> Batch:
    """This process' share."""
    size = SIZE // distributed.world_size()
    return whole.rows(distributed.rank() * size, (distributed.rank() + 1) * size)


def batch(learner: Learner, seed: int = 0) -> Batch:
    """SIZE samples with exactly the views that the objective says it needs, without what the case says is absent."""
    whole, case = toys.drawn(SIZE, seed), learner.case
    assert isinstance(case, Case)
    views = {
        modality: {
            f"{kind}{i}": whole[modality][f"{kind}{i}"].clone() for kind, count in kinds.items() for i in range(count)
        }
        for modality, kinds in learner.objective.needs().items()
    }
    if case.same_words:
        words = views["words"]["tokens0"]
        words[list(case.same_words)] = words[list(case.same_words[:1])]
    present = {}
    for modality, lacking in case.absent.items():
        present[modality] = torch.ones(SIZE, dtype=torch.bool)
        present[modality][list(lacking)] = False
    return Batch(views, whole.index.clone(), whole.keys, present)


def gradients(learner: Learner) -> dict[str, Tensor]:
    """Gradients of all trainable parameters, which must have one, as no other may; cleared afterwards."""
    found = {}
    for name, parameter in learner.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, f"{name}: {parameter.grad}"
        if parameter.grad is not None:
            found[name] = parameter.grad.clone()
    learner.zero_grad()
    return found


def whole_gradients(learner: Learner, whole: Batch, step: int = 0, total_steps: int = 1) -> dict[str, Tensor]:
    learner(whole, step, total_steps)[0].total.backward()
    return gradients(learner)


@cache
def expected_gradients(name: str, step: int = 0, total_steps: int = 1) -> dict[str, Tensor]:
    """Of one process on the whole batch."""
    learner = build(name)
    return whole_gradients(learner, batch(learner), step, total_steps)


def error(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Largest relative distance of any tensor; what is nothing beside the largest one is measured by that."""
    assert got.keys() == expected.keys()
    norms = {key: x.double().norm() for key, x in expected.items()}
    largest = max(norms.values())
    return max(float((got[k] - x).double().norm() / norms[k].clamp(min=1e-4 * largest)) for k, x in expected.items())


def join(parts: list[Latents]) -> Latents:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def average_gradients(learner: Learner) -> None:
    """Over processes, all in one collective."""
    parameters = [parameter for parameter in learner.parameters() if parameter.grad is not None]
    flat = distributed.total_detached(torch.cat([p.grad.flatten() for p in parameters])) / distributed.world_size()  # type: ignore[union-attr]
    for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = gradient.view_as(parameter)


def trained(learner: Learner, optimizer: torch.optim.Optimizer, steps: range) -> Iterator[dict[str, Tensor]]:
    """Train on this process' rows of the global batches and average gradients over processes; yields them."""
    for step in steps:
        refresh(learner, step)
        torch.manual_seed(step)
        out, latents = learner(own_rows(batch(learner, seed=step)), step, STEPS)
        out.total.backward()
        average_gradients(learner)
        ctx = learner.context(step, STEPS)
        learner.objective.before_update(ctx)
        optimizer.step()
        learner.after_update({name: x.detach() for name, x in latents.items()} | out.kept, ctx)
        share = torch.stack(list(out.terms.values())).sum()  # `out.total` is float32
        yield {"loss": distributed.total_detached(share) / distributed.world_size(), **gradients(learner)}


def run(name: str) -> list[dict[str, Tensor]]:
    """Losses and gradients of STEPS steps, and the state after them."""
    learner = build(name)
    history = list(trained(learner, torch.optim.SGD(learner.parameters(), lr=0.1, momentum=0.9), range(STEPS)))
    return [*history, learner.state_dict()]


def test_every_objective_has_a_case() -> None:
    modules = [
        importlib.import_module(f"mmssl.objectives.{found.name}")
        for found in pkgutil.iter_modules(mmssl.objectives.__path__)
    ]
    configs = [
        c
        for module in modules
        for _, c in inspect.getmembers(module, inspect.isclass)
        if issubclass(c, ObjectiveConfig)
    ]
    kinds = {config.model_fields["kind"].default for config in configs if not inspect.isabstract(config)}
    assert kinds == {CONFIGS.validate_json(CASES[name].config).kind for name in BASIC}  # type: ignore[attr-defined]


@every
def test_loss_is_finite_and_every_parameter_learns(name: str) -> None:
    learner = build(name)
    out, _ = learner(batch(learner))
    assert out.terms.keys() == CASES[name].collapsed.keys()
    assert out.total.isfinite()
    assert all(term.ndim == 0 for term in out.terms.values())
    assert all(x.ndim == 0 and x.isfinite() and not x.requires_grad for x in out.metrics.values())
    out.total.backward()
    norms = {key: float(gradient.norm()) for key, gradient in gradients(learner).items()}
    still = [key for key, norm in norms.items() if norm < 1e-6 * max(norms.values())]
    assert not still


class Saved:
    """A tensor that a graph holds for its backward pass."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@every
def test_the_headline_is_a_few_of_the_logged_figures(name: str) -> None:
    learner = shared(name)
    output = learner(batch(learner))[0]
    scalars = StepReport(output, {"grad_norm": torch.tensor(1.0)}, Flags(torch.zeros(2)), torch.tensor(False)).scalars()
    headline = learner.objective.headline(scalars)
    assert headline.chance is None or 0 < headline.chance < len(output.terms) * 2 * math.log(len(batch(learner)) ** 2)
    assert 0 < len(headline.figures) <= 3 * max(2, len(output.terms))
    assert all(math.isfinite(value) for value in headline.figures.values())


@every
def test_monitored_latents_are_rows_of_features(name: str) -> None:
    """And none collapses in an untrained model of random inputs."""
    learner = shared(name)
    whole = batch(learner)
    latents = learner.objective.encode(whole, learner.context())
    monitored = learner.objective.monitored()
    assert all(latents[latent].ndim == 2 and latents[latent].is_floating_point() for latent in monitored.values())
    assert all(latents[latent].requires_grad for latent in monitored.values()), "targets that are given do not collapse"
    found = monitor(latents, monitored)
    assert all(found[f"spread/{shown}"] > 0.01 for shown in monitored)


@every
def test_metrics_may_be_made_after_the_update(name: str) -> None:
    """They are those of before it, and what they are made of holds no graph meanwhile."""
    learner, held = build(name), weakref.WeakSet[Saved]()

    def hold(tensor: Tensor) -> Saved:
        saved = Saved(tensor.detach())
        held.add(saved)
        return saved

    expected = {key: x.clone() for key, x in learner(batch(learner))[0].metrics.items()}
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda saved: saved.tensor):
        out = learner(batch(learner))[0]
    measure = out.measure
    assert held
    del out
    assert not held
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.3)
    found = LossOutput({"none": torch.zeros(())}, measure).metrics
    assert expected
    assert found.keys() == expected.keys()
    assert all(torch.equal(x, expected[key]) for key, x in found.items())


@every
def test_reduction_is_declared(name: str) -> None:
    assert shared(name).objective.reduction is CASES[name].reduction


@every
def test_encode_works_sample_by_sample(name: str) -> None:
    learner = shared(name)
    whole = batch(learner)
    ctx = learner.context()
    latents = learner.objective.encode(whole, ctx)
    parts = join([learner.objective.encode(part, ctx) for part in whole.chunks(3)])
    for key, x in latents.items():
        assert len(x) == SIZE
        torch.testing.assert_close(parts[key], x, rtol=1e-10, atol=1e-10)


@every
def test_micro_batches_with_one_criterion_are_exact(name: str) -> None:
    learner = build(name)
    whole, ctx = batch(learner), learner.context()
    expected = expected_gradients(name)
    latents = join([learner.objective.encode(part, ctx) for part in whole.chunks(3)])
    learner.criterion(latents, ctx).total.backward()
    assert error(gradients(learner), expected) < 1e-10


@every
def test_cached_gradients_are_exact(name: str) -> None:
    """Encode without graph, one criterion, encode again with the vector-Jacobian product: the criterion sees latents only."""
    learner = build(name)
    whole, ctx = batch(learner), learner.context()
    expected = expected_gradients(name)
    with torch.no_grad():
        latents = join([learner.objective.encode(part, ctx) for part in whole.chunks(3)])
    leaves = {key: x.requires_grad_() if x.is_floating_point() else x for key, x in latents.items()}
    learner.criterion(leaves, ctx).total.backward()
    start = 0
    for part in whole.chunks(3):
        again = {key: x for key, x in learner.objective.encode(part, ctx).items() if x.requires_grad}
        cotangents = [leaves[key].grad[start : start + len(part)] for key in again]  # type: ignore[index]
        torch.autograd.backward(list(again.values()), cotangents)
        start += len(part)
    assert error(gradients(learner), expected) < 1e-10


@every
def test_plain_accumulation_is_exact_for_local_losses_only(name: str) -> None:
    learner = build(name)
    whole = batch(learner)
    expected = expected_gradients(name)
    for part in whole.chunks(SIZE // 2):
        (learner(part)[0].total / 2).backward()
    distance = error(gradients(learner), expected)
    if learner.objective.reduction is Reduction.LOCAL and not learner.optional:
        assert distance < 1e-10
    else:
        assert distance > 1e-2


@representative
def test_two_processes_equal_one(name: str, two_processes: Processes) -> None:
    expected = run(name)
    results = two_processes.run(run, [(name,)] * WORLD)
    for result in results:
        for step, (got, wanted) in enumerate(zip(result, expected, strict=True)):
            assert error(got, wanted) < 1e-9, f"step {step} of {STEPS}, the last is the state"
    assert error(expected[0], expected[-2]) > 1e-2  # the steps were not all alike


@representative
def test_state_is_complete(name: str) -> None:
    """Saved, loaded into a learner of other weights and trained on: the same bits as without the break."""
    learner = build(name)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-2)
    list(trained(learner, optimizer, range(2)))
    file = io.BytesIO()
    torch.save({"learner": learner.state_dict(), "optimizer": optimizer.state_dict()}, file)

    other = build(name, seed=1)
    resumed = torch.optim.AdamW(other.parameters(), lr=1e-2)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    assert any(not torch.equal(x, saved["learner"][key]) for key, x in other.state_dict().items())
    other.load_state_dict(saved["learner"])
    resumed.load_state_dict(saved["optimizer"])
    assert all(torch.equal(x, other.state_dict()[key]) for key, x in learner.state_dict().items())

    for straight, after in zip(
        trained(learner, optimizer, range(2, 4)), trained(other, resumed, range(2, 4)), strict=True
    ):
        assert all(torch.equal(x, after[key]) for key, x in straight.items())
    assert all(torch.equal(x, other.state_dict()[key]) for key, x in learner.state_dict().items())


@every
def test_loss_does_not_depend_on_the_order_of_samples(name: str) -> None:
    learner = shared(name)
    whole = batch(learner)
    order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(3))
    assert not torch.equal(order, torch.arange(SIZE))
    loss = learner(whole)[0].total
    torch.testing.assert_close(learner(whole.map(lambda x: x[order]))[0].total, loss, rtol=1e-10, atol=1e-10)
    if [len(views) for views in whole.views.values()] == [1]:  # SimCSE: its pairs are two passes of one view
        return
    # Shuffling one view alone breaks the pairs, or the targets, and must be seen.
    modality, views = next(iter(whole.views.items()))
    view = next(iter(views))
    torn = Batch({**whole.views, modality: {**views, view: views[view][order]}}, whole.index)
    assert abs(learner(torn)[0].total - loss) > 1e-4


@representative
def test_evaluation_mode_is_deterministic(name: str) -> None:
    learner = build(name, dropout=0.5)
    whole = batch(learner)
    torch.manual_seed(0)
    learner.train()
    assert learner(whole)[0].total != learner(whole)[0].total
    learner.eval()
    assert learner(whole)[0].total == learner(whole)[0].total


@representative
def test_bfloat16_latents_are_cast(name: str) -> None:
    assert_cast(name, torch.bfloat16)


@others_slow(BASIC)
def test_float16_latents_are_cast(name: str) -> None:
    assert_cast(name, torch.float16)


def assert_cast(name: str, dtype: torch.dtype) -> None:
    learner = build(name).float()
    whole, ctx = batch(learner), learner.context()
    exact = learner.objective.encode(whole, ctx)
    half = {key: x.to(dtype) if x.is_floating_point() else x for key, x in exact.items()}
    got = learner.criterion(half, ctx).total
    assert got.dtype == torch.float32
    rounded = {key: x.float() if x.is_floating_point() else x for key, x in half.items()}
    assert got == learner.criterion(rounded, ctx).total
    torch.testing.assert_close(got, learner.criterion(exact, ctx).total, rtol=0.05, atol=0.05)


@representative
def test_autocast_gives_nearly_the_same_loss(name: str) -> None:
    learner = build(name).float()
    whole = batch(learner)
    expected = learner(whole)[0].total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = learner(whole)
    assert out.total.dtype == torch.float32
    torch.testing.assert_close(out.total, expected, rtol=0.05, atol=0.05)
    assert out.total != expected
    out.total.backward()
    gradients(learner)


@every
def test_collapse_has_its_analytic_value(name: str) -> None:
    learner = build(name)
    ctx = learner.context()
    latents = learner.objective.encode(batch(learner), ctx)
    collapsed = {key: collapse(key, x) for key, x in latents.items()}
    for _ in range(CASES[name].updates):
        learner.objective.after_update(collapsed | learner.criterion(collapsed, ctx).kept, ctx)
    out = learner.criterion(collapsed, ctx)
    for term, value in CASES[name].collapsed.items():
        assert out.terms[term].item() == pytest.approx(value, rel=1e-4, abs=1e-9)


def collapse(key: str, x: Tensor) -> Tensor:
    """All samples alike; predictions and what is not normalised zero; what is given stays."""
    if key.endswith(("target", "mask")) or not x.is_floating_point():
        return x
    zero = key.endswith("prediction") or "raw/" in key
    return torch.zeros_like(x) if zero else F.normalize(torch.ones_like(x), dim=-1)


@representative
def test_needs_and_requirements_are_met_by_name(name: str) -> None:
    learner = build(name)
    for modality in learner.objective.needs():
        whole = batch(learner)
        without: dict[str, Any] = {m: views for m, views in whole.views.items() if m != modality}
        with pytest.raises(ValueError, match=f"needs view .* of '{modality}'"):
            learner(Batch(without, whole.index))
        lacking = Batch(whole.views, whole.index, present={modality: whole.index > 2})
        learner.optional = frozenset()
        with pytest.raises(ValueError, match=f"3 of {SIZE} samples have no '{modality}', and it is not optional"):
            learner(lacking)
    for modality in learner.objective.requires():
        encoders = {**toys.encoders(), modality: toys.Words()}
        with pytest.raises(ValueError, match="lacks"):
            Learner(encoders, learner.objective)


@every
def test_absent_samples_change_nothing(name: str) -> None:
    """Whatever stands in their rows; and where one modality is absent, the loss is that of the present samples alone."""
    learner = build(name)
    for modality in learner.objective.needs():
        learner.optional = frozenset({modality})
        whole = batch(learner)
        here = torch.tensor([True, False, True, True, False, True, False, True])
        views = {kind: x.index_fill(0, (~here).nonzero()[:, 0], 3) for kind, x in whole[modality].items()}
        garbled = Batch({**whole.views, modality: views}, whole.index, present={modality: here})
        lacking = Batch(whole.views, whole.index, present={modality: here})
        loss, other = learner(lacking)[0].total, learner(garbled)[0].total
        assert loss == other
        if (
            len(learner.objective.needs()) == 1
            or name == "clip"
            or (name.startswith("weighted") and modality == "picture")
        ):
            some = whole.map(lambda x, here=here: x[here])
            expected = learner(Batch(some.views, some.index))[0].total
            torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
        nobody = Batch(whole.views, whole.index, present={modality: torch.zeros(SIZE, dtype=torch.bool)})
        out = learner(nobody)[0]
        assert out.total.isfinite()
        assert all(x.isfinite() for x in out.metrics.values())
        out.total.backward()
        assert all(gradient.isfinite().all() for gradient in gradients(learner).values())


@every
def test_rules_of_parameters_name_trained_ones(name: str) -> None:
    objective = shared(name).objective
    trained = {parameter for parameter, x in objective.named_parameters() if x.requires_grad}
    fitting = parameter_rules(objective)
    assert set(fitting) <= trained
    assert {prefix for prefix, _ in fitting.values()} == set(objective.parameter_groups())
    assert bool(fitting) == ("simsiam" in CASES[name].config)


@every
def test_heads_lead_into_the_shared_space(name: str) -> None:
    learner, widths = shared(name), set()
    for modality, head in learner.objective.heads().items():
        encoder = learner.encoders[modality]
        embedded: Callable[[Tensor], Tensor] = head
        out = embedded(torch.randn(3, encoder.width, dtype=torch.float64))  # type: ignore[arg-type]
        assert len(out) == 3
        widths.add(out.shape[1])
        owned = {id(p) for p in learner.objective.parameters()}
        assert all(id(p) in owned for p in head.parameters())
    config = json.loads(CASES[name].config)
    assert len(widths) == ("clip" in CASES[name].config or (config["kind"] == "joint_mae" and config["contrast"] > 0))
