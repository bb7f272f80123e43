"""Private names of torch and accelerate are what mmssl takes them for: each test fails where a release changes one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmssl.core import compat

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def test_bases_of_normalisation() -> None:
    assert all(issubclass(layer, compat.BatchNorm) for layer in BATCH_NORMS)
    assert all(issubclass(layer, compat.NormBase) for layer in BATCH_NORMS + INSTANCE_NORMS)
    assert not any(issubclass(layer, compat.BatchNorm) for layer in INSTANCE_NORMS)
    assert not any(issubclass(layer, compat.NormBase) for layer in (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm))
    layer = compat.BatchNorm(3, 1e-3, 0.2, True, True)
    assert set(dict(layer.named_buffers())) == {"running_mean", "running_var", "num_batches_tracked"}


EACH: dict[str, tuple[Callable[..., None], tuple[Any, ...], Callable[[Tensor, int], Tensor]]] = {
    "copy": (compat.copy_each, ([torch.ones(2), torch.full((3,), 2)],), lambda x, i: torch.full_like(x, i + 1)),
    "lerp": (compat.lerp_each, ([torch.ones(2), torch.full((3,), 2.0)], 0.25), lambda x, i: x + (i + 1 - x) * 0.25),
    "mul": (compat.scale_each, (torch.tensor(0.5),), lambda x, i: x / 2),
}


@pytest.mark.parametrize("joined", [True, False], ids=["joined", "one by one"])
@pytest.mark.parametrize("name", EACH)
def test_functions_of_many_tensors(name: str, joined: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    function, arguments, expected = EACH[name]
    calls: list[int] = []
    kernel = getattr(torch, f"_foreach_{name}_")

    def counted(tensors: Sequence[Tensor], *others: Any) -> None:
        calls.append(len(tensors))
        kernel(tensors, *others)

    if joined:
        monkeypatch.setattr(torch, f"_foreach_{name}_", counted)
    else:
        monkeypatch.delattr(torch, f"_foreach_{name}_")
    before = [torch.tensor([4.0, 6.0]), torch.tensor([8.0, 1.0, 2.0])]
    targets = copy.deepcopy(before)
    function(targets, *arguments)
    for i, (target, x) in enumerate(zip(targets, before, strict=True)):
        torch.testing.assert_close(target, expected(x, i))
    assert calls == ([2] if joined else [])
    function([], *([] if isinstance(a, list) else a for a in arguments))


def test_products_by_onednn() -> None:
    product = compat.onednn_linear()
    if not torch.backends.mkldnn.is_available():
        assert product is None
        return
    assert product is not None, "the name is gone: find what compiled linear layers call"
    x, y = torch.randn(5, 7), torch.randn(3, 7)
    torch.testing.assert_close(product(x, y), x @ y.T)


@pytest.mark.parametrize("mode", compat.RESIZE_KERNELS)
def test_kernels_of_resizing(mode: str) -> None:
    kernel = compat.resize_kernels()[mode]
    x = torch.randint(0, 256, (1, 3, 20, 30), dtype=torch.uint8)
    out = torch.empty(1, 3, 8, 9, dtype=torch.uint8)
    kernel(x, (8, 9), out)
    assert torch.equal(out, F.interpolate(x, (8, 9), mode=mode, antialias=True))


def test_a_kernel_of_resizing_that_is_gone_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "RESIZE_KERNELS", {"bicubic": "_no_such_kernel"})
    assert compat.resize_kernels() == {}


def test_worker_processes_are_known_and_end_when_told() -> None:
    loader = DataLoader(list(range(8)), batch_size=2, num_workers=2, multiprocessing_context="fork")  # type: ignore[arg-type, var-annotated]
    batches = iter(loader)
    next(batches)
    workers = list(compat.worker_processes(batches))
    assert len(workers) == 2
    assert all(worker.is_alive() for worker in workers)
    compat.end_workers(batches)
    assert not any(worker.is_alive() for worker in workers)
    compat.end_workers(batches)  # a second time does nothing


def test_compiled_modules_are_told_and_undone() -> None:
    calls: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        calls.append(graph)
        return graph.forward

    layer = nn.Linear(2, 2)
    assert not compat.is_compiled(layer)
    graphs, breaks = compat.compiled_graphs()
    layer.compile(backend=backend)
    assert compat.is_compiled(layer)
    layer(torch.ones(1, 2))
    assert len(calls) == 1
    assert compat.compiled_graphs() == (graphs + 1, breaks)
    compat.uncompile(layer)
    assert not compat.is_compiled(layer)
    layer(torch.ones(3, 2).double().float())
    assert len(calls) == 1


def test_broken_graphs_are_counted() -> None:
    class Breaking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            torch._dynamo.graph_break()
            return x + 1

    module = Breaking()
    module.compile(backend="eager")
    before = compat.compiled_graphs()[1]
    module(torch.ones(2))
    after = compat.compiled_graphs()[1]
    assert sum(after.values()) == sum(before.values()) + 1


def test_leaves_of_a_graph_are_those_that_backward_fills() -> None:
    used, detached, idle = (torch.ones(2, requires_grad=True) for _ in range(3))
    output = (used * detached.detach() * 0).sum()
    assert compat.graph_leaves(output) == {id(used)}
    assert compat.graph_leaves(output.detach()) == set()
    output.backward()
    assert [x.grad is not None for x in (used, detached, idle)] == [True, False, False]


def test_accelerate_forgets_its_device() -> None:
    from accelerate import Accelerator

    compat.forget_accelerator()
    assert compat.remembered_device() is None
    Accelerator(cpu=True)
    assert compat.remembered_device() == torch.device("cpu")
    compat.forget_accelerator()
    assert compat.remembered_device() is None
