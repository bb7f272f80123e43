"""The machine: products, copies, launches; below its usual figures another program uses it."""

from __future__ import annotations

import os
import shutil
from functools import partial

import torch

from .bench import Bench, Figures, Rows
from .models import seconds_of

PRODUCTS = {"8192^3": (8192, 8192, 8192), "B/32's MLP": (51200, 768, 3072)}


def rows(bench: Bench) -> Rows:
    """Names and figures of the device."""
    yield "machine", partial(_machine, bench)
    products = {"64^3": (64, 64, 64)} if bench.tiny else PRODUCTS
    for name, shape in products.items():
        for kind in ("bf16", "tf32", "fp32") if name == next(iter(products)) else ("bf16",):
            yield f"{kind} product, {name}", partial(_product, bench, kind, shape)
    yield "copy on the device", partial(_copy, bench)
    yield "copy to the device, pinned, a batch of B/32", partial(_to_device, bench)
    yield "empty launch", partial(_launch, bench)


def _machine(bench: Bench) -> Figures:
    cuda = bench.device.type == "cuda"
    memory = torch.cuda.get_device_properties(bench.device).total_memory / 2**30 if cuda else 0.0
    shared = shutil.disk_usage("/dev/shm").total / 2**30  # noqa: S108
    cudnn = torch.backends.cudnn.version() if cuda else None
    return {
        "value": memory,
        "unit": "GiB",
        "cuDNN": cudnn,
        "cores": os.cpu_count(),
        "shared memory GiB": round(shared, 1),
    }


def _product(bench: Bench, kind: str, shape: tuple[int, int, int]) -> Figures:
    n, k, m = shape
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    a, b = torch.randn(n, k, device=bench.device, dtype=dtype), torch.randn(k, m, device=bench.device, dtype=dtype)
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    try:
        seconds = seconds_of(lambda: a @ b, bench.device, bench.repeats)
    finally:
        torch.set_float32_matmul_precision("highest")
    peak = getattr(bench.card, kind)
    return {"value": 2 * n * k * m / seconds / 1e12, "unit": "TFLOP/s", "roofline": peak and peak / 1e12}


def _copy(bench: Bench) -> Figures:
    count = 2**20 if bench.tiny else 2**30
    source = torch.empty(count, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    seconds = seconds_of(lambda: target.copy_(source), bench.device, bench.repeats)
    peak = bench.card.memory
    return {"value": 2 * count / seconds / 1e9, "unit": "GB/s", "roofline": peak and peak / 1e9}


def _to_device(bench: Bench) -> Figures:
    samples = 2 if bench.tiny else 1024
    source = torch.empty(samples, 3, 224, 224, dtype=torch.uint8)
    source = source.pin_memory() if bench.device.type == "cuda" else source
    target = torch.empty(source.shape, dtype=torch.uint8, device=bench.device)
    seconds = seconds_of(lambda: target.copy_(source, non_blocking=True), bench.device, bench.repeats)
    return {"value": source.nbytes / seconds / 1e9, "unit": "GB/s"}


def _launch(bench: Bench) -> Figures:
    x = torch.zeros(1, device=bench.device)
    return {"value": 1e6 * seconds_of(lambda: x.add_(1), bench.device, 50 * bench.repeats), "unit": "us"}
