"""Speed and memory on one GPU against open_clip: `python3 tools/run.py python tools/bench_gpu.py --json gpu.json --markdown gpu.md`

Four tables: training steps (ViT-B/16, B/32 and L/14 in bf16, compiled and not: samples/s, memory, model FLOP utilisation on useful
operations: real text tokens, nothing computed twice counted twice); the contrastive loss from 16k to 256k pairs until memory runs
out; the input pipeline; the largest batch that fits with and without cached gradients. Our texts are trimmed of common padding,
as in a run; the peer's are padded by its tokenizer. A failed measurement (out of memory, a kernel that does not compile) is
skipped with its reason. After `--budget` seconds the rows so far are kept.

Nothing is fetched from a network, and only the imported packages are needed: torch and torchvision, pydantic, accelerate,
safetensors, rich and PyYAML, and open_clip_torch with timm, ftfy, regex and huggingface_hub; `--sections input` also wants
simplejpeg, braceexpand, Pillow and scikit-learn, and is skipped without them. Then `python tools/bench_gpu.py` is enough.

Without a CUDA device it says so and exits with 3. `--device cpu --tiny` runs every path on toy sizes, as a smoke test; its
figures mean nothing. A ratio is our samples/s over open_clip's: above 1, ours is faster; the headline is ViT-B/16, compiled.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parent
SECTIONS = ("steps", "loss", "input", "largest")
SIDES = ("ours", "open_clip")
LAST = ("ratio", "notes")  # columns of a table
STARTED = time.monotonic()
HEADLINE = ("ViT-B/16", True)
WIDTH = 512
Row = dict[str, Any]


class TimeIsUp(BaseException):
    """The budget is spent. Not an Exception, which a library may catch on the way."""


def steps_rows(models: dict[str, Any], options: argparse.Namespace) -> Iterator[Row]:
    """Samples/s, memory and utilisation of whole training steps, both sides, compiled and not."""
    import gpu_steps as gpu

    peak = gpu.peak_rate(options.device)
    for name, model in models.items():
        samples = options.batch or model.batch
        operations = model.operations(gpu.caption_lengths(gpu.random_batch(model, samples, options.device)))
        for compiled in (False, True):
            row: Row = {"model": name, "batch": samples, "compiled": compiled}
            for side in SIDES:
                found = attempt(partial(one_side, side, model, samples, compiled, options), options, row, side)
                if found is not None:
                    speed = samples / found[0]
                    row |= {f"{side} samples/s": speed, f"{side} GiB": found[1]}
                    row[f"{side} MFU"] = operations * speed / samples / peak
                row["ratio"] = ratio(row.get("ours samples/s"), row.get("open_clip samples/s"))
                yield row


def one_side(side: str, model: Any, samples: int, compiled: bool, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds of a step, and GiB."""
    import gpu_steps as gpu

    batch, backend = gpu.random_batch(model, samples, options.device), options.backend if compiled else None
    if side == "ours":
        batch, (step, _) = gpu.trimmed(batch), gpu.our_step(model, options.device, backend)
    else:
        batch, step = gpu.as_peer_sees(batch), gpu.peer_step(model, options.device, backend)
    return gpu.timed(step, batch, options.device, options.steps)


def loss_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Seconds and memory of the loss alone, forward and backward."""
    for pairs in [2**power for power in ((6, 7) if options.tiny else (14, 15, 16, 17, 18))]:
        row: Row = {"pairs": pairs}
        for side in SIDES:
            found = attempt(partial(one_loss, side, pairs, options), options, row, side)
            if found is not None:
                row |= {f"{side} ms": 1e3 * found[0], f"{side} GiB": found[1]}
            row["ratio"] = ratio(row.get("open_clip ms"), row.get("ours ms"))
            yield row


def one_loss(side: str, pairs: int, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds of a forward and backward pass, and GiB, embeddings and their gradients included."""
    import gpu_steps as gpu
    import open_clip.loss
    import torch
    import torch.nn.functional as F

    from mmssl.losses.tiled_info_nce import tiled_info_nce

    function = tiled_info_nce if side == "ours" else open_clip.loss.ClipLoss()
    a, b = (F.normalize(torch.randn(pairs, WIDTH, device=options.device), dim=-1).requires_grad_() for _ in "ab")
    scale = torch.tensor(100.0, device=options.device, requires_grad=True)
    return gpu.timed(lambda _: function(a, b, scale).backward(), None, options.device, options.steps)


def largest_rows(models: dict[str, Any], options: argparse.Namespace) -> Iterator[Row]:
    """Largest power-of-two batch whose step fits, plain and with cached gradients; at most `--most`."""
    for name, model in models.items():
        row: Row = {"model": name, "micro_batch": options.micro_batch, "most tried": options.most}
        for kind in ("plain", "cached"):
            row[f"{kind} pairs"] = attempt(partial(largest, model, kind, options), options, row, kind)
            yield row


def largest(model: Any, kind: str, options: argparse.Namespace) -> int:
    """Largest size that fits, doubling from two micro-batches on; 0 if none does."""
    import gpu_steps as gpu

    found, size = 0, 2 * options.micro_batch
    while size <= options.most:
        parts = 1 if kind == "plain" else size // options.micro_batch
        if not gpu.step_fits(model, size, parts, options.device):
            break
        found, size = size, 2 * size
    return found


def input_rows(models: dict[str, Any], options: argparse.Namespace) -> Iterator[Row]:
    """Samples/s of the step with one batch on the device, and with batches from shards."""
    import bench_loader
    import gpu_steps as gpu

    from mmssl.training.steps.prefetch import DeviceStream

    name, model = max(models.items(), key=lambda item: item[1].batch)  # the fastest, which wants most
    samples = options.batch or model.batch
    resident = gpu.trimmed(gpu.random_batch(model, samples, options.device))
    step, learner = gpu.our_step(model, options.device, None)
    seconds, _ = gpu.timed(step, resident, options.device, options.steps)
    with tempfile.TemporaryDirectory() as folder:
        # Few, because making one takes longer than decoding it twenty times: workers read them again and again.
        pictures = 2 * samples if options.tiny else max(1024, samples)
        shards = bench_loader.make_shards(options.data or Path(folder), pictures, 2 if options.tiny else 16)
        if options.tiny:
            bench_loader.SIZE = model.size
        made = bench_loader.our_batches([str(path) for path in shards], samples, options.workers)
        stream = DeviceStream(made, learner, options.device)
        try:
            fed = gpu.seconds_from_workers(step, iter(stream), options.device, options.steps, ahead=2 * options.workers)
        finally:
            stream.close()
    row: Row = {"model": name, "batch": samples, "workers": options.workers}
    row |= {"resident samples/s": samples / seconds, "from shards samples/s": samples / fed, "ratio": seconds / fed}
    yield row


def attempt(measure: Callable[[], Any], options: argparse.Namespace, row: Row, what: str) -> Any:
    """Run a measurement; None if it fails, with the reason in the row's notes, so that others go on."""
    import gpu_steps as gpu

    try:
        return measure()
    except Exception as error:
        row["notes"] = "; ".join([*filter(None, [row.get("notes")]), f"{what}: {failure_reason(error)}"])
        return None
    finally:
        gpu.free_memory(options.device)


def failure_reason(error: Exception) -> str:
    """The reason of a failure in one line; the traceback of all but the usual ones goes to stderr."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    if isinstance(error, ImportError):
        return str(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def ratio(ours: float | None, peer: float | None) -> float | None:
    """The ratio of two figures; None if one is missing."""
    return ours / peer if ours and peer else None


def markdown(tables: dict[str, list[Row]], about: str) -> str:
    """The tables as a page."""
    pieces = [f"# One GPU beside open_clip\n\n{about}\n"]
    for title, rows in tables.items():
        columns = sorted(dict.fromkeys(column for row in rows for column in row), key=lambda column: column in LAST)
        lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        lines += ["| " + " | ".join(cell_text(column, row.get(column)) for column in columns) + " |" for row in rows]
        pieces.append(f"## {title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(pieces)


def cell_text(column: str, value: Any) -> str:
    """The text of one cell; a dash if not measured."""
    if isinstance(value, float):
        return f"{value:.1%}" if column.endswith("MFU") else f"{value:.4g}"
    return "–" if value is None else str(value).replace("|", "\\|")


def headline(rows: list[Row]) -> Row:
    """Our and the peer's samples/s of the headline model, or of the last one measured."""
    chosen = [row for row in rows if (row["model"], row["compiled"]) == HEADLINE] or rows[-1:]
    row = chosen[0] if chosen else {}
    facts = {"ratio": row.get("ratio"), "ours": row.get("ours samples/s"), "peer": row.get("open_clip samples/s")}
    return facts | {
        "unit": "samples/s",
        "name": f"{row.get('model')}, {'compiled' if row.get('compiled') else 'eager'}",
    }


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="toy sizes, as a smoke test")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--models", nargs="+", choices=["ViT-B/32", "ViT-B/16", "ViT-L/14"])
    parser.add_argument("--batch", type=int, help="samples of a step, for all models")
    parser.add_argument("--steps", type=int, default=20, help="timed steps")
    parser.add_argument("--micro-batch", type=int, default=256, help="pairs in a micro-batch, for --sections largest")
    parser.add_argument("--most", type=int, default=65536, help="largest batch to try")
    parser.add_argument("--data", type=Path, help="folder for the shards of --sections input, kept for the next run")
    parser.add_argument("--workers", type=int, default=12, help="worker processes that decode")
    parser.add_argument("--budget", type=float, default=540, help="seconds after which measuring stops")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    options = parser.parse_args()
    if options.device == "cpu" and not options.tiny:
        parser.error("--device cpu goes with --tiny only: a smoke test without measurements")
    options.backend = "eager" if options.tiny else "inductor"
    if options.tiny:
        options.steps, options.micro_batch, options.most, options.workers = 2, 4, 16, 0
    return options


def main() -> int:
    """Measure, print, and write the figures where asked. Returns 3 without a GPU."""
    options = read_options()
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("bench_gpu needs a CUDA device, and torch sees none here: nothing was measured", file=sys.stderr)
        return 3
    sys.path[:0] = [str(TOOLS), str(TOOLS.parent)]
    import gpu_steps as gpu

    options.device = torch.device(options.device)
    names = sorted(options.models or gpu.MODELS, key=lambda name: name != HEADLINE[0])  # what matters most comes first
    models = gpu.TINY if options.tiny else {name: gpu.MODELS[name] for name in names}
    where = torch.cuda.get_device_name() if options.device.type == "cuda" else "CPU, toy sizes: no measurement"
    about = f"{where}, torch {torch.__version__}, bf16; MFU against {gpu.peak_rate(options.device) / 1e12:.3g} TFLOP/s."
    makers: dict[str, Callable[[], Iterator[Row]]] = {
        "steps": lambda: steps_rows(models, options),
        "loss": lambda: loss_rows(options),
        "largest": lambda: largest_rows(models, options),
        "input": lambda: input_rows(models, options),
    }
    print(about, flush=True)
    report = Report(about, options.json, options.markdown)
    signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(1e-3, options.budget - (time.monotonic() - STARTED)))
        for section in options.sections:
            report.measure(section, makers[section])
    except TimeIsUp:
        report.leave_out(f"all after {options.budget:g} seconds", "time is up")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return 0


def stop(*_: object) -> None:
    """Signal handler that ends the measurements.

    Raises:
        TimeIsUp: always.
    """
    raise TimeIsUp


class Report:
    """Rows so far and skipped measurements with reasons; written after every row, so a later failure loses nothing."""

    def __init__(self, about: str, figures: Path | None, page: Path | None) -> None:
        self.about, self.figures, self.page = about, figures, page
        self.tables: dict[str, list[Row]] = {}
        self.left_out: dict[str, str] = {}

    def measure(self, section: str, rows: Callable[[], Iterator[Row]]) -> None:
        """Measure the rows of a section; a row may be updated as it fills. A failure ends the section."""
        table = self.tables[section] = []
        try:
            for row in rows():
                if not table or table[-1] is not row:
                    table.append(row)
                print(f"{section}: " + "  ".join(f"{k} {cell_text(k, v)}" for k, v in row.items()), flush=True)
                self.write()
        except Exception as error:
            self.leave_out(section, failure_reason(error))

    def leave_out(self, what: str, why: str) -> None:
        """Record a skipped measurement."""
        self.left_out[what] = why
        print(f"left out: {what}: {why}", flush=True)
        self.write()

    def write(self) -> None:
        """Write the requested files."""
        figures = headline(self.tables.get("steps", [])) | {
            "about": self.about,
            "rows": self.tables,
            "left_out": self.left_out,
        }
        if self.figures:
            self.figures.write_text(json.dumps(figures, indent=1) + "\n")
        if self.page:
            notes = "".join(f"\nLeft out: {what}: {why}.\n" for what, why in self.left_out.items())
            self.page.write_text(markdown(self.tables, self.about) + notes)


if __name__ == "__main__":
    sys.exit(main())
