"""Private names of torch and accelerate, each behind a public one, with a fallback for releases that lack it.

No other file uses such names, which may change without notice. `tests/core/test_compat.py` has a test of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.batchnorm import _NormBase as NormBase
from torch.optim import Optimizer

__all__ = [
    "BatchNorm",
    "NormBase",
]  # bases of every batch normalisation; of every layer that may keep running statistics

RESIZE_KERNELS = {"bicubic": "_upsample_bicubic2d_aa", "bilinear": "_upsample_bilinear2d_aa"}


def copy_each(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy sources[i] to targets[i], in few kernel launches."""
    _each("copy", targets, sources)


def lerp_each(targets: Sequence[Tensor], ends: Sequence[Tensor], weight: float | Sequence[Tensor]) -> None:
    """Move targets[i] by a share of the way to ends[i]: one number, in few kernel launches; or tensors [], one for each."""
    _each("lerp", targets, ends, weight)


def scale_each(targets: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply all targets by one factor [], in few kernel launches."""
    _each("mul", targets, factor)


def _each(name: str, targets: Sequence[Tensor], *arguments: Any) -> None:
    joined = getattr(torch, f"_foreach_{name}_", None)
    if joined is not None:
        if targets:
            joined(targets, *arguments)
        return
    for i, target in enumerate(targets):
        getattr(target, f"{name}_")(*(a[i] if isinstance(a, list | tuple) else a for a in arguments))


def skips_on_device(optimizer: Optimizer, skip: Tensor) -> bool:
    """Whether the optimizer's next step does nothing by itself if `skip` [] bool is true: parameters and moments stay, bit for bit.

    Fused optimizers, and ours, are told the flag, and read it on the device. For others the host must read it, and wait.
    """
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        return False
    optimizer.grad_scale, optimizer.found_inf = None, skip.float()  # type: ignore[attr-defined]
    return True


@cache
def attention_operations() -> frozenset[object]:
    """The operations into which attention is dispatched: fused kernels of every device, and that of texts with bounds."""
    names = ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
    packets = [getattr(torch.ops.aten, f"_scaled_dot_product_{name}", None) for name in names]
    with suppress(ImportError):
        import_module("torch.nn.attention.varlen")  # registers its operation
    packets.append(getattr(torch.ops.torch_attn, "_varlen_attn", None))
    return frozenset(packet.default for packet in packets if packet is not None)


def onednn_linear() -> Callable[[Tensor, Tensor], Tensor] | None:
    """oneDNN's x @ y.T of [n, k] and [m, k], float32 on the CPU, without gradient; None where it is unavailable."""
    kernel = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
    return None if kernel is None else lambda x, y: kernel(x, y, None, "none", [], "")


def resize_kernels() -> dict[str, Callable[..., Tensor]]:
    """Interpolation -> kernel(x, size, out) of `F.interpolate` with antialiasing; unavailable ones are missing."""
    packets = {mode: getattr(torch.ops.aten, name, None) for mode, name in RESIZE_KERNELS.items()}
    return {
        mode: _into(packet.out)
        for mode, packet in packets.items()
        if packet is not None and "out" in packet.overloads()
    }


def _into(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, size, out: kernel(x, size, False, None, None, out=out)


def graph_leaves(output: Tensor) -> set[int]:
    """The `id`s of the tensors that `output.backward()` would give a gradient, by a walk of the autograd graph."""
    found: set[int] = set()
    seen = set()
    stack = [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # AccumulateGrad, which has no public class to ask for
            found.add(id(node.variable))
        stack.extend(parent for parent, _ in node.next_functions)
    return found


def worker_processes(batches: Any) -> Sequence[BaseProcess]:
    """The worker processes of an iterator over a `DataLoader`, by number."""
    return batches._workers  # type: ignore[no-any-return]


def end_workers(batches: Any) -> None:
    """End the worker processes of an iterator over a `DataLoader` now, not at garbage collection."""
    batches._shutdown_workers()


def compiled_graphs() -> tuple[int, Mapping[str, int]]:
    """Graphs that torch.compile has made in this process so far, and reason -> number of graph breaks."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"], dict(counters["graph_break"])


def allow_graphs(count: int) -> None:
    """Let torch.compile make at least `count` graphs of one function before it gives up and runs it as it is."""
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, count)


def is_compiled(module: nn.Module) -> bool:
    """Whether `module.compile()` was called."""
    return module._compiled_call_impl is not None


def uncompile(module: nn.Module) -> None:
    """Undo `module.compile()`: the module runs as it is written."""
    module._compiled_call_impl = None


def record_memory(enabled: bool) -> None:
    """Begin or end the recording of allocations on CUDA devices, with their stacks."""
    torch.cuda.memory._record_memory_history(enabled="all" if enabled else None)


def save_memory_snapshot(path: Path) -> None:
    """Write the recorded allocations, for pytorch.org/memory_viz."""
    torch.cuda.memory._dump_snapshot(str(path))


def remembered_device() -> torch.device | None:
    """The device that accelerate chose for this process and reuses for later `Accelerator`s; None before the first one."""
    from accelerate.state import PartialState

    return PartialState().device if PartialState._shared_state else None


def forget_accelerator() -> None:
    """Let the next `Accelerator` choose its device anew."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
