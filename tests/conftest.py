"""What the whole suite shares: fixtures, how tests are spread over processes, one thread for torch, because tiny tensors only
wait for the others, and a garbage collector that leaves modules and collected tests alone."""

import gc
import os

import pytest
import torch

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


def pytest_collection_finish() -> None:
    """Millions of objects of modules and tests are not looked through again."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first."""

    def turn(item: pytest.Item) -> int:
        return next((i for i, part in enumerate(LONGEST_FIRST) if part in item.path.parts), len(LONGEST_FIRST))

    items.sort(key=turn)
