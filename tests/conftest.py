"""What the whole suite shares: fixtures, how tests are spread over processes, one thread for torch, because tiny tensors only
wait for the others, and a garbage collector that leaves modules and collected tests alone.

Nothing here imports torch at once: the process that hands out tests to others needs none, and they wait for it at the start.
"""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.distributed.processes import Processes

# Threads that wait leave the processor to other tests; OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
gc.disable()  # until all tests are collected: what is made before stays

LONGEST_FIRST = (
    "pipelines",
    "training",
    "faults",
    "tools",
    "contracts",
    "distributed",
    "data",
    "test_configs.py",
    "test_wheel.py",
)
"""Folders and files of tests/ by how long they take; each file goes to one process, and short files fill up the end."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process for each core, four at most, for folders; none besides this one for files and tests that are named."""
    named = any(".py" in argument for argument in config.args)
    return 0 if named else min(4, os.cpu_count() or 1)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Of many tests some start processes, which are forked from one that imports meanwhile."""
    if session.config.pluginmanager.has_plugin("dsession"):  # all tests run in other processes
        return
    import torch

    from tests import programs

    torch.set_num_threads(1)
    if "PYTEST_XDIST_WORKER" in os.environ:
        with programs.silent():  # nothing is captured yet
            programs.start_server()


def pytest_collection_finish() -> None:
    """Millions of objects of modules and tests are not looked through again."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first."""

    def turn(item: pytest.Item) -> int:
        return next((i for i, part in enumerate(LONGEST_FIRST) if part in item.path.parts), len(LONGEST_FIRST))

    items.sort(key=turn)


@pytest.fixture(scope="session", autouse=True)
def _commands_are_built_once() -> Iterator[None]:
    """The tree of all commands takes longer to build than many a command to run."""
    import typer.main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """The processes that all tests of a session share."""
    yield from _processes(tmp_path_factory, 2)


@pytest.fixture(scope="session")
def four_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Likewise, four of them."""
    yield from _processes(tmp_path_factory, 4)


def _processes(tmp_path_factory: pytest.TempPathFactory, world: int) -> Iterator[Processes]:
    from tests.distributed.processes import Processes

    processes = Processes(tmp_path_factory.mktemp("processes"), world=world)
    yield processes
    processes.stop()
