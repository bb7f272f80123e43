"""Time of a sweep of linear probes over penalties against scikit-learn: `python3 tools/run.py python tools/bench_probe.py`.

50,000 x 512 features with the decaying spectrum of real embeddings, 100 classes, 8 penalties, one thread, unless told otherwise.
Ours fits all from one eigenbasis, each from the last; scikit-learn's LogisticRegression fits each by itself. Both stop where no
entry of the gradient of the same objective is above the tolerance, and CPU seconds are compared.

A ratio is the peer's seconds over ours: above 1, ours is better.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.evaluation.labelled.linear_probe import fit_probes, probe_objective


def make(samples: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
    """Unit-norm features [n, D] float64 of overlapping classes, with a spectrum that decays tenfold, and labels [n]."""
    generator = torch.Generator().manual_seed(0)
    centres = 0.19 * torch.randn(classes, width, generator=generator)
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    labels = torch.randint(0, classes, (samples,), generator=generator)
    spread = torch.logspace(0, -1, width)
    rows = ((centres[labels] + torch.randn(samples, width, generator=generator)) * spread) @ basis.T
    return F.normalize(rows, dim=1).double(), labels


def sweep_ours(features: Tensor, labels: Tensor, classes: int, penalties: list[float], tolerance: float) -> list[float]:
    """Objectives of the sweep, by penalty."""
    probes = fit_probes(features, labels, classes, penalties, tolerance=tolerance, dtype=torch.float32)
    found = [probes[penalty] for penalty in penalties]
    return [
        float(probe_objective(probe.weight, probe.bias, features, labels, penalty))
        for probe, penalty in zip(found, penalties, strict=True)
    ]


def sweep_scikit_learn(
    features: Tensor, labels: Tensor, classes: int, penalties: list[float], tolerance: float
) -> list[float]:
    """Objectives of one fit after the other, by penalty; from float32, which is its faster way."""
    from sklearn.linear_model import LogisticRegression

    objectives = []
    for penalty in penalties:
        c = 1 / (penalty * len(labels))
        model = LogisticRegression(C=c, max_iter=1000, tol=tolerance).fit(features.float().numpy(), labels.numpy())
        weight, bias = torch.from_numpy(model.coef_).double(), torch.from_numpy(model.intercept_).double()
        objectives.append(float(probe_objective(weight, bias, features, labels, penalty)))
    return objectives


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds of both sweeps, their ratio, and by how much an objective of ours is above scikit-learn's at most."""
    features, labels = make(arguments.samples, arguments.width, arguments.classes)
    penalties = torch.logspace(-2, -7, arguments.penalties).tolist()
    seconds: dict[str, float] = {}
    objectives: dict[str, list[float]] = {}
    for name, sweep in (("ours", sweep_ours), ("peer", sweep_scikit_learn)):
        start = time.process_time()
        objectives[name] = sweep(features, labels, arguments.classes, penalties, arguments.tolerance)
        seconds[name] = time.process_time() - start
    excess = max(a - b for a, b in zip(objectives["ours"], objectives["peer"], strict=True))
    return {**seconds, "ratio": seconds["peer"] / seconds["ours"], "objective_excess": excess}


def main() -> None:
    """Read arguments, measure, print, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, value in (("samples", 50_000), ("width", 512), ("classes", 100), ("penalties", 8), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--json", type=Path, help="write the result here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(arguments)
    print(
        f"{arguments.samples:,} x {arguments.width}, {arguments.classes} classes, {arguments.penalties} penalties: ours "
        f"{result['ours']:.2f} CPU s, scikit-learn {result['peer']:.2f}, ratio {result['ratio']:.2f}; "
        f"largest objective above scikit-learn's: {result['objective_excess']:.1e}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
