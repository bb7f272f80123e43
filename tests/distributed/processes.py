"""Two or four gloo processes that stay up and run functions by name: a test of collectives costs milliseconds, not a start.

    def sums(x: Tensor) -> Tensor:                 # at the top of a module
        return distributed.total(x)

    def test_sums(two_processes: Processes) -> None:
        first, second = two_processes.run(sums, [(torch.ones(2),), (torch.ones(2),)])

Arguments and results are what `torch.load(weights_only=True)` reads: tensors, numbers, strings, lists, tuples and dicts.
"""

from __future__ import annotations

import importlib
import io
import math
import multiprocessing
import os
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.programs import start

WORLD = 2
_TENSOR = " tensor"  # the only key of a dict that stands for one


class ChildError(AssertionError):
    """A function raised in a child; the message holds the child's traceback."""


class Processes:
    """Processes with a gloo group over a file store in `folder`; started on first use, and anew after a failure.

    Args:
        folder: a directory for the stores.
        timeout: seconds that one call may take, the start of the processes included.
        world: how many.
    """

    def __init__(self, folder: Path, timeout: float = 120.0, world: int = WORLD) -> None:
        self.folder, self.timeout, self.world = folder, timeout, world
        self.children: list[tuple[BaseProcess, Connection]] = []

    def run(
        self,
        function: Callable[..., Any],
        arguments: Sequence[tuple[Any, ...]] | None = None,
        timeout: float | None = None,
    ) -> list[Any]:
        """Call a module-level function in every process, in process r with `arguments[r]` or none; the results by rank.

        Raises:
            ChildError: it raised, or its process died; with that process' traceback.
            TimeoutError: some process did not answer; says which.
        """
        arguments = ((),) * self.world if arguments is None else arguments
        assert len(arguments) == self.world, f"got arguments for {len(arguments)} processes, wanted {self.world}"
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        if not self.children:
            self._start()
        try:
            for (_, pipe), given in zip(self.children, arguments, strict=True):
                pipe.send_bytes(_pack((function.__module__, function.__qualname__, given)))
            return self._answers(deadline)
        except BaseException:
            self.stop()  # the other process may wait in a collective for ever
            raise

    def stop(self) -> None:
        """End the processes; the next call starts new ones."""
        for process, pipe in self.children:
            pipe.close()
            process.kill()
            process.join()
        self.children = []

    def _start(self) -> None:
        store = self.folder / uuid.uuid4().hex  # a store file must not be used twice
        for rank in range(self.world):
            ours, theirs = multiprocessing.Pipe()
            process = start(_serve, rank, self.world, str(store), self.timeout, theirs, daemon=True)
            theirs.close()
            self.children.append((process, ours))

    def _answers(self, deadline: float) -> list[Any]:
        waiting = {pipe: rank for rank, (_, pipe) in enumerate(self.children)}
        results: dict[int, Any] = {}
        while waiting:
            ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"processes {sorted(waiting.values())} of {self.world} did not answer in time")
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = waiting.pop(pipe)
                try:
                    fine, value = _unpack(pipe.recv_bytes())
                except EOFError:
                    raise self._death(rank) from None
                if not fine:
                    self._look_for_the_dead(waiting)
                    raise ChildError(f"in process {rank} of {self.world}:\n{value}")
                results[rank] = value
        return [results[rank] for rank in range(self.world)]

    def _look_for_the_dead(self, waiting: dict[Connection, int]) -> None:
        """A process that failed may have missed one that died: its death is the news."""
        for pipe in wait(list(waiting), 0.5):
            assert isinstance(pipe, Connection)
            try:
                pipe.recv_bytes()
            except EOFError:
                raise self._death(waiting[pipe]) from None

    def _death(self, rank: int) -> ChildError:
        process, _ = self.children[rank]
        process.join(5)
        return ChildError(f"process {rank} died, exit code {process.exitcode}")


def _serve(rank: int, world: int, store: str, timeout: float, pipe: Connection) -> None:
    """The life of a child: join the group, then answer calls until the pipe closes."""
    if sys.platform.startswith("linux"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a machine's own name need not resolve
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=timeout)
    )
    while True:
        try:
            module, name, given = _unpack(pipe.recv_bytes())
        except EOFError:
            return
        try:
            answer = _pack((True, getattr(importlib.import_module(module), name)(*given)))
        except BaseException:
            answer = _pack((False, traceback.format_exc()))
        pipe.send_bytes(answer)


def _pack(value: Any) -> bytes:
    """Tensors of one type lie in one: to save and load many takes longer than most of what they come from."""
    flat: dict[torch.dtype, list[Tensor]] = {}
    file = io.BytesIO()
    placed = _place(value, flat)
    torch.save((placed, {_name(dtype): torch.cat(parts) for dtype, parts in flat.items()}), file)
    return file.getvalue()


def _place(value: Any, flat: dict[torch.dtype, list[Tensor]]) -> Any:
    """The value with the type and shape of each tensor in its place; the tensors themselves go to `flat`."""
    if isinstance(value, Tensor):
        flat.setdefault(value.dtype, []).append(value.detach().flatten())
        return {_TENSOR: (_name(value.dtype), list(value.shape))}
    if isinstance(value, dict):
        return {key: _place(one, flat) for key, one in value.items()}
    return type(value)(_place(one, flat) for one in value) if isinstance(value, list | tuple) else value


def _unpack(data: bytes) -> Any:
    placed, flat = torch.load(io.BytesIO(data), weights_only=True)
    return _take(placed, flat, dict.fromkeys(flat, 0))


def _take(placed: Any, flat: dict[str, Tensor], begin: dict[str, int]) -> Any:
    """What `_place` was given."""
    if isinstance(placed, dict) and _TENSOR in placed:
        name, shape = placed[_TENSOR]
        start, begin[name] = begin[name], begin[name] + math.prod(shape)
        return flat[name][start : begin[name]].view(shape).clone()
    if isinstance(placed, dict):
        return {key: _take(one, flat, begin) for key, one in placed.items()}
    return type(placed)(_take(one, flat, begin) for one in placed) if isinstance(placed, list | tuple) else placed


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
