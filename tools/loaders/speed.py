"""Speed of one loader: pictures per second of CPU time, and seconds to the first batch after a resume.

Every measurement is made in a separate process, forked from one that has imported the library: imports are not counted. JPEGs of
500 x 375 pixels are decoded and cropped to 224, as each library's examples do it; one process with two workers; files in the page
cache.
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from bench_loader import CpuClock, one_round

from loaders.adapter import CaptionedPicture, LoaderAdapter, LoaderSetting, NoState
from loaders.ranks import end_below

BATCH, WORKERS, CROP = 64, 2, 224
AHEAD = 2 * WORKERS


def read_samples(shards: Sequence[Path]) -> list[CaptionedPicture]:
    """The samples of `bench_loader.make_shards`."""
    found: dict[str, dict[str, bytes]] = {}
    for path in shards:
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                key, extension = member.name.split(".")
                found.setdefault(key, {})[extension] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return [CaptionedPicture(key, fields["jpg"], fields["txt"].decode()) for key, fields in found.items()]


class LoaderSpeed:
    """Measurements of one loader.

    Args:
        folder: where to write the loader's format, and its caches.
        samples: their number must allow for batches that are dropped, see `rate`.
    """

    def __init__(self, adapter: LoaderAdapter, folder: Path, samples: Sequence[CaptionedPicture]) -> None:
        self.adapter, self.folder, self.count = adapter, folder, len(samples)
        for name in ("data", "cache"):
            (folder / name).mkdir(parents=True)
        adapter.prepare(samples, folder / "data", max(1, len(samples) // 8))

    def rate(self, batches: int) -> float:
        """Pictures per second of CPU time of all processes, over some batches in the middle of an epoch."""
        self.adapter.clean()
        return float(forked(lambda: self._rate(batches)))

    def resume(self) -> float | None:
        """Seconds of wall time to open the loader, restore a position at 90 % of the epoch and get a batch; None: no state."""
        state = self.folder / "state"
        self.adapter.clean()
        if not state.exists() and not forked(lambda: self._save(state)):
            return None
        self.adapter.clean()
        return float(forked(lambda: self._resume(state)))

    def _setting(self) -> LoaderSetting:
        torch.set_num_threads(1)
        data, cache = self.folder / "data", self.folder / "cache"
        return LoaderSetting((data,), (1.0,), 0, 1, WORKERS, BATCH, self.count, cache, crop=CROP)

    def _rate(self, batches: int) -> float:
        stream = self.adapter.open(self._setting())
        iterator = iter(stream.batches())
        next(iterator)
        clock = CpuClock()
        clock.settle()
        cost = one_round(iterator, clock, batches, AHEAD)
        stream.close()
        return BATCH / cost["cpu"]

    def _save(self, state: Path) -> bool:
        stream = self.adapter.open(self._setting())
        for step, _ in enumerate(stream.batches(), 1):
            if step >= self.count * 9 // 10 // BATCH:
                break
        try:
            stream.save(state)
        except NoState:
            return False
        return True

    def _resume(self, state: Path) -> float:
        start = time.perf_counter()
        stream = self.adapter.open(self._setting())
        stream.restore((state,))
        next(iter(stream.batches()))
        return time.perf_counter() - start


def forked(action: Callable[[], Any]) -> Any:
    """Run in a forked process, and return its answer.

    Raises:
        RuntimeError: it raised; its traceback was printed.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            answer = json.dumps(action())
            os.write(writing, answer.encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            end_below()
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise RuntimeError("a measurement failed, see above")
    return json.loads(answer)
