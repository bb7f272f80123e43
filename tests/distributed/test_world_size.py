"""One global batch on 1, 2 and 4 processes: the same loss, gradients (of encoders, heads, temperatures, biases) and buffers.

Under data parallelism, with numbers of present samples that differ between processes: one of four has no sound at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mmssl.core import distributed
from mmssl.core.batch import Batch
from mmssl.core.objective import Learner
from mmssl.core.plan import Plan
from mmssl.training.runtime.launch import Launch
from mmssl.training.steps.cached import CachedStep
from mmssl.training.steps.plain import PlainStep
from tests.contracts import toys
from tests.contracts.test_objectives import BARLOW, CONFIGS, SIMCLR, VICREG, weighted
from tests.distributed.processes import Processes

SIZE = 16
STEPS = {"float64": 2, "float32": 1}
VIEWS = {"picture": "crop", "words": "tokens", "sound": "window"}
PAIRS = {2: [["picture", "words"]], 3: [["picture", "words"], ["sound", "words"], ["picture", "sound"]]}
ABSENT = {"picture": (0, 9), "words": (1, 2, 8, 9, 10), "sound": (4, 5, 6, 7, 12)}


def clip(modalities: int, **options: Any) -> str:
    views = dict(list(VIEWS.items())[:modalities])
    return json.dumps(
        {"kind": "clip", "pairs": PAIRS[modalities], "views": views, "embedding": 8, "temperature": 0.1} | options
    )


LOSSES = ("info_nce", "sigmoid")
CASES = {
    f"{modalities} modalities, {loss}, {'whole' if tiles is False else 'tiled'}": (
        clip(modalities, loss=loss, tiles=tiles, duplicates="ignore"),
        "plain",
    )
    for modalities in (2, 3)
    for loss in LOSSES
    for tiles in (False, 5)
}
CASES |= {f"3 modalities, {loss}, negatives": (clip(3, loss=loss, tiles=5), "plain") for loss in LOSSES}
CASES |= {f"3 modalities, {loss}, cached": (clip(3, loss=loss, duplicates="ignore"), "cached") for loss in LOSSES}
CASES |= {"one temperature": (clip(3, shared_temperature=True, duplicates="ignore"), "plain")}
COMPLETE = {
    "weighted": (weighted(align=(1.0, clip(2)), own=(0.5, SIMCLR)), "plain"),
    "barlow_twins": (BARLOW, "plain"),
    "vicreg": (VICREG, "plain"),
}


def batch(learner: Learner, seed: int, complete: bool) -> Batch:
    whole = toys.batch(SIZE, seed)
    words = whole["words"]["tokens0"]
    words[[3, 6, 15]] = words[3].clone()
    needs = learner.objective.needs()
    present = {} if complete else {m: mask(rows) for m, rows in ABSENT.items() if m in needs}
    return replace(whole, views={m: whole[m] for m in needs}, present=present)


def mask(lacking: tuple[int, ...]) -> Tensor:
    present = torch.ones(SIZE, dtype=torch.bool)
    present[list(lacking)] = False
    return present


def own_rows(whole: Batch) -> Batch:
    """This process' share, in which `present` names what some sample of the share lacks, as collate does it."""
    share = SIZE // distributed.world_size()
    part = whole.rows(distributed.rank() * share, (distributed.rank() + 1) * share)
    return replace(part, present={m: x for m, x in part.present.items() if not x.all()})


def trained(config: str, kind: str, complete: bool, dtype: str) -> list[dict[str, Tensor]]:
    """Losses, gradients and what stands in the learner after each step."""
    torch.manual_seed(0)
    encoders = toys.encoders()
    objective = CONFIGS.validate_json(config).build(encoders, Plan.unknown())
    learner = Learner({m: encoders[m] for m in objective.needs()}, objective).to(getattr(torch, dtype))
    learner.optional = frozenset(ABSENT)
    launch = Launch(device="cpu")
    wrapped = launch.wrap(learner)
    assert isinstance(wrapped, DistributedDataParallel) == (distributed.world_size() > 1)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    step = (
        PlainStep(learner, wrapped, launch, 0)
        if kind == "plain"
        else CachedStep(learner, wrapped, launch, 0, micro_batches=3)
    )
    history = []
    for number in range(STEPS[dtype]):
        out, latents = step.gradients(own_rows(batch(learner, number, complete)), number, 2)
        found = {
            name: parameter.grad.clone() for name, parameter in learner.named_parameters() if parameter.grad is not None
        }
        assert len(found) == len(list(learner.parameters()))
        loss = torch.stack(list(out.terms.values())).sum()
        found["loss"] = distributed.total_detached(loss) / distributed.world_size()
        for name, value in out.metrics.items():
            found[f"metric {name}"] = distributed.total_detached(value) / distributed.world_size()
        optimizer.step()
        objective.after_update(latents, learner.context(number, 2))
        optimizer.zero_grad()
        history.append(found | {f"state {name}": x.clone() for name, x in learner.state_dict().items()})
    return history


def all_cases(dtype: str) -> dict[str, list[dict[str, Tensor]]]:
    """In float32 those that differ in their arithmetic."""
    if dtype == "float32":
        return {name: trained(*case, False, dtype) for name, case in CASES.items() if name.endswith(("whole", "tiled"))}
    complete = {name: trained(*case, True, dtype) for name, case in COMPLETE.items()}
    return complete | {name: trained(*case, False, dtype) for name, case in CASES.items()}


def distance(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], floor: float = 1e-4) -> float:
    """Largest relative distance of any tensor; what is less than `floor` of the largest of its kind is measured by that."""
    assert got.keys() == expected.keys()
    largest: dict[str, float] = {}
    for name, x in expected.items():
        largest[kind(name)] = max(largest.get(kind(name), 0.0), float(x.norm()))
    return max(
        float((got[name] - x).norm()) / max(float(x.norm()), floor * largest[kind(name)])
        for name, x in expected.items()
    )


def kind(name: str) -> str:
    """Gradients, metrics and state are measured apart."""
    return name.split()[0] if " " in name else "gradient"


def part(found: Mapping[str, Tensor], wanted: str, without: tuple[str, ...] = ()) -> dict[str, Tensor]:
    return {name: x for name, x in found.items() if kind(name) == wanted and not name.endswith(without)}


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, list[dict[str, Tensor]]]]:
    return {dtype: all_cases(dtype) for dtype in ("float64", "float32")}


@pytest.mark.parametrize("world", [2, 4])
def test_the_number_of_processes_changes_nothing(
    world: int, alone: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    processes: Processes = request.getfixturevalue("two_processes" if world == 2 else "four_processes")
    for dtype, tolerance, floor in (("float64", 1e-10, 1e-4), ("float32", 1e-5, 1e-2)):
        for result in processes.run(all_cases, [(dtype,)] * world):
            assert result.keys() == alone[dtype].keys()
            for name, steps in result.items():
                for got, expected in zip(steps, alone[dtype][name], strict=True):
                    for what in ("gradient", "state"):
                        assert distance(part(got, what), part(expected, what), floor) < tolerance, (name, what)
                    # Metrics are float32 everywhere. Captions that are alike tie, and rounding breaks ties.
                    tied = ("accuracy",) if "negatives" in name else ()
                    ours, theirs = (part(side, "metric", tied) for side in (got, expected))
                    assert distance(ours, theirs) < 1e-5, name


def test_the_cases_differ(alone: dict[str, Any]) -> None:
    """Each option moves the gradients, and so would be seen if it were lost on the way; tiles and caching do not."""
    first = {name: steps[0] for name, steps in alone["float64"].items()}
    one = first["3 modalities, info_nce, whole"]
    assert [int(one[f"metric {name}/samples"]) for name in ("picture-words", "sound-words", "picture-sound")] == [
        10,
        6,
        9,
    ]
    for other, same in (("tiled", True), ("cached", True), ("negatives", False)):
        two = first[f"3 modalities, info_nce, {other}"]
        assert (distance(part(two, "gradient"), part(one, "gradient")) < 1e-10) == same
