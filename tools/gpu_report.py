"""One measurement of one GPU, in minutes: `python3 tools/run.py python tools/gpu_report.py --seconds 330 --json gpu.jsonl`.

Sections, in their order: what the machine can do (`card`), what must be exact (`exact`), attention kernels (`attend`), whole steps
beside open_clip's (`steps`), the loss alone (`loss`), where a step's time goes (`profile`), the step fed from JPEGs (`input`),
large batches (`largest`), compiled steps (`compile`), and SimCLR on CIFAR-10 (`simclr`, with `--data`: a second run of 440 s).

Each section is a separate process, ended at its cap: a hang, a failed assertion or a lack of memory costs that section. Rows are
written to `--json` as they come, a JSON object a line. `--have FILE` skips rows that an earlier run of the same card has. The last
output is one Markdown table, with what the data sheet allows at most (roofline) beside each figure.

`--device cpu --tiny` runs all of it on toy sizes; its figures mean nothing. Without a CUDA device the exit code is 3.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

TOOLS = Path(__file__).resolve().parent
LINES = 60
"""Longest table."""


class Section(NamedTuple):
    """Module and function of its rows, and its least and longest time in seconds."""

    module: str
    function: str
    least: float
    cap: float


SECTIONS = {
    "card": Section("card", "rows", 8, 20),
    "exact": Section("exact", "rows", 25, 90),
    "attend": Section("attend", "rows", 10, 30),
    "steps": Section("steps", "rows", 15, 80),
    "loss": Section("loss", "rows", 15, 45),
    "profile": Section("profile", "rows", 10, 25),
    "input": Section("feed", "rows", 25, 60),
    "largest": Section("steps", "largest_rows", 10, 40),
    "compile": Section("steps", "compile_rows", 50, 200),
    "simclr": Section("simclr", "rows", 60, 440),
}
Row = dict[str, Any]


def measure(name: str, options: argparse.Namespace, have: set[str], seconds: float, folder: Path) -> None:
    """Measure the rows of a section that are not there yet, and append each to the file; runs in a separate process."""
    import torch
    from gpu_sections.bench import Bench

    device = torch.device(options.device)
    torch.set_num_threads(1 if options.tiny else os.cpu_count() or 1)
    bench = Bench(device, options.tiny, folder, options.data, options.workers, seconds)
    about = {"section": name, "card": card_name(options.device), "torch": torch.__version__}
    section = SECTIONS[name]
    rows: Callable[[Any], Iterator[tuple[str, Callable[[], Row]]]] = getattr(
        import_module(f"gpu_sections.{section.module}"), section.function
    )
    for row, figures in rows(bench):
        if row in have:
            continue
        started = time.monotonic()
        try:
            found = figures()
        except Exception as error:
            traceback.print_exc()
            found = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:160]}
        append(options.out, {**about, "row": row, **found, "seconds": round(time.monotonic() - started, 2)})


def run_section(name: str, options: argparse.Namespace, have: set[str], cap: float, folder: Path) -> str | None:
    """Run a section in a child process; the reason if it ended before its time, else None."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            os.chdir(TOOLS.parent)
            folder.mkdir()
            measure(name, options, have, cap, folder)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    until = time.monotonic() + cap
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            end_group(child)  # workers of a child that died
            code = os.waitstatus_to_exitcode(status)
            return None if code == 0 else f"ended with code {code}"
        time.sleep(0.02)
    end_group(child)
    os.waitpid(child, 0)
    return f"ended at its cap of {cap:.0f} s"


def end_group(leader: int) -> None:
    """End all processes of a section."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def append(path: Path, row: Row) -> None:
    """Append a row to the file, so that it survives whatever comes next."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
    print(f"{row['section']}: {line_of(row)}", flush=True)


def read(path: Path | None) -> list[Row]:
    """The rows of a file; of one that was cut, those that are whole."""
    rows = []
    for line in path.read_text().splitlines() if path is not None and path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def card_name(device: str) -> str | None:
    """Name of the device; None if it is not there."""
    import torch

    if device == "cpu":
        return "CPU"
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def table(rows: list[Row]) -> str:
    """The newest of each row as a Markdown table of at most `LINES` lines."""
    newest = {(row["section"], row["row"]): row for row in rows}
    order = sorted(newest.values(), key=lambda row: [*SECTIONS].index(row["section"]))
    lines = ["| section | what | figure | roofline | share | details |", "|---|---|---|---|---|---|"]
    lines += [f"| {row['section']} | {line_of(row)} |" for row in order]
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], f"| | {len(lines) - LINES + 1} more rows in the file | | | | |"]
    return "\n".join(lines)


def line_of(row: Row) -> str:
    """Cells of a row behind its section."""
    value, best = row.get("value"), row.get("roofline")
    known = ("section", "row", "card", "torch", "value", "unit", "roofline", "seconds", "error")
    details = "; ".join(f"{key} {x}" for key, x in row.items() if key not in known)
    share = value / best if value is not None and best and row.get("unit") not in ("", "failures", "differ") else None
    if share is not None and row.get("unit") in ("ms", "us", "s"):
        share = 1 / share if share else None
    figure = row.get("error") or (f"{value:.4g} {row.get('unit', '')}".strip() if value is not None else "–")
    cells = [
        row["row"],
        figure,
        "–" if best is None else f"{best:.4g}",
        "–" if share is None else f"{share:.0%}",
        details,
    ]
    return " | ".join(str(cell)[:150].replace("|", "\\|") for cell in cells)


def read_options() -> argparse.Namespace:
    """The command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="toy sizes, as a smoke test")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--seconds", type=float, default=540, help="for all of it")
    parser.add_argument("--cap", type=float, help="longest time of any section, in seconds")
    parser.add_argument("--have", type=Path, help="rows of an earlier run, which are not measured again")
    parser.add_argument(
        "--json", type=Path, dest="out", default=Path("gpu.jsonl"), help="rows are appended to this file"
    )
    parser.add_argument("--data", type=Path, help="folder of cifar10-train.npz and cifar10-test.npz, for simclr")
    parser.add_argument("--workers", type=int, default=12, help="processes that decode")
    options = parser.parse_args()
    if options.device == "cpu" and not options.tiny:
        parser.error("--device cpu goes with --tiny only: a smoke test without measurements")
    options.workers = 0 if options.tiny else options.workers
    options.out = options.out.absolute()
    options.data = options.data and options.data.absolute()
    return options


def main() -> int:
    """Measure what is missing, and print the table. Returns 3 without a GPU."""
    started = time.monotonic()
    options = read_options()
    sys.path[:0] = [str(TOOLS), str(TOOLS.parent)]
    import open_clip  # noqa: F401

    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # it has only imported
    with multiprocessing.get_context("fork").Pool(1) as pool:
        card = pool.apply(card_name, (options.device,))
    if card is None:
        print("gpu_report needs a CUDA device, and torch sees none here: nothing was measured", file=sys.stderr)
        return 3
    earlier = [row for row in [*read(options.have), *read(options.out)] if row["card"] == card]
    with tempfile.TemporaryDirectory() as folder:
        for name in options.sections:
            section, left = SECTIONS[name], max(0.0, options.seconds - (time.monotonic() - started))
            cap = min(options.cap or section.cap, left)
            have = {row["row"] for row in earlier if row["section"] == name and "error" not in row}
            why = f"{left:.0f} s are left, it needs {section.least:g}" if left < section.least else None
            why = why or run_section(name, options, have, cap, Path(folder) / name)
            if why is not None:
                append(options.out, {"section": name, "row": "section", "card": card, "error": why})
    torch_version = sys.modules["torch"].__version__
    print(f"\n{card}, torch {torch_version}, {time.monotonic() - started:.0f} s\n")
    print(table([row for row in [*earlier, *read(options.out)] if row["card"] == card]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
