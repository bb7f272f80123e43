"""Inputs that wait run together; order, kinds, errors, cancelled ones, the end."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from mmssl.serving.batcher import Batcher


class Slow:
    """Doubles its inputs; the first call waits until it is let go."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []
        self.began, self.go = threading.Event(), threading.Event()

    def __call__(self, kind: str, inputs: Sequence[int]) -> list[Any]:
        self.calls.append((kind, list(inputs)))
        self.began.set()
        assert self.go.wait(10)
        return [ValueError("odd") if one % 2 else 2 * one for one in inputs]


def test_inputs_that_wait_run_together_by_kind_and_age() -> None:
    slow = Slow()
    batcher = Batcher(slow, largest=3)
    first = batcher.submit("a", [0])
    assert slow.began.wait(10)
    later = [batcher.submit(kind, [one])[0] for kind, one in (("a", 2), ("b", 4), ("a", 6), ("a", 8), ("a", 10))]
    assert len(batcher) == 5
    slow.go.set()
    assert [future.result(10) for future in (*first, *later)] == [0, 4, 8, 12, 16, 20]
    assert slow.calls == [("a", [0]), ("a", [2, 6, 8]), ("b", [4]), ("a", [10])]
    batcher.close()


def test_an_input_fails_alone_and_a_cancelled_one_is_not_computed() -> None:
    slow = Slow()
    batcher = Batcher(slow, largest=8)
    batcher.submit("a", [0])
    assert slow.began.wait(10)
    good, odd, left = batcher.submit("a", [2, 3, 4])
    assert left.cancel()
    slow.go.set()
    assert good.result(10) == 4
    with pytest.raises(ValueError, match="odd"):
        odd.result(10)
    assert slow.calls[1:] == [("a", [2, 3])]
    batcher.close()


def test_a_call_that_fails_fails_its_inputs_and_no_others() -> None:
    def run(kind: str, inputs: Sequence[int]) -> list[int]:
        if kind == "bad":
            raise MemoryError("too much")
        return list(inputs)

    batcher = Batcher(run, largest=8)
    for future in batcher.submit("bad", [1, 2]):
        with pytest.raises(MemoryError):
            future.result(10)
    assert [future.result(10) for future in batcher.submit("good", [1, 2])] == [1, 2]
    batcher.close()


def test_what_waits_is_finished_at_the_end() -> None:
    slow = Slow()
    batcher = Batcher(slow, largest=1)
    futures = batcher.submit("a", [0, 2, 4])
    slow.go.set()
    batcher.close()
    assert [future.result(0) for future in futures] == [0, 4, 8]
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit("a", [6])
