"""The two-process fixture itself: results by rank, tracebacks of children, timeouts, dead processes, and life after them."""

from __future__ import annotations

import os
import threading

import pytest
import torch
from torch import Tensor

from mmssl.core import distributed
from tests.distributed.processes import ChildError, Processes, _pack, _unpack


def add_rank(x: Tensor, more: dict[str, int]) -> dict[str, Tensor | int]:
    return {"x": x + distributed.rank(), "more": more["of"], "pid": os.getpid()}


def fail_on_second() -> int:
    if distributed.rank() == 1:
        raise KeyError("a child's own words")
    distributed.barrier()  # would wait for ever
    return 0


def die_on_first() -> None:
    if distributed.rank() == 0:
        os._exit(7)
    distributed.barrier()


def hang_on_second() -> None:
    if distributed.rank() == 1:
        threading.Event().wait()


def test_values_arrive_as_they_were_sent() -> None:
    turned, flags = torch.arange(6).view(2, 3).T, torch.tensor([True, False])
    sent = {"turned": [turned, ("x", None)], "more": {1: torch.tensor(1.5), "none": torch.ones(0, 2), "flags": flags}}
    came = _unpack(_pack(sent))
    assert torch.equal(came["turned"][0], turned)
    assert came["turned"][1] == ("x", None)
    assert (came["more"][1].item(), came["more"][1].shape) == (1.5, ())
    assert came["more"]["none"].shape == (0, 2)
    assert torch.equal(came["more"]["flags"], flags)
    came["more"][1].add_(1)  # each has memory of its own
    assert came["turned"][0].sum() == 15


def test_results_come_in_the_order_of_ranks_from_processes_that_stay(two_processes: Processes) -> None:
    arguments = [(torch.tensor([10.0]), {"of": 1}), (torch.tensor([20.0]), {"of": 2})]
    first, second = two_processes.run(add_rank, arguments)
    assert (first["x"].item(), first["more"]) == (10, 1)
    assert (second["x"].item(), second["more"]) == (21, 2)
    again = two_processes.run(add_rank, arguments)
    assert len({os.getpid(), first["pid"], second["pid"]}) == 3
    assert [r["pid"] for r in again] == [first["pid"], second["pid"]]


def test_failures_of_children_are_told_and_survived(two_processes: Processes) -> None:
    with pytest.raises(ChildError, match=r"(?s)in process 1 of 2.*fail_on_second.*a child's own words"):
        two_processes.run(fail_on_second)
    with pytest.raises(ChildError, match=r"process 0 died, exit code 7"):
        two_processes.run(die_on_first)
    two_processes.run(distributed.barrier)  # started anew
    with pytest.raises(TimeoutError, match=r"processes \[1\] of 2"):
        two_processes.run(hang_on_second, timeout=0.5)
    assert two_processes.run(distributed.rank) == [0, 1]
