"""One step of each model under torch's profiler: where its time goes, how long the device idles, what the host waits for."""

from __future__ import annotations

import warnings
from collections import Counter
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from .bench import Bench, Figures, Rows
from .models import ClipShape, our_step, random_batch, synchronise, trimmed

KINDS = {
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "conv": ("conv", "implicit_gemm", "dgrad", "wgrad"),
    "gemm": ("gemm", "cutlass", "cublas", "nvjet", "addmm", "aten::mm", "bmm"),
    "copy": ("memcpy", "memset", "copy"),
    "reduce": ("reduce", "softmax", "norm", "sum"),
}


def rows(bench: Bench) -> Rows:
    """A row for each model."""
    for name, model in bench.models("ViT-B/32", "ViT-B/16", "ViT-L/14").items():
        yield name, partial(_profile, bench, model)


def _profile(bench: Bench, model: ClipShape) -> Figures:
    step, batch = our_step(model, bench.device)[0], trimmed(random_batch(model, model.batch, bench.device))
    for _ in range(3):
        step(batch)
    synchronise(bench.device)
    cuda = bench.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
        step(batch)
        synchronise(bench.device)
    kernels = [event for event in seen.events() or () if (event.device_type.name == "CUDA") == cuda]
    times: Counter[str] = Counter()
    for event in kernels:
        times[_kind(event.name)] += event.device_time_total if cuda else event.self_cpu_time_total
    total = sum(times.values()) or 1
    spent = {kind: f"{time / total:.0%}" for kind, time in times.most_common()}
    return {
        "value": len(kernels),
        "unit": "launches",
        **_idle(kernels, cuda),
        **spent,
        "waits": _waits(step, batch, cuda),
    }


def _kind(name: str) -> str:
    lower = name.lower()
    return next((kind for kind, words in KINDS.items() if any(word in lower for word in words)), "elementwise")


def _idle(kernels: list[Any], cuda: bool) -> Figures:
    """Share of the time between the first and the last kernel in which none ran."""
    if not cuda or not kernels:
        return {}
    spans = sorted((event.time_range.start, event.time_range.end) for event in kernels)
    busy, end = 0.0, spans[0][0]
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return {"idle": f"{1 - busy / max(1e-9, end - spans[0][0]):.1%}"}


def _waits(step: Any, batch: Any, cuda: bool) -> str:
    """Where the host waited for the device in one step, by torch's own account (staged copies are not in it)."""
    if not cuda:
        return "not measured"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = [f"{w.filename.rsplit('/', 1)[-1]}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
    return ", ".join(dict.fromkeys(places)) or "none"
