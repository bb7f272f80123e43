"""A CUDA device that is pretended: tensors say that they lie on it, hold their values in host memory, and raise where CUDA would.

    with pretended_cuda() as device:
        run = recipe.build(launch)   # device: cuda

What it finds: tensors of both places in one operation; `numpy()` of the device's; generators of the wrong one; operations without a
CUDA kernel; random states that nobody kept; autocast of the wrong type of device; values read before they were copied; host waits
(`device.reads`). What it cannot find: speed, memory, bits, and the types that CUDA's autocast gives where the CPU's differs.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import varlen

from mmssl.core.compat import forget_accelerator
from mmssl.encoders import attend
from mmssl.losses import tiled_info_nce
from tests.pretended.device import Device
from tests.pretended.operations import Operations
from tests.pretended.tensors import FACTORIES, from_data, made_by_python, of_tensors

_Autocast = torch.autocast
_is_autocast, _autocast_dtype = torch.is_autocast_enabled, torch.get_autocast_dtype


class _PretendedAutocast(_Autocast):
    """CUDA's is the CPU's, as the values lie there. The CPU's does nothing to tensors of the device."""

    def __init__(self, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: Any = None) -> None:
        if device_type == "cpu":
            dtype, enabled = _autocast_dtype("cpu"), _is_autocast("cpu")
        super().__init__("cpu", dtype or torch.float16, enabled, cache_enabled)


@contextmanager
def pretended_cuda(*, deterministic: bool = False) -> Iterator[Device]:
    """Context in which torch has one CUDA device. Modules of it stay there: make them anew outside.

    Args:
        deterministic: operations without a deterministic kernel raise an error, as after `torch.use_deterministic_algorithms`.
    """
    device = Device()
    with ExitStack() as stack:
        for owner, values in _replaced(device):
            for name, value in values.items():
                stack.enter_context(mock.patch.object(owner, name, value, create=True))
        if deterministic:
            stack.enter_context(mock.patch.object(torch, "are_deterministic_algorithms_enabled", return_value=True))
        for forget in (forget_accelerator, attend._names_causality.cache_clear):
            forget()
            stack.callback(forget)
        stack.enter_context(device.operations)
        yield device
        device.synchronize()


def _replaced(device: Device) -> Iterator[tuple[Any, dict[str, Any]]]:
    yield Tensor, of_tensors(device)
    yield torch.cuda, _of_cuda(device)
    yield (
        torch.accelerator,
        {
            "is_available": lambda: True,
            "current_accelerator": lambda *_, **__: torch.device("cuda"),
            "current_device_index": lambda: 0,
            "set_device_index": lambda *_: None,
            "current_stream": device.Stream,
            "synchronize": device.synchronize,
        },
    )
    yield torch, {name: made_by_python(getattr(torch, name)) for name in FACTORIES if hasattr(torch, name)}
    yield (
        torch,
        {
            "tensor": functools.partial(from_data, torch.tensor),
            "as_tensor": functools.partial(from_data, torch.as_tensor),
            "asarray": functools.partial(from_data, torch.asarray),
            "Generator": device.Generator,
            "autocast": _PretendedAutocast,
            "is_autocast_enabled": lambda kind="cuda": kind != "cpu" and _is_autocast("cpu"),
            "get_autocast_dtype": lambda kind: torch.bfloat16 if kind == "cpu" else _autocast_dtype("cpu"),
        },
    )
    yield torch.amp, {"autocast": _PretendedAutocast}
    yield torch.amp.autocast_mode, {"autocast": _PretendedAutocast}
    yield torch.UntypedStorage, {"clone": _cloned_storage(torch.UntypedStorage.clone)}
    yield threading.Thread, {"run": _run_in(device.operations, threading.Thread.run)}
    yield (
        torch.backends.cudnn,
        {"is_acceptable": lambda x: False},
    )  # else weights of recurrent networks are packed by cuDNN
    yield varlen, {"varlen_attn": _text_by_text}
    yield tiled_info_nce, {"find_spec": lambda name: None}  # no Triton kernels
    yield torch._C, {"_group_tensors_by_device_and_dtype": _grouped(torch._C._group_tensors_by_device_and_dtype)}


def _of_cuda(device: Device) -> dict[str, Any]:
    def seed(number: int) -> None:
        device.generator.manual_seed(number)

    properties = SimpleNamespace(
        name="pretended", total_memory=80 << 30, major=9, minor=0, multi_processor_count=132, is_integrated=False
    )
    zero = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved", "current_device")
    nothing = ("set_device", "empty_cache", "reset_peak_memory_stats", "ipc_collect")
    return {
        **{name: lambda *_, **__: 0 for name in zero},
        **{name: lambda *_, **__: None for name in nothing},
        "_lazy_init": device.start,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: 1,
        "get_device_name": lambda *_: "pretended",
        "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: properties,
        "is_bf16_supported": lambda *_, **__: True,
        "mem_get_info": lambda *_: (80 << 30, 80 << 30),
        "synchronize": device.synchronize,
        "stream": lambda *_: nullcontext(),
        "device": lambda *_: nullcontext(),
        "current_stream": device.Stream,
        "default_stream": device.Stream,
        "Stream": device.Stream,
        "Event": device.Event,
        "manual_seed": seed,
        "manual_seed_all": seed,
        "initial_seed": device.generator.initial_seed,
        "get_rng_state": lambda *_: device.generator.get_state(),
        "set_rng_state": lambda state, *_: device.generator.set_state(state),
        "get_rng_state_all": lambda: [device.generator.get_state()],
        "set_rng_state_all": lambda states: device.generator.set_state(*states),
        "default_generators": (device.generator,),
        "memory_stats": lambda *_: {},
    }


def _cloned_storage(clone: Callable[..., Any]) -> Callable[..., Any]:
    def cloned(storage: Any) -> Any:
        made = clone(storage)
        if hasattr(storage, "place"):
            made.place = storage.place
        return made

    return cloned


def _grouped(group: Callable[..., Any]) -> Callable[..., Any]:
    """Optimizers ask by which device and type their tensors can be changed together."""

    def grouped(lists: Any, with_indices: bool = False) -> Any:
        found = group(lists, with_indices)
        return {(inside[0][0][0].device, dtype): inside for (_, dtype), inside in found.items()}

    return grouped


def _run_in(mode: Operations, run: Callable[..., None]) -> Callable[..., None]:
    def within(thread: threading.Thread) -> None:
        with copy.copy(mode):
            run(thread)

    return within


@functools.wraps(varlen.varlen_attn)
def _text_by_text(q: Tensor, k: Tensor, v: Tensor, of_q: Tensor, of_k: Tensor, *longest: int, **named: Any) -> Tensor:
    """Attention of texts that lie one after the other, for torch's kernel, which needs a GPU."""
    causal = named.get("is_causal", named.get("window_size") == (-1, 0))
    bounds = [x.cpu().unfold(0, 2, 1).tolist() for x in (of_q, of_k)]
    out = []
    for (q0, q1), (k0, k1) in zip(*bounds, strict=True):
        one = (x.transpose(0, 1) for x in (q[q0:q1], k[k0:k1], v[k0:k1]))
        out.append(F.scaled_dot_product_attention(*one, is_causal=causal).transpose(0, 1))
    return torch.cat(out)
