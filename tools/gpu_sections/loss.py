"""InfoNCE alone, forward and backward, beside open_clip's, up to a band of a million pairs."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from mmssl.losses.tiled_info_nce import tiled_info_nce

from .bench import Bench, Figures, Rows
from .models import peak_gib, seconds_of

WIDTH = 512
BAND = 32


def rows(bench: Bench) -> Rows:
    """Rows of square sizes, and one of a part of a million rows."""
    for pairs in (64, 128) if bench.tiny else (2**14, 2**15, 2**16):
        yield f"{pairs:,} pairs", partial(_square, bench, pairs, peer=True)
    pairs = 256 if bench.tiny else 2**18
    yield f"{pairs:,} pairs", partial(_square, bench, pairs, peer=False)
    pairs = 512 if bench.tiny else 2**20
    yield f"{pairs // BAND:,} rows of {pairs:,} pairs", partial(_band, bench, pairs)


def _square(bench: Bench, pairs: int, *, peer: bool) -> Figures:
    from open_clip.loss import ClipLoss

    a, b = (F.normalize(torch.randn(pairs, WIDTH, device=bench.device), dim=-1).requires_grad_() for _ in "ab")
    scale = torch.tensor(100.0, device=bench.device, requires_grad=True)
    repeats = 1 if pairs > 2**17 else max(2, bench.repeats // 4)

    def seconds(function: object) -> float:
        peak_gib(bench.device)
        return seconds_of(lambda: function(a, b, scale).backward(), bench.device, repeats, warm=1)  # type: ignore[operator]

    ours = seconds(tiled_info_nce)
    out = {**_against_peak(bench, 4, pairs, pairs, ours), "GiB": round(peak_gib(bench.device)[0], 2)}
    out["tf32x3 ms"] = round(1e3 * seconds(partial(tiled_info_nce, products="tf32x3")), 2)
    if peer:
        try:
            theirs = seconds(ClipLoss())
            out |= {"open_clip ms": round(1e3 * theirs, 2), "ratio": round(theirs / ours, 2)}
            with torch.autocast(bench.device.type, dtype=torch.bfloat16):
                out |= {"open_clip bf16 ms": round(1e3 * seconds(ClipLoss()), 2)}
        except torch.OutOfMemoryError:
            out["open_clip"] = "out of memory"
    return out


def _band(bench: Bench, pairs: int) -> Figures:
    """One of BAND processes: its rows against the candidates of all; the whole takes BAND times as long."""
    a = F.normalize(torch.randn(pairs // BAND, WIDTH, device=bench.device), dim=-1).requires_grad_()
    everyone = F.normalize(torch.randn(pairs, WIDTH, device=bench.device), dim=-1).requires_grad_()
    scale = torch.tensor(100.0, device=bench.device, requires_grad=True)
    peak_gib(bench.device)
    loss = partial(tiled_info_nce, a, everyone[: len(a)], scale, all_b=everyone, over_processes=lambda x: x)
    seconds = seconds_of(lambda: loss().backward(), bench.device, 1, warm=0)
    return {**_against_peak(bench, 4, len(a), pairs, seconds), "GiB": round(peak_gib(bench.device)[0], 2)}


def _against_peak(bench: Bench, products: int, rows: int, columns: int, seconds: float) -> Figures:
    peak = bench.card.fp32
    best = peak and 1e3 * products * 2 * rows * columns * WIDTH / peak
    return {"value": 1e3 * seconds, "unit": "ms", "roofline": best}
