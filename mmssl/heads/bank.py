"""Bank of one embedding of every training sample, by the number of the sample: clustering (DeepCluster, SeLA), PIRL."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmssl.core import distributed


class SampleBank(nn.Module):
    """The latest rows of every training sample, by `Batch.index`; equal on all processes, saved in checkpoints.

    Attributes:
        rows: [N, ...], zero where a sample has none yet. `write` writes in place: read metrics that need the rows before it.

    Args:
        samples: N, `Plan.samples`; 0 in a model that is not trained.
        shape: of the rows of a sample.
    """

    rows: Tensor

    def __init__(self, samples: int, *shape: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(samples, *shape))

    @torch.no_grad()
    def write(self, index: Tensor, rows: Tensor) -> None:
        """Replace the rows of some samples. Every process must call.

        Args:
            index: [n] int64, numbers of samples of this process; processes may have different numbers of them.
            rows: [n, ...]. Of several for one sample the last is kept, in the order of ranks.
        """
        numbers, order = distributed.gather_uneven(index).sort(stable=True)
        everyone = distributed.gather_uneven(rows)
        last = torch.searchsorted(numbers, numbers, right=True) - 1  # of each sample: all its places get the same rows
        self.rows.index_copy_(0, numbers, everyone[order[last]].to(self.rows.dtype))

    @torch.no_grad()
    def known(self) -> Tensor:
        """Numbers of the samples that have rows, [n] int64, ascending."""
        return self.rows.flatten(1).any(1).nonzero()[:, 0]
