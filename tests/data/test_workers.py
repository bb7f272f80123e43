from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from mmssl.core.errors import DataError
from mmssl.data.index import ShardIndex
from mmssl.data.label import LabelModality, LabelView
from mmssl.data.stream import TrainStream
from mmssl.data.workers import Workers

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores


class Deadly(LabelModality):
    """Ends its process at the first sample."""

    def extent(self, data: bytes, extension: str) -> None:
        return None

    def decode(self, data: bytes, extension: str, window: Any = None) -> int:
        os._exit(7)


class Stalling(LabelModality):
    """Waits for something that does not come."""

    def extent(self, data: bytes, extension: str) -> None:
        return None

    def decode(self, data: bytes, extension: str, window: Any = None) -> int:
        threading.Event().wait(0.8)
        return 0


class Buggy(LabelModality):
    """Has a bug of its own."""

    def extent(self, data: bytes, extension: str) -> None:
        return None

    def decode(self, data: bytes, extension: str, window: Any = None) -> int:
        raise RuntimeError("a bug")


def stream(folder: Path, kind: type[LabelModality], timeout: float = 60) -> TrainStream:
    modality = kind("label", ("cls",), {"value": LabelView(), "eval": LabelView()})
    workers = Workers(1, timeout=timeout, start_method="fork")
    return TrainStream(
        ShardIndex.open([folder]), {"label": modality}, {"label": {"value": 1}}, batch_size=2, seed=0, workers=workers
    )


def test_a_worker_that_dies_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"data worker stopped or stalled: DataLoader worker.*lower `workers`"):
        next(stream(folder, Deadly))


def test_a_worker_that_stalls_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"timed out after 0\.2 seconds.*raise `timeout`"):
        next(stream(folder, Stalling, timeout=0.2))


def test_a_bug_stays_a_bug(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug") as caught:
        next(stream(folder, Buggy))
    assert not isinstance(caught.value, DataError)


def test_workers_outlive_signals_that_stop_the_run(folder: Path) -> None:
    before = set(multiprocessing.active_children())
    numbers = stream(folder, LabelModality)
    next(numbers)
    (worker,) = set(multiprocessing.active_children()) - before
    assert worker.pid is not None
    assert os.getpgid(worker.pid) != os.getpgid(0)
    os.kill(worker.pid, signal.SIGINT)
    for _ in range(10):
        next(numbers)
    assert worker.is_alive()
    numbers.close()
    worker.join(timeout=10)
    assert not worker.is_alive()
