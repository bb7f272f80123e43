"""What the whole suite shares: fixtures, how tests are spread over processes, one thread for torch, because tiny tensors only
wait for the others, and a garbage collector that leaves modules and collected tests alone."""

import functools
import gc
import os
from collections.abc import Iterator

import pytest
import torch
import typer.main

from tests import programs
from tests.distributed.processes import four_processes as four_processes
from tests.distributed.processes import two_processes as two_processes

torch.set_num_threads(1)
gc.disable()  # until all tests are collected: what is made before stays

LONGEST_FIRST = ("pipelines", "training", "faults", "tools", "contracts", "distributed", "data", "test_configs.py")
"""Folders and files of tests/ by how long they take; each file goes to one process, and short files fill up the end."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process for each core, four at most, for folders; none besides this one for files and tests that are named."""
    named = any(".py" in argument for argument in config.args)
    return 0 if named else min(4, os.cpu_count() or 1)


def pytest_sessionstart() -> None:
    """Of many tests some start processes, which are forked from one that imports meanwhile."""
    if "PYTEST_XDIST_WORKER" in os.environ:
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        yield
