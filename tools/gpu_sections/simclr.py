"""SimCLR on CIFAR-10 in lightly's setting, in the time that is there: kNN at the last epoch."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

from .bench import Bench, Figures, Rows

EPOCHS, PUBLISHED = 200, 0.848


def rows(bench: Bench) -> Rows:
    """One row."""
    yield "SimCLR, ResNet-18, batch 512", partial(_train, bench)


def _train(bench: Bench) -> Figures:
    if bench.data is None:
        raise FileNotFoundError("no --data folder with cifar10-train.npz and cifar10-test.npz")
    started = time.monotonic()
    _run(bench, 2, bench.folder / "two")
    an_epoch = (time.monotonic() - started) / 2  # compilation counts, and the later estimate errs on the short side
    left = bench.seconds - (time.monotonic() - started)
    epochs = 2 if bench.tiny else max(2, min(EPOCHS, int(0.9 * left / an_epoch)))
    started = time.monotonic()
    accuracy = _run(bench, epochs, bench.folder / "all")
    seconds = time.monotonic() - started
    return {
        "value": accuracy,
        "unit": "kNN",
        "roofline": PUBLISHED,
        "epochs": epochs,
        "seconds": round(seconds),
        "s an epoch": round(seconds / epochs, 2),
    }


def _run(bench: Bench, epochs: int, folder: Path) -> float:
    import json

    import reproduce_cifar10

    result = folder.with_suffix(".json")
    toy = ["--pictures", "40", "--batch", "16", "--neighbours", "5"] if bench.tiny else ["--compile", "default"]
    options = ["--data", bench.data, "--epochs", epochs, "--every", f"{max(1, epochs // 4)} epochs", "--json", result]
    before = sys.argv
    sys.argv = [str(part) for part in ["", *options, "--device", bench.device.type, "--output", folder, *toy]]
    try:
        reproduce_cifar10.main()
    finally:
        sys.argv = before
    return float(json.loads(result.read_text())["ours"])
