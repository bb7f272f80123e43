"""SIGReg and the invariance of views, the two losses of LeJEPA: a test of normality prevents collapse, without a teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core import distributed

KNOTS = 17
"""Points of the quadrature on [0, 3]. With 17, the expected SIGReg of normally distributed embeddings is 1.0525."""


def sigreg(x: Tensor, directions: Tensor) -> Tensor:
    """SIGReg: distance of embeddings from a standard normal distribution, by Epps-Pulley tests along random directions.

    Balestriero and LeCun 2025, "LeJEPA" (arXiv:2511.08544), in the authors' discretisation: the characteristic function on [0, 3],
    doubled by symmetry. The optimum is not 0 but 1.0525 on average, for any number of samples; the value of collapsed embeddings
    grows with the global batch. Memory: V * B * A * 17 numbers. Slow loop, over the rows of one process that sees them all::

        def loop(x, directions):
            V, N, A, total = len(x), len(x[0]), len(directions), 0.0
            for v in range(V):
                for a in range(A):
                    sample = [dot(x[v][i], directions[a]) for i in range(N)]
                    for k in range(17):
                        t = 3 * k / 16
                        gaussian = exp(-t * t / 2)
                        weight = 3 / 16 * (1 if k in (0, 16) else 2) * gaussian
                        real = mean([cos(t * s) for s in sample])
                        imaginary = mean([sin(t * s) for s in sample])
                        total += N * weight * ((real - gaussian) ** 2 + imaginary ** 2)
            return total / (V * A)

    Args:
        x: [V, B, E] embeddings of V views of this process' samples, float32 or float64.
        directions: [A, E] unit-norm rows, equal on all processes.

    Returns:
        [] the loss of the global batch, the same on every process, with gradient to the rows of all.

    Raises:
        ValueError: shapes do not match.
    """
    if x.ndim != 3 or directions.ndim != 2 or x.shape[2] != directions.shape[1]:
        raise ValueError(
            f"got embeddings {list(x.shape)} and directions {list(directions.shape)}, wanted [V, B, E] and [A, E]"
        )
    rows = distributed.count(x[0])
    t, gaussian, weights = _quadrature(x)
    angles = (x @ directions.T)[..., None] * t  # [V, B, A, K]
    real, imaginary = distributed.total(torch.stack([angles.cos().sum(1), angles.sin().sum(1)])) / distributed.count(
        x[0], least=1
    )
    distances: Tensor = ((real - gaussian).square() + imaginary.square()) @ weights  # [V, A]
    return rows * distances.mean()


def sigreg_of_collapse(samples: int) -> float:
    """SIGReg of a global batch whose embeddings are all zero: 0.40205 per sample."""
    _, gaussian, weights = _quadrature(torch.empty(0, dtype=torch.float64))
    return samples * float((1 - gaussian).square() @ weights)


def sigreg_of_normal() -> float:
    """Expected SIGReg of standard normal embeddings, for any number of samples: 1.0525."""
    _, gaussian, weights = _quadrature(torch.empty(0, dtype=torch.float64))
    return float((1 - gaussian.square()) @ weights)


def random_directions(like: Tensor, count: int, random: torch.Generator) -> Tensor:
    """Random unit vectors [count, E], uniform on the sphere, for embeddings [..., E].

    Args:
        like: embeddings, which give width, dtype and device.
        count: A, number of vectors.
        random: on the same device; equal on all processes.
    """
    drawn = torch.randn(count, like.shape[-1], generator=random, device=like.device, dtype=like.dtype)
    return F.normalize(drawn, dim=-1)


def view_invariance(x: Tensor, global_views: int) -> Tensor:
    """Mean squared error between the embeddings of all views of a sample and the mean of its global views.

    Balestriero and LeCun 2025 (arXiv:2511.08544). The gradient goes through the mean too. Slow loop::

        def loop(x, global_views):
            V, N, E, total = len(x), len(x[0]), len(x[0][0]), 0.0
            for i in range(N):
                for e in range(E):
                    centre = mean([float(x[v][i][e]) for v in range(global_views)])
                    total += sum((float(x[v][i][e]) - centre) ** 2 for v in range(V))
            return total / (V * N * E)

    Args:
        x: [V, B, E] embeddings of V views, the global ones first.
        global_views: number of views in the mean.

    Returns:
        [] this process' share of the mean over views, samples and features.
    """
    return distributed.mean((x - x[:global_views].mean(0)).square().mean((0, 2)))


def _quadrature(like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points [K] on [0, 3], the normal distribution's characteristic function there, and the weights of the integral."""
    t = torch.linspace(0, 3, KNOTS, device=like.device, dtype=like.dtype)
    gaussian = (-t.square() / 2).exp()
    weights = 2 * 3 / (KNOTS - 1) * gaussian
    weights[:: KNOTS - 1] /= 2  # the trapezoid rule: ends count half
    return t, gaussian, weights
