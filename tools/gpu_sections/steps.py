"""Whole training steps of both sides, as they are written and compiled; and the largest batches that fit."""

from __future__ import annotations

import time
from functools import partial

import torch

from mmssl.core.compat import compiled_graphs
from mmssl.training.steps.compilation import CompileMode

from .bench import Bench, Figures, Rows
from .models import (
    ClipShape,
    as_peer_sees,
    caption_lengths,
    free_memory,
    our_step,
    peak_gib,
    peer_step,
    random_batch,
    seconds_of,
    synchronise,
    trimmed,
)

LARGEST = {"B/32, 2,048 at once": (2048, 1), "B/32, 4,096 at once": (4096, 1), "B/32, 65,536 by 256": (65536, 256)}


def rows(bench: Bench, *names: str) -> Rows:
    """Samples a second as the modules are written."""
    for name, model in bench.models(*(names or ("ViT-B/16", "ViT-B/32", "ViT-L/14"))).items():
        yield f"{name}, eager", partial(_both, bench, model, "off")


def compile_rows(bench: Bench) -> Rows:
    """Samples a second with compiled blocks; the peer is compiled whole, as it does it."""
    for name, model in bench.models("ViT-B/16", "ViT-B/32", "ViT-L/14").items():
        yield f"{name}, compiled", partial(_both, bench, model, "blocks")


def largest_rows(bench: Bench) -> Rows:
    """Seconds of a step on large batches; a batch that does not fit is an error of its row."""
    sizes = {"8 at once": (8, 1), "16 by 4": (16, 4)} if bench.tiny else LARGEST
    for name, (pairs, parts) in sizes.items():
        yield name, partial(_large, bench, pairs, parts)


def _both(bench: Bench, model: ClipShape, mode: CompileMode) -> Figures:
    whole = random_batch(model, model.batch, bench.device)
    operations = model.operations(caption_lengths(whole)) / model.batch
    peak = bench.card.bf16
    out: Figures = {"unit": "samples/s", "roofline": peak and peak / operations}
    backend = "eager" if bench.tiny else "inductor"
    graphs, _ = compiled_graphs()
    for side in ("ours", "open_clip"):
        try:
            if side == "ours":
                step, batch = our_step(model, bench.device, mode, backend)[0], trimmed(whole)
            else:
                step, batch = peer_step(model, bench.device, None if mode == "off" else backend), as_peer_sees(whole)
            started = time.perf_counter()
            step(batch)
            synchronise(bench.device)
            first = time.perf_counter() - started
            peak_gib(bench.device)
            speed = model.batch / seconds_of(partial(step, batch), bench.device, bench.repeats)
        except torch.OutOfMemoryError:
            out[side] = "out of memory"
            continue
        finally:
            step = batch = None  # type: ignore[assignment]
            allocated, reserved = peak_gib(bench.device)
            free_memory(bench.device)
        if side == "ours":
            out |= {"value": speed, "GiB": round(allocated, 1), "reserved": round(reserved, 1)}
            out |= {} if mode == "off" else {"first step": f"{first:.0f} s", "graphs": compiled_graphs()[0] - graphs}
        else:
            out |= {side: round(speed), f"{side} GiB": round(allocated, 1)}
            out |= {"ratio": round(out["value"] / speed, 2)} if "value" in out else {}
    return out


def _large(bench: Bench, pairs: int, parts: int) -> Figures:
    (model,) = bench.models("ViT-B/32").values()
    step = our_step(model, bench.device, micro_batches=max(1, pairs // parts) if parts > 1 else 1)[0]
    batch = trimmed(random_batch(model, pairs, bench.device))
    seconds = seconds_of(partial(step, batch), bench.device, 1, warm=1)
    allocated, reserved = peak_gib(bench.device)
    return {"value": seconds, "unit": "s", "GiB": round(allocated, 1), "reserved": round(reserved, 1)}
