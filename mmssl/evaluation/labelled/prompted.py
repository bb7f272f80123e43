"""What classification by text prompts shares: class weights, their comparison with stored names, and embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError
from mmssl.core.evaluator import Evaluator
from mmssl.data.modality import Modality
from mmssl.evaluation.class_names import compare_with_stored
from mmssl.evaluation.collect import Collected, KeptShards
from mmssl.evaluation.common import require_modalities, require_usable
from mmssl.evaluation.prompts import PromptedConfig, Prompts


class PromptedEvaluator(Evaluator):
    """Base of evaluators that classify samples by the prompts of classes.

    Args:
        config: settings; `labels` and `modality` are collected.
        modalities: by name.
        modality: that is classified.
        hashed: see `KeptShards`.
    """

    def __init__(
        self, config: PromptedConfig, modalities: Mapping[str, Modality], modality: str, *, hashed: bool = False
    ) -> None:
        require_modalities(modalities, (modality,))
        self.modality, self.labels = modality, config.labels
        self.modalities = modalities
        self.prompts: Prompts = config.read_prompts(modalities)
        self.shards = config.shards
        names = (modality, config.labels)
        self._shards = KeptShards(config, modalities, names, config.shards, config.max_samples, hashed=hashed)
        self.kept = (self._shards,)

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"classnames": self.prompts.names, "templates": self.prompts.templates}

    def open(self) -> None:
        """Open the shards, and compare `classnames` with the names beside them."""
        super().open()
        compare_with_stored(self.prompts.names, self.shards, "`classnames`")

    def classifier(self, model: EmbeddingModel) -> Tensor:
        """See `Prompts.classifier`; opens the shards first.

        Raises:
            ValueError: the model has no shared space of the modality and the prompts.
        """
        for name in (self.modality, self.prompts.modality):
            model.require(name, shared_space=True)
        self.open()
        return self.prompts.classifier(model)

    def embedded(self, model: EmbeddingModel, shards: KeptShards) -> Collected:
        """Embeddings and labels of the samples of some shards."""
        encode = {self.modality: lambda x: model.embed(self.modality, x), self.labels: lambda x: x}
        return shards.collect(encode, model.device)


def single_embeddings(data: Collected, modality: str) -> tuple[Tensor, Tensor]:
    """Embeddings [n, E] and their samples [n] of a modality that has one item a sample.

    Raises:
        NumericError: an embedding is not finite, or zero. DataError: a sample has several items.
    """
    rows, owner = data[modality].rows, data[modality].owner
    require_usable(rows, owner, data.keys, f"the embedding of {modality!r}", unit=True)
    if len(torch.unique(owner)) < len(owner):
        raise DataError(
            f"{modality!r} has several items in one sample, wanted one for zero-shot classification; "
            f"`modalities.{modality}.captions: whole` reads the lines of a text as one"
        )
    return rows, owner
