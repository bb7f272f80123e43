"""The step fed from shards of JPEGs, beside the same step on one batch that lies on the device."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import bench_loader

from mmssl.training.steps.prefetch import DeviceStream

from .bench import Bench, Figures, Rows
from .models import ClipShape, our_step, random_batch, seconds_of, synchronise, trimmed


def rows(bench: Bench) -> Rows:
    """The loader alone, then two models fed, then the faster with a loader that takes 10 ms longer to hand over."""
    name, model = next(iter(bench.models("ViT-B/32").items()))
    for workers in (0,) if bench.tiny else (12, 14, 16):
        yield f"loader alone, {workers} workers", partial(_alone, bench, model, workers)
    for name, fed in bench.models("ViT-B/32", "ViT-B/16").items():
        yield f"{name}, fed", partial(_fed, bench, fed, 0.0)
    yield f"{name}, fed, 10 ms later", partial(_fed, bench, model, 0.01)


def _shards(bench: Bench, model: ClipShape) -> list[str]:
    """256 different pictures, each written 16 times: making one takes longer than decoding it 20 times."""
    bench_loader.SIZE = model.size
    samples, shards = (2 * model.batch, 2) if bench.tiny else (4096, 16)
    distinct = min(256, samples)
    if not bench.tiny and not (bench.folder / "done.json").exists():
        with multiprocessing.get_context("fork").Pool(16) as pool:
            made = pool.starmap(bench_loader.synthetic, [(n, bench_loader.HEIGHT) for n in range(distinct)])
        bench_loader.synthetic = lambda ordinal, height: made[ordinal % distinct]
    return [str(path) for path in bench_loader.make_shards(bench.folder, samples, shards)]


def _alone(bench: Bench, model: ClipShape, workers: int) -> Figures:
    stream = bench_loader.our_batches(_shards(bench, model), model.batch, workers)
    try:
        batches = iter(stream)
        ahead = 2 * workers
        for _ in range(1 + ahead):
            next(batches)
        count, started = max(2, ahead), time.perf_counter()
        for _ in range(count):
            next(batches)
        speed = count * model.batch / (time.perf_counter() - started)
    finally:
        stream.close()  # type: ignore[attr-defined]
    return {"value": speed, "unit": "samples/s"}


def _fed(bench: Bench, model: ClipShape, delay: float) -> Figures:
    step, learner = our_step(model, bench.device)
    resident = trimmed(random_batch(model, model.batch, bench.device))
    best = model.batch / seconds_of(partial(step, resident), bench.device, bench.repeats)
    made = bench_loader.our_batches(_shards(bench, model), model.batch, bench.workers)
    stream = DeviceStream(made, learner, bench.device)  # type: ignore[arg-type]
    try:
        batches = _late(iter(stream), delay)
        ahead = max(3, 2 * bench.workers)
        for _ in range(ahead):  # what workers have made meanwhile says nothing about their speed
            step(next(batches))
        synchronise(bench.device)
        started = time.perf_counter()
        for _ in range(ahead):
            step(next(batches))
        synchronise(bench.device)
        speed = ahead * model.batch / (time.perf_counter() - started)
    finally:
        stream.close()
    return {"value": speed, "unit": "samples/s", "roofline": best}


def _late(batches: Iterator[Any], delay: float) -> Iterator[Any]:
    for batch in batches:
        time.sleep(delay)
        yield batch
