"""What Python asks of tensors, and how it makes them, on the pretended device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.pretended.device import Device
from tests.pretended.places import ANY, DEVICE, HOST, is_pinned, pin, place_of, put, tensors_in

FACTORIES = (
    "zeros", "ones", "empty", "full", "arange", "linspace", "logspace", "eye", "rand", "randn", "randint", "randperm",
    "tril_indices", "triu_indices", "scalar_tensor", "hann_window", "hamming_window", "zeros_like", "ones_like", "empty_like",
    "full_like", "rand_like", "randn_like", "empty_strided",
)  # fmt: skip
_to, _tolist, _numpy, _new_tensor = Tensor.to, Tensor.tolist, Tensor.numpy, Tensor.new_tensor


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, device: Device, place: str, non_blocking: bool) -> Tensor:  # type: ignore[override]
        ctx.back = device, place_of(x)
        return device.moved(x, place, non_blocking)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        device, place = ctx.back
        return device.moved(gradient, place, False), None, None, None


def of_tensors(device: Device) -> dict[str, Any]:
    def place(x: Tensor) -> torch.device:
        if x.is_meta:
            return torch.device("meta")
        return torch.device(DEVICE if place_of(x) == DEVICE else "cpu")

    def to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        target, non_blocking, others = _arguments_of_to(*args, **kwargs)
        if x.is_meta or (target is not None and target.type == "meta"):
            return _to(x, *args, **kwargs)
        if target is not None and (target.type == "cuda") != (place_of(x) == DEVICE):
            x = _Move.apply(x, device, DEVICE if target.type == "cuda" else HOST, non_blocking)
        return _to(x, **others) if others else x

    def numpy(x: Tensor, *, force: bool = False) -> Any:
        if place_of(x) == DEVICE:
            if not force:
                raise TypeError(
                    "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
                )
            x = to(x.detach(), "cpu")
        return _numpy(x, force=force)

    def tolist(x: Tensor) -> Any:
        if place_of(x) == DEVICE:
            device.operations.waits()
        return _tolist(x)

    def pin_memory(x: Tensor, *_: Any) -> Tensor:
        if place_of(x) == DEVICE:
            raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
        return x if is_pinned(x) else pin(x.clone())

    return {
        "device": property(place),
        "is_cuda": property(lambda x: place_of(x) == DEVICE),
        "is_cpu": property(lambda x: not x.is_meta and place_of(x) != DEVICE),
        "get_device": lambda x: 0 if place_of(x) == DEVICE else -1,
        "to": to,
        "cpu": lambda x, **kwargs: to(x, "cpu", **kwargs),
        "cuda": lambda x, target=None, non_blocking=False, **kwargs: to(x, DEVICE, non_blocking=non_blocking, **kwargs),
        "numpy": numpy,
        "tolist": tolist,
        "pin_memory": pin_memory,
        "is_pinned": lambda x, *_: is_pinned(x),
        "record_stream": lambda x, stream: None,
        "new_tensor": lambda x, data, *, device=None, **kwargs: from_data(
            functools.partial(_new_tensor, x), data, device=device or place(x), **kwargs
        ),
    }


def _arguments_of_to(
    device: Any = None, dtype: Any = None, non_blocking: bool = False, copy: bool = False, *, memory_format: Any = None
) -> tuple[torch.device | None, bool, dict[str, Any]]:
    """(device, non_blocking, the other arguments) of `Tensor.to`, in any of its three forms."""
    if isinstance(device, torch.dtype):  # (dtype, non_blocking, copy)
        device, dtype, non_blocking, copy = (
            None,
            device,
            dtype or non_blocking,
            copy or (dtype is not None and non_blocking),
        )
    elif isinstance(device, Tensor):  # (other, non_blocking, copy)
        device, dtype, non_blocking, copy = device.device, device.dtype, dtype or non_blocking, copy
    others = {"dtype": dtype, "copy": copy, "memory_format": memory_format}
    target = None if device is None else torch.device(DEVICE if isinstance(device, int) else device)
    return target, bool(non_blocking), {name: value for name, value in others.items() if value}


def made_by_python(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What Python makes lies where it says: on the host without a device, however torch's own code treats it."""

    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> Tensor:
        out = factory(*args, **kwargs)
        asked = kwargs.get("device")
        if (place_of(out) == ANY and not out.is_meta) or (asked is not None and torch.device(asked).type == "cpu"):
            put(out, HOST)
        return out

    return make


def from_data(make: Callable[..., Tensor], data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
    """`torch.tensor` and its kin: on the device that is named, else on that of the data."""
    inside = [place_of(x) for x in tensors_in([data])]
    if isinstance(data, Tensor) and device is None:
        device = data.device
    target = torch.device("cpu" if device is None else device)
    if target.type == "meta":
        return make(data, *args, device=target, **kwargs)
    if isinstance(data, Tensor):
        same = (target.type == "cuda") == (DEVICE in inside)
        out = make(data, *args, **kwargs)
        return put(out, inside[0]) if same else Tensor.to(out, target)
    out = make(data, *args, **kwargs)
    return put(out, DEVICE if target.type == "cuda" else HOST)
