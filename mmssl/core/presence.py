"""Samples that lack a modality: criteria select the rows of present samples, gather them and count them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmssl.core import distributed

Terms = dict[str, Tensor]


class Present:
    """The samples of the global batch that have what an objective reads.

    Without the latent "present" (`StepContext.presence`) all of them have it, and nothing is selected or communicated.

    Args:
        latents: of this process, with "present" [B] bool where samples may lack the modality.
        least: fewest samples of the global batch with which there is something to learn; with fewer, none is selected.
    """

    def __init__(self, latents: Mapping[str, Tensor], least: int = 1) -> None:
        self._mask = latents.get("present")
        self._everyone: Tensor | None = None
        self._nobody = False
        if self._mask is not None:
            self._everyone = distributed.gather_detached(self._mask)
            self._nobody = int(self._everyone.sum()) < least
            if self._nobody:
                self._mask, self._everyone = torch.zeros_like(self._mask), torch.zeros_like(self._everyone)

    def rows(self, x: Tensor) -> Tensor:
        """The rows of present samples of this process, [B, ...] -> [n, ...]."""
        return x if self._mask is None else x[self._mask]

    def offset(self, x: Tensor) -> int:
        """Number of present samples on the processes before this one, for rows `x` [n, ...] of this process."""
        if self._mask is None or self._everyone is None:
            return distributed.rank() * len(x)
        return int(self._everyone[: distributed.rank() * len(self._mask)].sum())

    def gather(self, x: Tensor) -> Tensor:
        """All-gather the rows of present samples with gradient, [n, ...] of each process -> [N, ...] in the order of ranks."""
        if self._mask is None or self._everyone is None:
            return distributed.gather(x)
        whole = x.new_zeros(len(self._mask), *x.shape[1:]).index_copy(0, self._mask.nonzero()[:, 0], x)
        return distributed.gather(whole)[self._everyone]

    def share(self, x: Tensor) -> float:
        """Factor that makes a mean over this process' rows `x` [n, ...] its share of the mean over all; 1 if all are present."""
        if self._everyone is None:
            return 1.0
        return len(x) * distributed.world_size() / max(int(self._everyone.sum()), 1)

    def terms(self, terms: Terms) -> Terms:
        """Loss terms as they are, or times 0 if no sample is present."""
        return {name: 0 * term for name, term in terms.items()} if self._nobody else terms
