"""The evaluator protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from mmssl.core.encoder import EmbeddingModel

Score = float | int | str | None


class Evaluator(ABC):
    """Measures a model on shards of its own; knows nothing of how the model was trained.

    `evaluate` runs on every process, each on its share of the samples, and all processes yield the same scores: those of one
    process on all samples.

    Attributes:
        headlines: the few metrics that a console shows; all go to the files. Empty: all are shown.
    """

    headlines: tuple[str, ...] = ()

    @abstractmethod
    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        """Yield (metric, value). A value that is not defined is None, never NaN.

        Raises:
            ValueError: the model lacks a modality or a shared space that this evaluator needs.
            DataError: the shards cannot be used. NumericError: an embedding is not finite (named by key).
        """
