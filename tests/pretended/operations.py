"""Each operation of torch as CUDA would take it: which tensors may meet, which kernels exist, which generator draws."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.pretended.places import ANY, DEVICE, HOST, place_of, put, tensors_in

OURS = str(Path(__file__).resolve().parents[2] / "mmssl")
COPIES = {"copy_", "_foreach_copy_", "_to_copy", "set_", "_local_scalar_dense", "_pin_memory", "is_pinned"}
"""Operations that take tensors of both places."""
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
"""Operations that take indices of the host for values of the device."""
WITHOUT_SCALARS = {"stack", "cat", "mv", "dot", "scatter", "index_fill_"}
"""Operations that, unlike elementwise ones, take no number of the host beside tensors of the device."""
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "addmv", "mv", "dot", "addmm_", "addbmm"}
UNKNOWN_SIZES = {"nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim", "repeat_interleave"}
"""Operations whose result has a size that the host must read."""
CHOSEN_BY_BACKEND = ("_for_cpu", "_for_cpu_backward", "_nnpack_spatial_convolution")
"""Ends of names of kernels that torch chose because the values lie on the host."""
NOT_DETERMINISTIC = {
    "adaptive_avg_pool2d_backward", "avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "bincount",
    "grid_sampler_2d_backward", "histc", "kthvalue", "max_pool3d_with_indices_backward", "median", "nll_loss2d_forward",
    "put_", "reflection_pad1d_backward", "reflection_pad2d_backward", "replication_pad1d_backward",
    "replication_pad2d_backward", "upsample_bicubic2d_backward", "upsample_bilinear2d_backward",
    "upsample_linear1d_backward", "upsample_trilinear3d_backward", "_upsample_bilinear2d_aa_backward",
    "_upsample_bicubic2d_aa_backward", "adaptive_max_pool2d_backward", "fractional_max_pool2d_backward",
    "_ctc_loss_backward",
}  # fmt: skip
"""Operations of CUDA without a deterministic kernel (torch's documentation of `use_deterministic_algorithms`)."""


class Operations(TorchDispatchMode):
    """Runs every operation on the host's memory, after the checks of CUDA.

    Args:
        generator: torch's default one of the device.
        is_ours: whether a generator is the device's.
        arrive: called where the host waits for the device.

    Attributes:
        reads: "file:line" of mmssl where the host waited for a value or a size of the device, in order.
    """

    def __init__(
        self, generator: torch.Generator, is_ours: Callable[[torch.Generator], bool], arrive: Callable[[], None]
    ) -> None:
        super().__init__()
        self._generator, self._is_ours, self._arrive = generator, is_ours, arrive
        self.reads: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = list(tensors_in([*args, *kwargs.values()]))
        asked = kwargs.get("device")
        if (asked is not None and asked.type == "meta") or any(x.is_meta for x in given):
            return func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        places = [place_of(x) for x in given]
        if asked is not None and asked.type == "cuda":
            kwargs["device"], place = torch.device("cpu"), DEVICE
        elif DEVICE in places:
            place = DEVICE
        else:
            place = ANY if not given or all(place == ANY for place in places) else HOST
        if DEVICE in places:
            self._check(func, name, args, given, places)
            if name == "_local_scalar_dense" or name in UNKNOWN_SIZES or _has_mask(name, args):
                self.waits()
        drawn = torch.Tag.nondeterministic_seeded in func.tags
        out = self._drawn(func, args, kwargs, place) if drawn else func(*args, **kwargs)
        if place != HOST and name not in COPIES - {"_to_copy"}:
            for x in tensors_in([out]):
                if place == DEVICE or (place_of(x) == HOST and not _shares(x, given)):
                    put(x, place)
        return out

    def waits(self) -> None:
        """Note that the host waits for the device here."""
        self._arrive()
        frame = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(OURS):
            frame = frame.f_back
        self.reads.append(f"{frame.f_code.co_filename[len(OURS) + 1 :]}:{frame.f_lineno}" if frame else "")

    def _check(self, func: Any, name: str, args: Any, given: list[Tensor], places: list[str]) -> None:
        if name in COPIES:
            return
        if not _has_kernel(func):
            raise NotImplementedError(f"Could not run '{func._schema.name}' with arguments from the 'CUDA' backend")
        if name in INDEXING and place_of(args[0]) != HOST:
            given = [args[0], *args[2:3]]
            places = [place_of(x) for x in given if isinstance(x, Tensor)]
        strict = name in WITHOUT_SCALARS or name.startswith("_foreach")
        changed = [x for x, argument in zip(args, func._schema.arguments, strict=False) if _is_written(argument)]
        for x, place in zip(given, places, strict=False):
            if place == HOST and (strict or x.dim() > 0 or any(x is other for other in tensors_in(changed))):
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                    f"(in {func}, places {places}, shapes {[tuple(x.shape) for x in given]})"
                )
        if name in PRODUCTS and not (given[0].is_floating_point() or given[0].is_complex()):
            raise RuntimeError(f'"{name}_cuda" not implemented for {given[0].dtype}')
        if torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled():
            _check_deterministic(name, given)

    def _drawn(self, func: Any, args: Any, kwargs: dict[str, Any], place: str) -> Any:
        """Numbers of the given generator, which must be that of the place, or of the place's default one."""
        given = kwargs.get("generator")
        if given is not None and self._is_ours(given) != (place == DEVICE):
            wanted, got = ("cuda", "cpu") if place == DEVICE else ("cpu", "cuda")
            raise RuntimeError(f"Expected a '{wanted}' device type for generator but found '{got}' (in {func})")
        if given is not None or place != DEVICE:
            return func(*args, **kwargs)
        before = torch.default_generator.get_state()
        torch.default_generator.set_state(self._generator.get_state())
        try:
            return func(*args, **kwargs)
        finally:
            self._generator.set_state(torch.default_generator.get_state())
            torch.default_generator.set_state(before)


def _check_deterministic(name: str, given: Iterable[Tensor]) -> None:
    whole = {"histc", "bincount"}
    if name in NOT_DETERMINISTIC and (name not in whole or any(x.is_floating_point() for x in given)):
        raise RuntimeError(f"{name} does not have a deterministic implementation")


def _has_mask(name: str, args: Any) -> bool:
    return name in INDEXING and any(x.dtype in (torch.bool, torch.uint8) for x in tensors_in(args[1:2]))


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _shares(x: Tensor, given: Iterable[Tensor]) -> bool:
    return any(x.untyped_storage()._cdata == other.untyped_storage()._cdata for other in given)


@cache
def _has_kernel(func: Any) -> bool:
    name = func.name()
    if name.split(".")[0].endswith(CHOSEN_BY_BACKEND):
        return True
    keys = ("CUDA", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional", "CompositeImplicitAutograd")
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in keys)
