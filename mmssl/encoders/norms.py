"""The epsilon of layer norms."""

from __future__ import annotations

from torch import nn

USUAL_EPS = 1e-5
"""What is added to the variance: torch's default, and CLIP's."""


def set_epsilon(module: nn.Module, eps: float) -> None:
    """Set what every LayerNorm of a module adds to the variance."""
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = eps
