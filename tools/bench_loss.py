"""Time and memory of our losses against open_clip's: python3 tools/run.py python tools/bench_loss.py

Forward and backward of one process on the CPU, E = 512, float32, on embeddings with cosines like a half-trained model's, with a
learned scale (and bias). Ours and the peer's take turns, and medians are compared, so that other load on the machine affects
both. `--clock cpu` with one thread counts CPU time, which other load affects less. Memory is the resident peak of one forward and
backward pass, gradients included, above what a fresh process held before.

A ratio is the peer's number over ours: above 1, ours is better. The headline is the time of InfoNCE at the largest batch that both
sides took. Above `--peer-up-to` ours runs alone, and once: at 32768 the peer needs 16 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 512
BATCHES, QUICK = [4096, 8192, 16384, 32768], [1024]
LOSSES = {"info_nce": (100.0,), "sigmoid": (10.0, -10.0)}
SIDES = ("ours", "peer")


def loss_of(loss: str, side: str) -> Callable[..., Any]:
    """The function of (a, b, scale) or (a, b, scale, bias)."""
    sys.path.insert(0, str(ROOT))
    if side == "peer":
        import open_clip.loss

        return {"info_nce": open_clip.loss.ClipLoss, "sigmoid": open_clip.loss.SigLipLoss}[loss]()
    from mmssl.losses.tiled_info_nce import tiled_info_nce
    from mmssl.losses.tiled_sigmoid import tiled_sigmoid_loss

    return {"info_nce": tiled_info_nce, "sigmoid": tiled_sigmoid_loss}[loss]


def inputs_of(loss: str, batch: int) -> list[Any]:
    """Leaf tensors with requires_grad: a and b [B, E] with cosines of about 0.3 in pairs, and the scale and bias."""
    import torch
    import torch.nn.functional as F

    random = torch.Generator().manual_seed(0)
    a = F.normalize(torch.randn(batch, WIDTH, generator=random), dim=-1)
    b = F.normalize(F.normalize(torch.randn(batch, WIDTH, generator=random), dim=-1) + 0.3 * a, dim=-1)
    return [x.requires_grad_() for x in (a, b, *(torch.tensor(number) for number in LOSSES[loss]))]


def seconds(function: Callable[..., Any], inputs: list[Any], clock: Callable[[], float]) -> float:
    """One forward and backward pass."""
    for x in inputs:
        x.grad = None
    start = clock()
    function(*inputs).backward()
    return clock() - start


def status(field: str) -> int:
    """Bytes of VmRSS, this process' resident memory, or VmHWM, the most it was."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"got a /proc/self/status without {field}, wanted Linux: memory is not measured elsewhere")


def memory_here(loss: str, side: str, batch: int) -> int:
    """Peak bytes of a pass, after a small warm-up pass."""
    import torch

    torch.set_num_threads(1)
    function = loss_of(loss, side)
    function(*inputs_of(loss, 256)).backward()
    inputs = inputs_of(loss, batch)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of making the inputs
    before = status("VmRSS")
    function(*inputs).backward()
    return status("VmHWM") - before


def memory(loss: str, side: str, batch: int) -> int:
    """Run `memory_here` in a new process."""
    command = [sys.executable, str(Path(__file__).resolve()), "--memory-here", loss, side, str(batch)]
    # Each large tensor has separate pages, returned when freed: none reuses the pages of an earlier one.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return int(done.stdout)


def medians(loss: str, sides: Sequence[str], batch: int, repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of each side, taking turns after one unmeasured turn each."""
    inputs = inputs_of(loss, batch)
    functions = {side: loss_of(loss, side) for side in sides}
    times: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(repeats + 1):
        for side, function in functions.items():
            taken = seconds(function, inputs, clock)
            if turn:
                times[side].append(taken)
    return {side: statistics.median(values) for side, values in times.items()}


def compare(ours: float, peer: float | None = None, *, unit: str) -> dict[str, Any]:
    """Ratios of the peer's numbers to ours; None if the peer did not run."""
    return {"ratio": None if peer is None else peer / ours, "ours": ours, "peer": peer, "unit": unit}


def line(row: dict[str, Any]) -> str:
    """The text of a row."""
    times, sizes = row["time"], row["memory"]
    start = f"{row['loss']:9} {row['batch']:6}  {times['ours']:8.3f} s"
    if times["ratio"] is None:
        return f"{start} alone   {sizes['ours']:7.1f} MiB"
    return (
        f"{start} beside {times['peer']:8.3f} s, {times['ratio']:5.2f} times as fast   "
        f"{sizes['ours']:7.1f} MiB beside {sizes['peer']:7.1f} MiB, 1/{sizes['ratio']:.1f}"
    )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all rows and the headline."""
    import torch

    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    unit = f"{arguments.clock} seconds, {arguments.threads} threads"
    rows = []
    for loss in arguments.losses:
        for batch in arguments.batches:
            sides = SIDES if batch <= arguments.peer_up_to else SIDES[:1]
            mib = {side: memory(loss, side, batch) / 2**20 for side in sides}
            turns = arguments.repeats if "peer" in sides else 1
            row = {
                "loss": loss,
                "batch": batch,
                "time": compare(**medians(loss, sides, batch, turns, clock), unit=unit),
                "memory": compare(**mib, unit="MiB"),
            }
            rows.append(row)
            print(line(row), flush=True)
    first = [row for row in rows if row["loss"] == arguments.losses[0]]
    headline = max(first, key=lambda row: (row["time"]["ratio"] is not None, row["batch"]))
    machine = {"cpu": platform.processor() or platform.machine(), "torch": torch.__version__}
    return headline["time"] | {"name": f"{headline['loss']} at {headline['batch']}", "machine": machine, "rows": rows}


def main() -> None:
    """Read arguments, measure, print, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--quick", action="store_true", help=f"a batch of {QUICK[0]} only, as a smoke test")
    parser.add_argument("--batches", type=int, nargs="+")
    parser.add_argument("--peer-up-to", type=int, default=16384, metavar="BATCH", help="above it, ours runs alone")
    parser.add_argument("--losses", nargs="+", choices=list(LOSSES), default=list(LOSSES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["cpu", "wall"], default="cpu", help="cpu: all threads together")
    parser.add_argument("--memory-here", nargs=3, metavar=("LOSS", "SIDE", "BATCH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_here:
        loss, side, batch = arguments.memory_here
        print(memory_here(loss, side, int(batch)))
        return
    arguments.batches = arguments.batches or (QUICK if arguments.quick else BATCHES)
    result = measure(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
