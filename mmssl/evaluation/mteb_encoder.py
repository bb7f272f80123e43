"""A model as an encoder of mteb: its inputs through the recipe's decoders, its embeddings as mteb compares them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core.encoder import EmbeddingModel, TowerPrecision
from mmssl.core.errors import DataError, NumericError, os_words
from mmssl.data.modality import DecodeError, Modality
from mmssl.evaluation.common import inference


class MtebEncoder:
    """A model as mteb asks for it (`EncoderProtocol`).

    Embeddings are those of the shared space where the model has one for all modalities of a task, or else the encoder's pooled
    features. Of inputs with several modalities the embedding is the sum of theirs, which are of unit norm.

    Args:
        model: encoders and heads.
        modalities: name -> decoder and views.
        batch_size: inputs encoded at a time.
        precision: in which encoders compute.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        modalities: Mapping[str, Modality],
        batch_size: int,
        precision: TowerPrecision = "float32",
    ) -> None:
        self.model, self.modalities, self.batch_size, self.precision = model, modalities, batch_size, precision
        self.names = [name for name in ("text", "image", "audio", "video") if name in model.encoders]

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb records of a model: its modalities, and that it is compared by cosine."""
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        return ModelMeta.create_empty(
            {
                "name": "mmssl/model",
                "revision": "local",
                "modalities": self.names,
                "similarity_fn_name": ScoringFunction.COSINE,
                "n_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
                "framework": ["PyTorch"],
            }
        )

    def encode(self, inputs: Iterable[Mapping[str, Any]], *, task_metadata: Any, **_: Any) -> np.ndarray[Any, Any]:
        """Embeddings [n, E] float32 of batches {"text": [...], "image": [...], "audio": [...], "video": [...]}.

        Raises:
            DataError: an input cannot be used. NumericError: an embedding is not finite.
        """
        shared = all(name in self.model.heads for name in task_metadata.modalities if name in self.names)
        rows: list[Tensor] = []
        with inference(self.model, self.precision):
            for batch in inputs:
                there = [name for name in self.names if name in batch]
                if not there:
                    raise DataError(
                        f"{task_metadata.name}: got inputs with {', '.join(batch)}, wanted some of {', '.join(self.names)}"
                    )
                parts = [self._rows(name, batch[name], shared, task_metadata.name) for name in there]
                rows.append(parts[0] if len(parts) == 1 else torch.stack([F.normalize(x, dim=1) for x in parts]).sum(0))
        whole = torch.cat(rows)
        if not torch.isfinite(whole).all():
            raise NumericError(f"{task_metadata.name}: an embedding is not finite; go back to an earlier checkpoint")
        return whole.numpy()

    def _rows(self, name: str, items: Sequence[Any], shared: bool, task: str) -> Tensor:
        modality, function = self.modalities[name], self.model.embed if shared else self.model.features
        view = modality.view("eval")
        made: list[Tensor] = []
        for item in items:
            try:
                x = view(modality.from_input(as_input(name, item)), {})
            except (DecodeError, DataError, ValueError, OSError) as error:
                raise DataError(f"{task}: {name} input: {os_words(error, path=True)}") from error
            made.append(x[0] if view.ragged else x)
        parts = torch.split(torch.stack(made), self.batch_size)
        return torch.cat([function(name, part).cpu() for part in parts])

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines [n, m], float32."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines [n] of equal rows."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(1)


def as_input(name: str, item: Any) -> Any:
    """An input of mteb as `Modality.from_input` takes it.

    Sounds come as {"array", "sampling_rate"} or torchcodec's decoder, videos as torchcodec's decoder or frames [T, 3, H, W] of one
    second each.
    """
    if name == "audio" and isinstance(item, Mapping):
        return np.asarray(item["array"], np.float32), int(item["sampling_rate"])
    if name == "audio" and hasattr(item, "get_all_samples"):
        samples = item.get_all_samples()
        return samples.data.float().numpy(), int(samples.sample_rate)
    if name == "video":
        rate = float(item.metadata.average_fps) if hasattr(item, "metadata") else 1.0
        frames = item[:] if hasattr(item, "metadata") else torch.as_tensor(item)
        return frames.movedim(1, -1).numpy(), rate
    return item


def _unit(x: Any) -> Tensor:
    return F.normalize(torch.as_tensor(np.asarray(x), dtype=torch.float32), dim=-1)
