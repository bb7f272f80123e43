"""How fast samples come, and which stage takes the time: what `mmssl bench data` does.

Stages are timed on one thread in CPU time, so that they mean something on a busy machine too; the rate of the whole loader is wall
time, and means something on a quiet one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mmssl.core.batch import Needs
from mmssl.core.errors import DataError
from mmssl.data.check_report import aligned
from mmssl.data.collate import Row, collate
from mmssl.data.decode import BadSample, decode_sample, make_views, select
from mmssl.data.index import ShardIndex
from mmssl.data.modality import DecodeError, Modality
from mmssl.data.shard_writer import Progress
from mmssl.data.stream import TrainStream
from mmssl.data.workers import Workers

MAX_SAMPLES = 20_000  # of the stages; more say no more


@dataclass(frozen=True)
class SpeedReport:
    """What a loader delivers.

    Attributes:
        samples: that the stages were timed on; unusable: others, which could not be decoded.
        sample_bytes: mean size of what is read of a sample; batch_bytes: mean size of what a batch holds of it.
        stages: microseconds of CPU time a sample on one thread: "read", "decode", "views", "collate"; "hand-over": of the process
            that takes the batches of workers.
        rate: samples a second of the whole loader; megabytes: the same in read megabytes a second.
        workers, cores, batch_size: that it was measured with.
        first_batch: seconds until it came.
        decode_rate: samples a second that decoding alone would allow on the cores in use; share: `rate` of it.
    """

    samples: int
    unusable: int
    sample_bytes: float
    batch_bytes: float
    stages: Mapping[str, float]
    rate: float
    megabytes: float
    workers: int
    cores: int
    batch_size: int
    first_batch: float
    decode_rate: float
    share: float

    def to_json(self) -> str:
        """Everything, as a JSON object."""
        return json.dumps(asdict(self), indent=1)

    def table(self) -> str:
        """The figures for people, lines of text."""
        total = sum(self.stages.values())
        rows: list[tuple[str, Any]] = [
            (name, f"{value:9.1f} us a sample  {value / total:5.0%}  {1e6 / value:>10,.0f} / CPU s" if value else "-")
            for name, value in self.stages.items()
        ]
        rows += [
            ("all stages", f"{total:9.1f} us a sample         {1e6 / total:>10,.0f} / CPU s"),
            ("sample", f"{self.sample_bytes:,.0f} bytes read, {self.batch_bytes:,.0f} bytes in a batch"),
            (
                "loader",
                f"{self.rate:,.0f} samples/s ({self.megabytes:,.1f} MB/s) with {self.workers} workers on {self.cores} cores",
            ),
            ("decoding alone", f"{self.decode_rate:,.0f} samples/s there; the loader has {self.share:.0%} of it"),
            ("first batch", f"after {self.first_batch:.1f} s"),
        ]
        if self.unusable:
            rows.append(("unusable", f"{self.unusable:,} samples: see `mmssl shards check`"))
        return "\n".join(aligned(rows))


def measure(
    index: ShardIndex,
    modalities: Mapping[str, Modality],
    needs: Needs,
    *,
    batch_size: int = 64,
    workers: int | Workers = 2,
    seconds: float = 5.0,
    progress: Progress | None = None,
) -> SpeedReport:
    """Time the stages, then the whole loader.

    Args:
        index: the samples; those that cannot be used are counted, and have substitutes in the loader.
        modalities, needs, batch_size, workers: as in `TrainStream`.
        seconds: for the stages, and again for the loader.
        progress: called with (tenths of seconds done, of all).

    Raises:
        DataError: no sample can be used, or fewer samples than a batch. ValueError: views that no modality has.
    """
    clock = _Clock(seconds, progress)
    chosen = select(modalities, needs)
    stages, samples, unusable, read_bytes = _stages(index, chosen, needs, batch_size, clock)
    stream = TrainStream(
        index, modalities, needs, batch_size=batch_size, seed=0, workers=workers, on_error="substitute",
        max_failures=1.0, rank=0, world=1,
    )  # fmt: skip
    try:
        start = time.perf_counter()
        batch = next(stream)
        first = time.perf_counter() - start
        options = Workers.of(workers)
        for _ in range(options.count * options.prefetch):  # made before the clock starts
            next(stream)
        start, cpu, count = time.perf_counter(), time.process_time(), 0
        while not count or clock.half(1, time.perf_counter() - start):
            next(stream)
            count += batch_size
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    finally:
        stream.close()
    if options.count:
        stages["hand-over"] = cpu / count * 1e6
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    decode_rate = 1e6 / max(stages["decode"], 1e-3) * min(cores, max(1, options.count))
    tensors = [x for views in batch.views.values() for x in views.values()]
    return SpeedReport(
        samples=samples,
        unusable=unusable,
        sample_bytes=read_bytes / samples,
        batch_bytes=sum(x.numel() * x.itemsize for x in tensors) / len(batch),
        stages=stages,
        rate=count / wall,
        megabytes=count / wall * read_bytes / samples / 1e6,
        workers=options.count,
        cores=cores,
        batch_size=batch_size,
        first_batch=first,
        decode_rate=decode_rate,
        share=count / wall / decode_rate,
    )


class _Clock:
    """Tells when a half of the measurement is over, and how far it is."""

    def __init__(self, seconds: float, progress: Progress | None) -> None:
        self.seconds, self.progress = seconds, progress

    def half(self, number: int, elapsed: float) -> bool:
        """Whether half `number` (0 or 1) goes on after so many seconds of it."""
        if self.progress is not None:
            done = number * self.seconds + min(elapsed, self.seconds)
            self.progress(round(10 * done), round(20 * self.seconds))
        return elapsed < self.seconds


def _stages(
    index: ShardIndex, modalities: Mapping[str, Modality], needs: Needs, batch_size: int, clock: _Clock
) -> tuple[dict[str, float], int, int, int]:
    """(microseconds a sample, samples, unusable ones, bytes read) of samples spread over all shards."""
    wanted = {extension for modality in modalities.values() for extension in modality.extensions}
    ordinals = np.unique(np.linspace(0, len(index) - 1, min(len(index), MAX_SAMPLES)).round().astype(int))
    ordinals = np.random.default_rng(0).permutation(ordinals)
    spent = dict.fromkeys(("read", "decode", "views", "collate"), 0.0)
    rows: list[Row] = []
    samples = unusable = size = done = 0
    began = time.perf_counter()
    now = time.thread_time
    for ordinal in ordinals.tolist():
        start = now()
        try:
            raw = index.read(ordinal, wanted)
            read = now()
            sample = decode_sample(raw, ordinal, modalities)
        except (BadSample, DecodeError):
            unusable += 1
            continue
        decoded = now()
        views = make_views(sample, modalities, needs, (0, 0, *index.identity(ordinal)))
        stop = now()
        rows.append(Row(ordinal, raw.key, views))
        samples, size = samples + 1, size + sum(map(len, raw.fields.values()))
        if samples > 1 or len(ordinals) == 1:  # the first one pays for what is imported and loaded on first use
            spent["read"] += read - start
            spent["decode"] += decoded - read
            spent["views"] += stop - decoded
            done += 1
        if len(rows) == batch_size:
            start = now()
            collate(rows, modalities, needs)
            spent["collate"] += now() - start
            rows = []
            if not clock.half(0, time.perf_counter() - began):
                break
    if not samples:
        raise DataError(f"none of {unusable} samples can be used: see `mmssl shards check`")
    if rows:
        start = now()
        collate(rows, modalities, needs)
        spent["collate"] += now() - start
    return {name: value / max(1, done) * 1e6 for name, value in spent.items()}, samples, unusable, size
