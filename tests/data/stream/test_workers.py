from __future__ import annotations

import gc
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from mmssl.core.batch import Batch
from mmssl.core.errors import DataError
from mmssl.data.modalities.label import LabelModality, LabelView
from mmssl.data.shards.index import ShardIndex
from mmssl.data.stream.batches import EvalStream, TrainStream
from mmssl.data.stream.workers import StartMethod, Workers, iterate_loader
from tests import programs

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


class Weighing(LabelModality):
    """Tells at every 230th sample how much memory Python has in use in its process since the first one."""

    decoded = 0

    def extent(self, data: bytes, extension: str) -> None:
        return None

    def decode(self, data: bytes, extension: str, window: Any = None) -> int:
        if not tracemalloc.is_tracing():
            tracemalloc.start()
        Weighing.decoded += 1
        if Weighing.decoded % 230:
            return 0
        gc.collect()
        return tracemalloc.get_traced_memory()[0]


class Counting(LabelModality):
    """Tells how many threads torch uses in its process, as resampling of sounds does."""

    def extent(self, data: bytes, extension: str) -> None:
        return None

    def decode(self, data: bytes, extension: str, window: Any = None) -> int:
        return torch.get_num_threads()


class Buggy(LabelModality):
    """Has a bug of its own."""

    def extent(self, data: bytes, extension: str) -> None:
        return None

    def decode(self, data: bytes, extension: str, window: Any = None) -> int:
        raise RuntimeError("a bug")


def assert_flat(used: list[int]) -> None:
    """A table that outgrows its place does so once; what is never let go grows all the time."""
    assert min(after - before for before, after in pairwise(used)) < 5_000, used


def stream(folder: Path, kind: type[LabelModality], timeout: float = 60, method: StartMethod = "fork") -> TrainStream:
    modality = kind("label", ("cls",), {"value": LabelView(), "eval": LabelView()})
    workers = Workers(1, timeout=timeout, start_method=method)
    return TrainStream(
        ShardIndex.open([folder]), {"label": modality}, {"label": {"value": 1}}, batch_size=2, seed=0, workers=workers
    )


def test_a_worker_that_dies_is_named(folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"data worker stopped or stalled: DataLoader worker.*lower `workers`"
    ) as caught:
        next(stream(folder, Deadly))
    assert re.search(r"worker 0, dead: at key '00\d\d' \(sample \d+ at byte \d+ of .*\.tar\)", str(caught.value))


def test_a_worker_that_stalls_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"timed out after 0\.2 seconds.*raise `timeout`") as caught:
        next(stream(folder, Stalling, timeout=0.2))
    assert re.search(r"worker 0, alive: at key '00\d\d' \(sample", str(caught.value))


def test_workers_use_one_thread(folder: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)  # workers inherit it
    try:
        numbers = stream(folder, Counting)
        assert next(numbers)["label"]["value0"].tolist() == [1, 1]
        numbers.close()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def memory_over_epochs(folder: Path) -> list[int]:
    """Bytes that Python has allocated after 30, 50, 70 and 90 epochs; at first, what is made once is made."""
    numbers = TrainStream(
        ShardIndex.open([folder]),
        {"label": LabelModality("label", ("cls",), {"value": LabelView(), "eval": LabelView()})},
        {"label": {"value": 1}},
        batch_size=23,
        seed=0,
    )
    used: list[int] = []
    tracemalloc.start()
    try:
        for epoch in range(90):
            next(numbers)
            if epoch in (29, 49, 69, 89):
                gc.collect()
                used.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    return used


def test_memory_stays_flat_over_epochs(folder: Path) -> None:
    """What earlier tests left running allocates too."""
    assert_flat(programs.call(memory_over_epochs, folder))


def test_memory_of_workers_stays_flat_over_epochs(folder: Path) -> None:
    numbers = stream(folder, Weighing, method="forkserver")
    values = [int(value) for _ in range(23 * 25) for value in next(numbers)["label"]["value0"]]
    numbers.close()
    assert numbers.epoch == 50
    assert_flat([value for value in values if value])  # after every ten epochs


def test_files_and_shared_memory_stay_flat_over_passes(folder: Path) -> None:
    index = ShardIndex.open([folder])
    modality = LabelModality("label", ("cls",), {"value": LabelView(), "eval": LabelView()})
    stream = EvalStream(index, {"label": modality}, {"label": {"eval": 1}}, 4, Workers(2, start_method="fork"))
    open_files = []
    for _ in range(6):
        assert sum(len(batch) for batch in stream) == 23
        gc.collect()
        open_files.append(len(os.listdir("/proc/self/fd")))
    stream.close()
    assert open_files[-1] <= open_files[1]


class Pinned:
    """A loader whose batches are in pinned memory, as far as anyone can tell without a device."""

    num_workers, prefetch_factor, persistent_workers, pin_memory = 1, 2, True, True

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return Batch({}, torch.arange(2))


def test_pinned_batches_are_not_held() -> None:
    batches = iterate_loader(Pinned())  # type: ignore[arg-type]
    given = [weakref.ref(next(batches).index) for _ in range(3)]
    assert [index() for index in given[:2]] == [None, None]


def test_a_bug_stays_a_bug(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug") as caught:
        next(stream(folder, Buggy))
    assert not isinstance(caught.value, DataError)


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_outlive_signals_that_stop_the_run(folder: Path, method: StartMethod) -> None:
    """A fork server that earlier tests have started does not block signals."""
    programs.call(signal_workers, folder, method)


def signal_workers(folder: Path, method: StartMethod) -> None:
    before, mask = set(multiprocessing.active_children()), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    numbers = stream(folder, LabelModality, method=method)
    next(numbers)
    (worker,) = set(multiprocessing.active_children()) - before
    assert worker.pid is not None
    assert os.getpgid(worker.pid) != os.getpgid(0)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    os.kill(worker.pid, signal.SIGINT)
    parent = psutil.Process(worker.pid).ppid()
    for process in {worker.pid, parent} - {os.getpid()}:
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            os.kill(process, number)
    for _ in range(10):
        next(numbers)
    assert worker.is_alive()
    assert psutil.pid_exists(parent)
    numbers.close()
    worker.join(timeout=10)
    assert not worker.is_alive()


PROGRAM = """
import multiprocessing, signal, sys
from mmssl.data.shards.index import ShardIndex
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.stream.batches import TrainStream
from mmssl.data.stream.workers import StartMethod, Workers
stream = TrainStream(ShardIndex.open([sys.argv[1]]), {"label": LabelConfig().build("label")}, {"label": {"value": 1}},
                     batch_size=2, seed=0, workers=Workers(2, start_method=sys.argv[2]))
next(stream)
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
if sys.argv[3] == "wait":
    signal.pause()
"""


def program(folder: Path, method: str, end: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(folder), method, end]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_program_that_forgets_to_close_its_stream_ends(folder: Path) -> None:
    with program(folder, "fork", "leave") as running:
        try:
            assert running.wait(60) == 0
        finally:
            running.kill()


def test_workers_of_a_killed_program_end_and_leave_no_shared_memory(folder: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    with program(folder, "forkserver", "wait") as running:
        assert running.stdout is not None
        workers = [int(pid) for pid in running.stdout.readline().split()]
        running.kill()
    assert len(workers) == 2
    deadline = time.monotonic() + 60
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in workers):
        assert time.monotonic() < deadline, "workers outlive the program"
        threading.Event().wait(0.02)
    assert {name for name in os.listdir("/dev/shm") if name.startswith(f"torch_{running.pid}")} <= before
