"""Time of a sweep of linear probes over L2 penalties: ours, and scikit-learn's LogisticRegression fitted once for each.

    python tools/bench_probe.py                                    # 50,000 x 512, 100 classes, 8 penalties; hours for scikit-learn
    python tools/bench_probe.py --samples 8000 --width 256 --classes 50

Both stop where no entry of the gradient of the same objective exceeds the tolerance (scikit-learn's rule), in one thread unless
--threads says otherwise, and CPU seconds are compared. Features have the decaying spectrum of real embeddings. The objective of
ours may not be above scikit-learn's by more than float32 rounds.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.evaluation.linear_probe import fit_probes, probe_objective


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("samples", 50_000), ("width", 512), ("classes", 100), ("penalties", 8), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    features, labels = make(options.samples, options.width, options.classes)
    penalties = torch.logspace(-2, -7, options.penalties).tolist()
    figures: dict[str, float] = {}
    objectives: dict[str, list[float]] = {}
    for name, sweep in (("ours", sweep_ours), ("scikit_learn", sweep_scikit_learn)):
        start, wall = time.process_time(), time.perf_counter()
        objectives[name] = sweep(features, labels, options.classes, penalties, options.tolerance)
        figures[f"{name}_cpu_s"] = round(time.process_time() - start, 2)
        figures[f"{name}_wall_s"] = round(time.perf_counter() - wall, 2)
    excess = max(a - b for a, b in zip(objectives["ours"], objectives["scikit_learn"], strict=True))
    ratio = figures["ours_cpu_s"] / figures["scikit_learn_cpu_s"]
    print(json.dumps({**vars(options), **figures, "ratio": round(ratio, 3), "objective_excess": excess}))


if __name__ == "__main__":
    main()
