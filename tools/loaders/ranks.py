"""One run of a loader: its processes, forked at the same time, what each delivers, and how each ends.

A process appends a line of JSON for each batch to a separate file, so that a kill loses nothing of the record.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
import time
import traceback
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import psutil
import torch
import torch.distributed

from loaders.adapter import Item, LoaderAdapter, LoaderSetting, LoaderStream, NoState


@dataclass(frozen=True)
class LoaderJob:
    """A run to be made.

    Attributes:
        folders, weights, draws: as in `LoaderSetting`.
        world, workers: processes, and DataLoader workers of each.
        batch: global batch.
        steps: batches after which each process stops, at most.
        again: start the next epoch where one ends before `steps`.
        save_every: steps between two saved positions; 0: none is saved.
        resume: files of a saved position, one a process that saved.
        kill_at: step after which all processes are killed; 0: none.
        seconds: after which the run counts as hanging, and is killed.
    """

    folders: tuple[Path, ...]
    weights: tuple[float, ...]
    draws: int
    world: int
    workers: int
    batch: int
    steps: int
    again: bool = False
    save_every: int = 0
    resume: tuple[Path, ...] = ()
    kill_at: int = 0
    seconds: float = 60


@dataclass
class Rank:
    """What one process did.

    Attributes:
        batches: delivered, in order.
        end: "end" (of the epoch), "steps", "error", "no state", "killed" or "hangs".
        error: type and message of the exception.
        reports: see `LoaderStream.reports`.
        first: seconds from opening the loader to its first batch.
    """

    batches: list[list[Item]] = field(default_factory=list)
    end: str = "hangs"
    error: str = ""
    reports: list[str] = field(default_factory=list)
    first: float = 0.0


@dataclass(frozen=True)
class LoaderRun:
    """What all processes did.

    Attributes:
        ranks: in their order.
        log: lines that they and their workers printed.
        folder: of the run, with saved positions.
    """

    ranks: list[Rank]
    log: list[str]
    folder: Path

    @property
    def end(self) -> str:
        """How the run ended: the worst of the ends of its processes."""
        ends = [rank.end for rank in self.ranks]
        return next((end for end in ("hangs", "error", "no state", "killed") if end in ends), ends[0])

    @property
    def error(self) -> str:
        """The first error."""
        return next((rank.error for rank in self.ranks if rank.error), "")

    def steps(self) -> list[list[Item]]:
        """The global batch of each step, in the order of the processes."""
        most = max(len(rank.batches) for rank in self.ranks)
        return [
            [item for rank in self.ranks for item in (rank.batches[step : step + 1] or [[]])[0]] for step in range(most)
        ]

    def saved(self, step: int) -> tuple[Path, ...]:
        """Files of the position that was saved after a step, one a process; empty if none was."""
        return tuple(sorted(self.folder.glob(f"state{step:04d}.rank*")))


def run(adapter: LoaderAdapter, job: LoaderJob, folder: Path) -> LoaderRun:
    """Fork the processes, wait for them, and read their records. No process of the run is left."""
    folder.mkdir(parents=True)
    (folder / "scratch").mkdir()
    adapter.clean()
    reached, reach = os.pipe()
    pids = []
    for rank in range(job.world):
        pid = os.fork()
        if pid == 0:
            _child(adapter, job, rank, folder, reach)
        pids.append(pid)
    killed = _wait(pids, reached, job)
    os.close(reached)
    os.close(reach)
    ranks = [_read(folder / f"rank{rank}.jsonl") for rank in range(job.world)]
    for each in ranks:
        if each.end == "hangs" and killed == "at a step":
            each.end = "killed"
        elif each.end == "hangs" and not killed:
            each.end, each.error = "error", "the process died"
    log = [
        line
        for rank in range(job.world)
        for line in (folder / f"rank{rank}.log").read_text(errors="replace").splitlines()
    ]
    return LoaderRun(ranks, log, folder)


def _wait(pids: list[int], reached: int, job: LoaderJob) -> str:
    """Wait until all processes have ended. Returns why they were killed, or nothing."""
    waiting = {os.pidfd_open(pid): pid for pid in pids}
    poll, deadline, arrived, why = select.poll(), time.monotonic() + job.seconds, 0, ""
    for descriptor in (*waiting, reached):
        poll.register(descriptor, select.POLLIN)
    while waiting:
        events = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not events:
            why, deadline = why or "out of time", time.monotonic() + 60
            _kill(waiting.values())
        for descriptor, _ in events:
            if descriptor == reached:
                arrived += len(os.read(reached, 64))
                if arrived == job.world:
                    why = "at a step"
                    _kill(waiting.values())
            else:
                os.waitpid(waiting.pop(descriptor), 0)
                poll.unregister(descriptor)
                os.close(descriptor)
    return why


def _kill(pids: Any) -> None:
    """SIGKILL to these processes and all below them."""
    found = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            found += [process, *process.children(recursive=True)]
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def end_below() -> None:
    """SIGKILL to all processes below this one."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _read(path: Path) -> Rank:
    rank = Rank()
    for line in path.read_text().splitlines():
        with suppress(json.JSONDecodeError):  # cut by a kill
            event = json.loads(line)
            if "items" in event:
                rank.batches.append([(key, print_) for key, print_ in event["items"]])
            else:
                vars(rank).update(event)
    return rank


def _child(adapter: LoaderAdapter, job: LoaderJob, rank: int, folder: Path, reach: int) -> NoReturn:
    """The life of one process."""
    record = os.open(folder / f"rank{rank}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(event: dict[str, Any]) -> None:
        os.write(record, (json.dumps(event) + "\n").encode())

    stream, end, error = None, "error", ""
    try:
        _prepare(job, rank, folder)
        share = LoaderSetting(
            job.folders,
            job.weights,
            rank,
            job.world,
            job.workers,
            job.batch // job.world,
            job.draws,
            folder / "scratch",
        )
        start = time.perf_counter()
        stream = adapter.open(share)
        if job.resume:
            stream.restore(job.resume)
        end = _deliver(stream, job, rank, folder, write, start, reach)
    except NoState:
        end = "no state"
    except BaseException as caught:
        traceback.print_exc()
        error = f"{type(caught).__name__}: {caught}"
    try:
        write({"end": end, "error": error, "reports": [] if stream is None else stream.reports()})
        if stream is not None:
            stream.close()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        end_below()
        os._exit(0)


def _prepare(job: LoaderJob, rank: int, folder: Path) -> None:
    """Environment, output and process group, as a launcher would set them."""
    log = os.open(folder / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, force=True)
    logging.captureWarnings(True)
    warnings.resetwarnings()  # and then those that Python shows to users
    for silent in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", silent)
    for name in ("RANK", "LOCAL_RANK"):
        os.environ[name] = str(rank)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ[name] = str(job.world)
    torch.set_num_threads(1)
    if job.world > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        store = f"file://{folder}/store"
        torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=job.world)


def _deliver(
    stream: LoaderStream, job: LoaderJob, rank: int, folder: Path, write: Any, start: float, reach: int
) -> str:
    """Take and record batches; returns how it ended."""
    step = 0
    while True:
        before = step
        for batch in stream.batches():
            if step == 0:
                write({"first": time.perf_counter() - start})
            step += 1
            write({"items": stream.items(batch)})
            if job.save_every and step % job.save_every == 0:
                part = folder / f"part.rank{rank}"
                stream.save(part)
                part.rename(folder / f"state{step:04d}.rank{rank}")
            if step == job.kill_at:
                os.write(reach, b"x")
                signal.pause()
            if step >= job.steps:
                return "steps"
        if not job.again or step == before:
            return "end"
