"""The pretended device raises where CUDA does, and nowhere else. `test_cuda` files hold what a real one does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.pretended.cuda import Device, pretended_cuda

BOTH = "Expected all tensors to be on the same device"


@pytest.fixture
def device() -> Iterator[Device]:
    with pretended_cuda() as made:
        yield made


@pytest.fixture
def x(device: Device) -> Tensor:
    return torch.arange(12.0, device="cuda").view(3, 4)


@pytest.fixture
def y(device: Device) -> Tensor:
    return torch.ones(3, 4)


REFUSED: dict[str, tuple[str, Callable[[Tensor, Tensor], object]]] = {
    "sum of both places": (BOTH, lambda x, y: x + y),
    "product of both places": (BOTH, lambda x, y: x @ y.T),
    "joined": (BOTH, lambda x, y: torch.cat([x, y])),
    "numbers joined": (BOTH, lambda x, y: torch.stack([x.sum(), y.sum()])),
    "number of the host changed": (BOTH, lambda x, y: y.sum().add_(x.sum())),
    "indices of the device": (BOTH, lambda x, y: y[x[:, 0].long().clamp(max=2)]),
    "mask of the host": (BOTH, lambda x, y: x.masked_fill(y > 0, 1)),
    "labels of the host": (BOTH, lambda x, y: F.cross_entropy(x, torch.zeros(3, dtype=torch.long))),
    "buffer of the host": (BOTH, lambda x, y: nn.BatchNorm1d(4)(x)),
    "borders of the host": (BOTH, lambda x, y: torch.bucketize(x, y[0])),
    "numpy": ("can't convert cuda:0", lambda x, y: x.numpy()),
    "array": ("can't convert cuda:0", lambda x, y: np.asarray(x)),
    "pinned": ("cannot pin", lambda x, y: x.pin_memory()),
    "generator of the host": ("Expected a 'cuda'", lambda x, y: x.normal_(generator=torch.Generator())),
    "generator of the device": ("Expected a 'cpu'", lambda x, y: torch.randperm(3, generator=torch.Generator("cuda"))),
    "no kernel": ("Could not run", lambda x, y: torch.histogram(x, 3)),
    "product of integers": ("not implemented", lambda x, y: x.long() @ x.long().T),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_raises_where_cuda_raises(name: str, x: Tensor, y: Tensor) -> None:
    message, act = REFUSED[name]
    with pytest.raises((RuntimeError, TypeError, NotImplementedError), match=message):
        act(x, y)


def test_it_takes_what_cuda_takes(x: Tensor, y: Tensor) -> None:
    made = [
        x + torch.tensor(1.0), 2 * x, x[torch.tensor([0, 2])], x[y[:, 0] > 0], y.to(x), x.new_zeros(3), torch.zeros_like(x),
        x.new_tensor([1]), torch.tensor([1.0], device="cuda"), torch.as_tensor(np.ones(3), device="cuda"), y.cuda(),
        x.clone().copy_(y), x.quantile(0.5), x.unique(), torch.where(x > 0, x, torch.tensor(0.0)), copy.deepcopy(x),
        torch.randn(3, generator=torch.Generator("cuda"), device="cuda"), torch.linalg.svd(x)[0], torch.fft.rfft(x),
        x.cumsum(0), F.scaled_dot_product_attention(x[None], x[None], x[None]),
    ]  # fmt: skip
    assert {str(one.device) for one in made} == {"cuda:0"}
    assert {
        str(one.device) for one in (x.cpu(), y, torch.from_numpy(x.cpu().numpy()), x.to(y), torch.zeros_like(y))
    } == {"cpu"}
    assert x.to("cuda") is x
    assert x.cpu().tolist() == x.tolist() == np.arange(12.0).reshape(3, 4).tolist()
    x[0] = y[0]
    x[:, 1] = torch.tensor(5.0)
    assert x[0].tolist() == [1, 5, 1, 1]


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_moments_and_copies_lie_where_the_weights_do(device: Device, fused: bool) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.GRU(4, 4)).cuda()
    optimizer = torch.optim.AdamW(module.parameters(), fused=fused)
    module(torch.ones(3, 4, device="cuda"))[0].square().sum().backward()
    optimizer.step()
    state = [s["exp_avg"] for s in optimizer.state.values()]
    every = [p.grad for p in module.parameters()] + state + [*copy.deepcopy(module).state_dict().values()]
    assert {str(one.device) for one in every if one is not None} == {"cuda:0"}


def test_gradients_of_a_copy_go_back_to_where_the_weights_lie(device: Device) -> None:
    weight = torch.ones(2, requires_grad=True)
    (3 * weight.to("cuda")).sum().backward()
    assert weight.grad is not None
    assert (weight.grad.device.type, weight.grad.tolist()) == ("cpu", [3, 3])


def test_each_place_has_a_random_state(device: Device) -> None:
    torch.manual_seed(0)
    host = torch.rand(3)
    torch.manual_seed(0)
    state = torch.cuda.get_rng_state()
    first = F.dropout(torch.ones(64, device="cuda"))
    assert torch.equal(torch.rand(3), host)
    torch.cuda.set_rng_state(state)
    assert torch.equal(F.dropout(torch.ones(64, device="cuda")), first)
    assert not torch.equal(F.dropout(torch.ones(64, device="cuda")), first)


def test_copies_that_nobody_waited_for_have_not_arrived(x: Tensor, y: Tensor) -> None:
    found = x.to("cpu", non_blocking=True)
    assert found.isnan().all()
    torch.cuda.Event().synchronize()
    assert torch.equal(found, torch.arange(12.0).view(3, 4))
    pinned = y.pin_memory()
    pinned.to("cuda", non_blocking=True)
    pinned.zero_()
    with pytest.raises(RuntimeError, match="pinned memory was written"):
        torch.cuda.synchronize()


def test_autocast_of_the_host_does_nothing_on_the_device(x: Tensor) -> None:
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert (x @ x.T).dtype is torch.bfloat16
        assert torch.is_autocast_enabled("cuda")
        with torch.autocast("cpu", enabled=False):
            assert (x @ x.T).dtype is torch.bfloat16
        with torch.autocast("cuda", enabled=False):
            assert (x @ x.T).dtype is torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x.T).dtype is torch.float32


def test_without_a_deterministic_kernel_it_raises_if_told() -> None:
    with pretended_cuda(deterministic=True):
        x = torch.ones(3, device="cuda")
        with pytest.raises(RuntimeError, match="histc does not have a deterministic"):
            torch.histc(x)
        torch.bincount(x.long())


def test_afterwards_there_is_no_device() -> None:
    with pretended_cuda():
        assert torch.cuda.is_available()
    assert torch.zeros(1).device.type == "cpu"
    assert torch.Generator is torch._C.Generator
    assert torch.Tensor.to is torch._C.TensorBase.to
