"""Inputs without random numbers, and pairs of unit-norm rows."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

GOLDEN: dict[str, float] = json.loads((Path(__file__).parent.parent / "golden" / "losses.json").read_text())["values"]


def sines(n: int, d: int, p: float, q: float, r: float) -> Tensor:
    """A(n,d,p,q,r)[i,j] = sin(p*i + q*j + r*i*j), float64."""
    i, j = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(d, dtype=torch.float64)[None]
    return torch.sin(p * i + q * j + r * i * j)


def golden_rows() -> tuple[Tensor, Tensor]:
    """z0 and z1 of the golden values, [8, 16]."""
    z0 = sines(8, 16, 0.7, 1.3, 0.1)
    return z0, 0.4 * z0 + sines(8, 16, 0.9, 0.4, 0.23)


def golden_views() -> tuple[Tensor, Tensor]:
    """z0 and z1 of the golden values, normalised, [8, 16]."""
    z0, z1 = golden_rows()
    return F.normalize(z0, dim=-1), F.normalize(z1, dim=-1)


def rows(n: int, d: int, seed: int = 0, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """Two random sets of rows [n, d] that agree in part, with means and scales that differ between features, float64."""
    random = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, n, d, generator=random, dtype=torch.float64)
    scale = torch.linspace(0.3, 2.0, d, dtype=torch.float64)
    return a * scale + shift, (0.6 * a + b) * scale.flip(0) - shift


def unit_rows(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Two random sets of unit-norm rows [n, d]."""
    random = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, n, d, generator=random, dtype=torch.float64)
    return F.normalize(a, dim=-1).to(dtype), F.normalize(b, dim=-1).to(dtype)
