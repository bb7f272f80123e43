"""LARS against the slow loop of its paper, tensor by tensor, number by number."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from mmssl.training.steps.lars import Lars

STEPS, MOMENTUM, TRUST, DECAY = 4, 0.9, 0.001, 0.05


def slow_lars(weight: list[float], gradients: list[list[float]], rates: list[float], adapted: bool) -> list[float]:
    """You et al. 2017, algorithm 1, with the rate outside of the momentum."""
    weight = list(weight)
    velocity = [0.0] * len(weight)
    for gradient, rate in zip(gradients, rates, strict=True):
        update = [g + (DECAY if adapted else 0) * w for g, w in zip(gradient, weight, strict=True)]
        weight_norm, update_norm = (math.sqrt(sum(x * x for x in xs)) for xs in (weight, update))
        scale = TRUST * weight_norm / update_norm if adapted and weight_norm > 0 and update_norm > 0 else 1
        for i, u in enumerate(update):
            velocity[i] = MOMENTUM * velocity[i] + scale * u
            weight[i] -= rate * velocity[i]
    return weight


def start() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "matrix": torch.randn(3, 4),
        "kernel": 10 * torch.randn(2, 3, 3),
        "bias": torch.randn(3),
        "zero": torch.zeros(2, 2),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_slow_loop(dtype: torch.dtype) -> None:
    weights = {name: x.to(dtype) for name, x in start().items()}
    gradients = {name: [torch.randn_like(x) for _ in range(STEPS)] for name, x in weights.items()}
    parameters = {name: nn.Parameter(x.clone()) for name, x in weights.items()}
    groups = [
        {"params": [parameters[name] for name in weights if name != "bias"], "weight_decay": DECAY},
        {"params": [parameters["bias"]], "adapted": False},
    ]
    optimizer = Lars(groups, lr=1.0, momentum=MOMENTUM, trust=TRUST)
    rates = [0.5, 2.0, 1.0, 0.25]
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, parameter in parameters.items():
            parameter.grad = gradients[name][step].clone()
        optimizer.step()
    for name, weight in weights.items():
        each = [g.flatten().tolist() for g in gradients[name]]
        expected = slow_lars(weight.flatten().tolist(), each, rates, adapted=name != "bias")
        torch.testing.assert_close(parameters[name].flatten().tolist(), expected, rtol=1e-5, atol=1e-6)


def test_the_norm_of_an_update_is_the_trust_times_the_norm_of_the_weight() -> None:
    weight = nn.Parameter(torch.randn(5, 5))
    before = weight.detach().clone()
    weight.grad = 1e4 * torch.randn(5, 5)
    Lars([{"params": [weight]}], lr=1.0, trust=TRUST).step()
    assert float((weight.detach() - before).norm() / before.norm()) == pytest.approx(TRUST, rel=1e-4)


def test_gradients_stay_and_parameters_without_one_are_left_alone() -> None:
    used, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    used.grad = torch.full((2, 2), 0.5)
    optimizer = Lars([{"params": [used, unused], "weight_decay": 0.1}], lr=1.0)
    optimizer.step()
    assert torch.equal(used.grad, torch.full((2, 2), 0.5))
    assert torch.equal(unused, torch.ones(2, 2))
    assert unused not in optimizer.state


def test_the_state_goes_round() -> None:
    def stepped(optimizer: Lars, weight: nn.Parameter, times: int) -> None:
        for number in range(times):
            weight.grad = torch.full_like(weight, 0.1 * (number + 1))
            optimizer.step()

    one = nn.Parameter(torch.ones(2, 3))
    first = Lars([{"params": [one]}], lr=0.1)
    stepped(first, one, 2)
    two = nn.Parameter(one.detach().clone())
    second = Lars([{"params": [two]}], lr=0.1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    stepped(first, one, 1), stepped(second, two, 1)
    assert torch.equal(one, two)
