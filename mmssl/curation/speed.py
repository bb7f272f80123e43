"""Throughput of the data loader and the CPU time of each stage: what `mmssl bench data` does.

Stages are timed on one thread in CPU time, which is meaningful on a busy machine too. The rate of the whole loader is in wall
time, which is meaningful on an idle machine only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

from mmssl.core.batch import Needs
from mmssl.core.errors import DataError
from mmssl.curation.check_report import aligned_lines
from mmssl.data.draws import draw_views, make_views
from mmssl.data.modality import Modality
from mmssl.data.samples import BadSample
from mmssl.data.shards.writer import Progress
from mmssl.data.stream.batches import TrainStream
from mmssl.data.stream.collate import BatchRow, collate
from mmssl.data.stream.config import DataConfig
from mmssl.data.stream.rows import Rows
from mmssl.data.synchronized.partners import draw_partners

MAX_SAMPLES = 20_000  # of the stages; more do not change the result


@dataclass(frozen=True)
class SpeedReport:
    """Throughput of a data loader.

    Attributes:
        samples: number that the stages were timed on; unusable: number that could not be decoded.
        sample_bytes: mean bytes read for a sample; batch_bytes: mean bytes of a sample in a batch.
        stages: microseconds of CPU time a sample on one thread: "read", "decode", "synchronized" (only if the
            recipe has synchronized operations), "views", "collate"; "hand-over": the main process, taking batches from the workers.
        rate: samples a second of the whole loader; megabytes: megabytes read a second.
        workers, cores, batch_size: settings of the measurement.
        first_batch: seconds until the first batch.
        decode_rate: samples a second if the cores in use did nothing but decode; share: `rate / decode_rate`.
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

    def table(self) -> str:
        """The report as a text table."""
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
            (
                "decoding alone",
                f"{self.decode_rate:,.0f} samples/s on these cores; the loader reaches {self.share:.0%} of it",
            ),
            ("first batch", f"after {self.first_batch:.1f} s"),
        ]
        if self.unusable:
            rows.append(("unusable", f"{self.unusable:,} samples: see `mmssl shards check`"))
        return "\n".join(aligned_lines(rows))


def measure_loader(
    data: DataConfig,
    modalities: Mapping[str, Modality],
    needs: Needs,
    *,
    batch_size: int = 64,
    seconds: float = 5.0,
    progress: Progress | None = None,
) -> SpeedReport:
    """Time the stages, then the whole loader, on samples in the order of training. `data.audit` is not written.

    Args:
        data: the shards, workers and synchronized operations. Unusable samples are counted, and replaced in the loader.
        modalities, needs: as in `TrainStream`.
        batch_size: of the loader; at most the number of all samples.
        seconds: duration of the measurement of the stages, and of that of the loader.
        progress: called with (tenths of seconds done, of all).

    Raises:
        DataError: no sample is usable, or a source has too few for its weight. ValueError: views that no modality has.
    """
    clock = _Clock(seconds, progress)
    tolerant = data.model_copy(update={"on_error": "substitute", "max_failures": 1.0, "audit": None})
    sources = tolerant.open()
    batch_size = min(batch_size, sum(len(source.index) for source in sources))
    stream = tolerant.stream(sources, modalities, needs, batch_size=batch_size, seed=0)
    stages, samples, unusable, read_bytes = _stages(stream, batch_size, clock)
    try:
        start = time.perf_counter()
        batch = next(stream)
        first = time.perf_counter() - start
        for _ in range(data.workers * data.prefetch):  # made before the clock starts
            next(stream)
        start, cpu, count = time.perf_counter(), time.process_time(), 0
        while not count or clock.continues(1, time.perf_counter() - start):
            next(stream)
            count += batch_size
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    finally:
        stream.close()
    if data.workers:
        stages["hand-over"] = cpu / count * 1e6
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    decode_rate = 1e6 / max(stages["decode"], 1e-3) * min(cores, max(1, data.workers))
    tensors = [x for views in batch.views.values() for x in views.values()]
    return SpeedReport(
        samples=samples,
        unusable=unusable,
        sample_bytes=read_bytes / samples,
        batch_bytes=sum(x.numel() * x.itemsize for x in tensors) / len(batch),
        stages=stages,
        rate=count / wall,
        megabytes=count / wall * read_bytes / samples / 1e6,
        workers=data.workers,
        cores=cores,
        batch_size=batch_size,
        first_batch=first,
        decode_rate=decode_rate,
        share=count / wall / decode_rate,
    )


class _Clock:
    """Time limit and progress of the two halves of the measurement: stages, then loader."""

    def __init__(self, seconds: float, progress: Progress | None) -> None:
        self.seconds, self.progress = seconds, progress

    def continues(self, number: int, elapsed: float) -> bool:
        """Whether half `number` (0 or 1) continues after `elapsed` seconds of it."""
        if self.progress is not None:
            done = number * self.seconds + min(elapsed, self.seconds)
            self.progress(round(10 * done), round(20 * self.seconds))
        return elapsed < self.seconds


def _stages(stream: TrainStream, batch_size: int, clock: _Clock) -> tuple[dict[str, float], int, int, int]:
    """(microseconds a sample, samples, unusable ones, bytes read) of the first batches of a stream."""
    rows = stream.rows
    spent = dict.fromkeys(("read", "decode", "synchronized", "views", "collate"), 0.0)
    made: list[BatchRow] = []
    samples = unusable = size = done = 0
    began = time.perf_counter()
    now = time.thread_time
    steps = max(1, min(MAX_SAMPLES, len(rows.sources)) // batch_size)
    for epoch, ordinal in chain.from_iterable(map(stream.tickets, range(steps))):
        index, number = rows.sources.locate(ordinal)
        key = (rows.seed, epoch, *index.identity(number))
        times = [now()]
        try:
            encoded = rows.synchronized.read(index, number)
            times.append(now())
            decoded = rows.synchronized.decode(encoded, key)
            times.append(now())
            sample = rows.synchronized.augment(decoded, index, key)
            times.append(now())
        except BadSample:
            unusable += 1
            continue
        partners = draw_partners(rows.synchronized, index, sample, rows.needs, key)
        drawn = draw_views(sample, rows.modalities, rows.needs, key, partners)
        views = make_views(sample, rows.modalities, rows.needs, drawn, partners)
        times.append(now())
        made.append(BatchRow(ordinal, sample.key, views))
        samples, size = samples + 1, size + sum(map(len, encoded.raw.fields.values()))
        if samples > 1 or len(rows.sources) == 1:  # the first sample includes the cost of imports and lazy loading
            for name, (begin, end) in zip(spent, pairwise(times), strict=False):
                spent[name] += end - begin
            done += 1
        if len(made) == batch_size:
            spent["collate"] += _time_collate(rows, made)
            made = []
            if not clock.continues(0, time.perf_counter() - began):
                break
    if not samples:
        raise DataError(f"none of {unusable} samples can be used: see `mmssl shards check`")
    if made:
        spent["collate"] += _time_collate(rows, made)
    if not rows.synchronized.operations:
        del spent["synchronized"]
    return {name: value / max(1, done) * 1e6 for name, value in spent.items()}, samples, unusable, size


def _time_collate(rows: Rows, made: Sequence[BatchRow]) -> float:
    start = time.thread_time()
    collate(made, rows.modalities, rows.needs)
    return time.thread_time() - start
