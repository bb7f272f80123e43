"""Programs in processes that have imported torch already: what `python -m MODULE ...` does, without the seconds of its imports.

    with Program("pipelines.pretrain", recipe, f"output={folder}", folder=tmp_path) as run:
        run.until("step 3", 60)
        run.signal(signal.SIGTERM)
        assert run.wait(60) == 143, run.said()

Each is forked from a clean process, in which nothing but imports has happened; it has the environment, the signal handlers and the
exit code of a program that was started from a shell. Its reports have no curves, which take longer to draw than a tiny run.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

import torch

from mmssl.reporting import figures

T = TypeVar("T")

PRELOADED = [
    "tests.one_thread",
    "torch",
    "torch._dynamo",
    "accelerate",
    "mmssl.recipe.recipe",
    "mmssl.recipe.load",
    "mmssl.reporting.run_report",
    "mmssl.reporting.figures",
    "pipelines.command",
    "tests.training.toys",
    "tests.contracts.test_objectives",
]
"""Imported once, by the process that all others are forked from: with one thread, because a process that is forked from one with
threads of OpenMP waits for them forever. The first optimizer of a process imports torch._dynamo."""


def start_server() -> None:
    """Start the process that all others are forked from. Workers of a data stream share it, and start one of their own otherwise,
    from which all that is started here would import most of `PRELOADED` for itself."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
    try:
        multiprocessing.forkserver.ensure_running()  # as data workers start it, which share it: deaf to these signals
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def silent() -> Iterator[None]:
    """What is started here writes its standard output and standard error nowhere."""
    kept, nowhere = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(nowhere, number)
        yield
    finally:
        for number, file in zip((1, 2), kept, strict=True):
            os.dup2(file, number)
        for file in (*kept, nowhere):
            os.close(file)


def start(target: Callable[..., object], *arguments: object, daemon: bool = False) -> BaseProcess:
    """Call a function in a process in which torch is imported, with one thread, and with signals as a shell would have them."""
    start_server()
    process = multiprocessing.get_context("forkserver").Process(target=_begin, args=(target, *arguments), daemon=daemon)
    process.start()
    return process


def _begin(target: Callable[..., object], *arguments: object) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs the tests in the background
    torch.set_num_threads(1)
    target(*arguments)


def call(function: Callable[..., T], *arguments: Any, seconds: float = 120.0) -> T:
    """What a module-level function gives in such a process, where no test ran before.

    Raises:
        AssertionError: it raised, with its traceback; or it did not end in time.
    """
    ours, theirs = multiprocessing.Pipe()
    process = start(_answer, theirs, function, arguments)
    theirs.close()
    try:
        assert ours.poll(seconds), f"{function.__name__} still runs after {seconds} s"
        value, trouble = ours.recv()
    finally:
        process.kill()
        process.join()
    assert trouble is None, trouble
    return cast(T, value)


def _answer(pipe: Connection, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    try:
        pipe.send((function(*arguments), None))
    except BaseException:
        pipe.send((None, traceback.format_exc()))


class Program:
    """A module that runs as `__main__` in a process of its own; killed at the end of the `with` block.

    Args:
        module, arguments: what stands after `python -m`.
        folder: what it writes to its standard error goes to a file here.
        environment: variables besides those of this process.
    """

    def __init__(
        self, module: str, *arguments: object, folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._errors = folder / f"errors-{len(list(folder.glob('errors-*')))}"
        self._errors.touch()
        given = (module, [str(argument) for argument in arguments], {**os.environ, **(environment or {})})
        self._process = start(_become, *given, str(self._errors))

    def __enter__(self) -> Program:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.join()

    def signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait(self, seconds: float) -> int:
        """Its exit code.

        Raises:
            TimeoutError: it still runs; with what it said so far.
        """
        self._process.join(seconds)
        if self._process.exitcode is None:
            raise TimeoutError(f"a program still runs after {seconds} s; it said:\n{self.said()}")
        return self._process.exitcode

    def until(self, words: str, seconds: float) -> None:
        """Wait until it has said this.

        Raises:
            TimeoutError: it has not, and has ended or the time is over; with what it said.
        """
        deadline = time.monotonic() + seconds
        while words not in self.said():
            if not self._process.is_alive() or time.monotonic() > deadline:
                raise TimeoutError(f"a program did not say {words!r}; it said:\n{self.said()}")
            time.sleep(0.005)

    def said(self) -> str:
        """What stands on its standard error so far."""
        return self._errors.read_text()


def _become(module: str, arguments: list[str], environment: dict[str, str], errors: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_APPEND), sys.stderr.fileno())
    figures.chart_uri = lambda chart: "data:image/svg+xml;base64,"
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)
