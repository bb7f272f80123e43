"""Base of pretext tasks, which change a view by a number that is to be told from the changed view."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from mmssl.core.config import Config


class PretextTask(Config, ABC):
    """Base of pretext tasks. They work on the device, on raw views."""

    @property
    @abstractmethod
    def classes(self) -> int:
        """K, number of labels."""

    @property
    def parts(self) -> int:
        """Number of views that are made of one, and encoded each alone."""
        return 1

    def readings(self, label: Tensor) -> list[tuple[Sequence[int], Tensor]]:
        """Orders in which the head reads the parts of a view, and the label [B] of each, for labels [B]."""
        return [(range(self.parts), label)]

    @abstractmethod
    def make(self, x: Tensor, label: Tensor, index: Tensor, seed: int) -> list[Tensor]:
        """The views of raw views [B, ...], each [B, ...], for labels [B] int64.

        Args:
            x: raw views.
            label: below K.
            index: [B] int64, numbers of the samples. What is drawn is a function of (seed, number), equal on any processes.
            seed: of the step.

        Raises:
            ValueError: the view has another shape than the task needs.
        """


def picked(x: Tensor, places: Tensor) -> Tensor:
    """Rows `places` [B, n] of each of [B, m, ...] -> [B, n, ...]."""
    return x[torch.arange(len(x), device=x.device)[:, None], places]


def as_floats(x: Tensor) -> Tensor:
    """Pixels uint8 as floats between 0 and 1; floats as they are."""
    return x.float() / 255 if x.dtype == torch.uint8 else x
