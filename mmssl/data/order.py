"""In which order the samples of a data set are seen: a pure function of the seed, and of nothing that a cluster could change."""

from __future__ import annotations

import numpy as np

from mmssl.core.seeding import generator


class Order:
    """An endless sequence of sample numbers in which every N in a row, counted from the start, hold each of N samples once.

    Epoch e is a random permutation of all samples, made from (seed, digest, e). Batches are cut from the joined epochs, so one
    that begins in an epoch may end in the next: nothing is dropped or repeated for the sake of divisibility. Where such a batch
    would hold a sample twice, the second one moves back within the first G of its epoch, right behind the batch. (This needs
    N >= 2 G; in smaller data sets the batch between two epochs may hold a sample twice.)

    Memory: 4 bytes a sample for each of at most two epochs. A full permutation mixes best, and reads at random places.

    Args:
        samples: N. batch_size: G, samples of the global batch. seed: of the run. digest: of the shards.
    """

    def __init__(self, samples: int, batch_size: int, seed: int, digest: str) -> None:
        if not 0 < batch_size <= samples:
            raise ValueError(
                f"got batches of {batch_size} from {samples} samples, wanted at least one sample and at most all"
            )
        self.samples = samples
        self.batch_size = batch_size
        self.seed = seed
        self.digest = digest
        self._epochs: dict[int, np.ndarray] = {}

    def rows(self, step: int, start: int, stop: int) -> list[tuple[int, int]]:
        """(epoch, sample number) of rows start ... stop-1 of global batch `step`."""
        positions = range(step * self.batch_size + start, step * self.batch_size + stop)
        out: list[tuple[int, int]] = []
        while len(out) < len(positions):
            epoch, first = divmod(positions[len(out)], self.samples)
            part = self.epoch(epoch)[first : first + len(positions) - len(out)]
            out += [(epoch, ordinal) for ordinal in part.tolist()]
        return out

    def epoch(self, epoch: int) -> np.ndarray:
        """All sample numbers in the order of epoch `epoch`, [N] int32 or int64."""
        if epoch not in self._epochs:
            order = self._permutation(epoch)
            shared = (
                epoch * self.samples
            ) % self.batch_size  # rows of the batch in front that belong to the last epoch
            if shared and self.samples >= 2 * self.batch_size:
                before = self._epochs.get(epoch - 1, None)
                before = self._permutation(epoch - 1) if before is None else before
                head = order[: self.batch_size]
                clash = np.isin(head, before[-shared:])
                order[: self.batch_size] = head[np.argsort(clash, kind="stable")]
            self._epochs = {e: kept for e, kept in self._epochs.items() if e == epoch - 1} | {epoch: order}
        return self._epochs[epoch]

    def _permutation(self, epoch: int) -> np.ndarray:
        order = np.arange(self.samples, dtype=np.int32 if self.samples < 2**31 else np.int64)
        generator(self.seed, "order", self.digest, epoch).shuffle(order)
        return order
