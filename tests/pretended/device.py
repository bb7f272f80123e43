"""The pretended device: its generators, streams and events, and copies to it and back."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.pretended.operations import Operations
from tests.pretended.places import DEVICE, HOST, is_pinned, pin, put


class Device:
    """The pretended device.

    Attributes:
        reads: see `Operations`.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._generators: dict[int, torch.Generator] = {}
        self.Generator = self._class_of_generators()
        self.generator = self.Generator("cuda")
        self.Stream, self.Event = (type(base.__name__, (base,), {"of": self}) for base in (Stream, Event))
        self.operations = Operations(self.generator, self.is_ours, self.synchronize)
        self.reads = self.operations.reads
        self._under_way: list[Callable[[], None]] = []

    def is_ours(self, generator: torch.Generator) -> bool:
        return generator._cdata in self._generators

    def _class_of_generators(self) -> type[torch.Generator]:
        """In place of `torch.Generator`."""
        ours = self._generators

        class Generator(torch.Generator):
            def __init__(self, device: torch.device | str = "cpu") -> None:
                if torch.device(device).type == "cuda":
                    ours[self._cdata] = self  # kept, so that no other gets its address

            def __new__(cls, device: torch.device | str = "cpu") -> Any:
                return super().__new__(cls)

            @property
            def device(self) -> torch.device:
                return torch.device(DEVICE if self._cdata in ours else "cpu")

        return Generator

    def synchronize(self, *_: Any) -> None:
        """Let all copies arrive."""
        while self._under_way:
            self._under_way.pop(0)()

    def start(self, *_: Any) -> None:
        """What torch does before anything of CUDA."""
        if os.getpid() != self._process:
            raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")

    def moved(self, x: Tensor, place: str, non_blocking: bool) -> Tensor:
        """A copy at another place. One that the host does not wait for arrives when it waits for the device."""
        self.start()
        out = put(x.clone(), place)
        if place == HOST and not non_blocking:
            self.operations.waits()
        elif place == HOST:
            arrived = x.detach().clone()
            put(out.detach().fill_(_garbage(x.dtype)), HOST)
            self._under_way.append(functools.partial(_fill, out, arrived))
            pin(out)
        elif non_blocking and is_pinned(x):
            self._under_way.append(functools.partial(_unchanged, x, out.detach().clone()))
        return out


class Stream:
    """A CUDA stream in which everything is done at once, but for copies: see `Device.moved`. A device has a subclass."""

    of: Device
    cuda_stream, device = 0, torch.device(DEVICE)

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def wait_stream(self, other: Any) -> None: ...
    def wait_event(self, other: Any) -> None: ...
    def record_event(self, event: Any = None) -> Any:
        return event or self.of.Event()

    def synchronize(self) -> None:
        self.of.synchronize()

    def query(self) -> bool:
        self.synchronize()
        return True

    def is_capturing(self) -> bool:
        return False


class Event(Stream):
    """A CUDA event, which has always come."""

    def record(self, stream: Any = None) -> None: ...
    def wait(self, stream: Any = None) -> None: ...
    def elapsed_time(self, other: Any) -> float:
        return 1.0


def _fill(out: Tensor, arrived: Tensor) -> None:
    out.detach().view(out.shape).copy_(arrived)


def _unchanged(source: Tensor, before: Tensor) -> None:
    if not torch.equal(source, put(before, HOST)):
        raise RuntimeError("pinned memory was written while it was copied to the device")


def _garbage(dtype: torch.dtype) -> float | int | bool:
    return float("nan") if dtype.is_floating_point else dtype == torch.bool or 77
