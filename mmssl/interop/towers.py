"""Two trained towers in one space, one of pictures or sounds and one of texts, as exports take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.core.encoder import EmbeddingModel, Encoder, EncoderConfig
from mmssl.data.modalities.views.image import EvalView
from mmssl.data.modality import Modality
from mmssl.heads.projection import LinearProjection


@dataclass(frozen=True)
class Inputs:
    """Real inputs by modality, n each.

    Attributes:
        raw: files as bytes; of texts the first caption.
        values: decoded.
        views: view "eval" of each, [n, ...].
    """

    raw: Mapping[str, Sequence[bytes]]
    values: Mapping[str, Sequence[Any]]
    views: Mapping[str, Tensor]


@dataclass(frozen=True)
class Towers:
    """Two towers with their heads and temperature, and how their inputs are read.

    Attributes:
        first, text: names of the modalities; `first` has pictures or sounds.
        configs: name -> settings of the encoder.
        embedding: encoders and heads, on the CPU.
        modalities: name -> decoder and views.
        logit_scale: logarithm of 1 / temperature, [].
        logit_bias: of the sigmoid loss, []; None: another loss.
    """

    first: str
    text: str
    configs: Mapping[str, EncoderConfig]
    embedding: EmbeddingModel
    modalities: Mapping[str, Modality]
    logit_scale: Tensor
    logit_bias: Tensor | None

    def encoder(self, name: str) -> Any:
        """The encoder of a modality, whose kind its config says."""
        return self.embedding.encoders[name]

    def ends_in_space(self, name: str) -> bool:
        """Whether an encoder's pooled output is the embedding: its head is the identity."""
        return isinstance(self.embedding.heads[name], nn.Identity)

    def projection(self, name: str) -> Tensor:
        """Weight [E, D] of a linear head; the identity where there is none.

        Raises:
            ValueError: a head of another kind.
        """
        head, encoder = self.embedding.heads[name], self.embedding.encoders[name]
        if isinstance(head, LinearProjection):
            return head.linear.weight.detach()
        if isinstance(head, nn.Identity) and isinstance(encoder, Encoder):
            return torch.eye(encoder.width)
        raise ValueError(f"heads of {name}: wanted linear projections, and this model has {type(head).__name__}")

    def picture_view(self) -> EvalView:
        """How pictures become squares.

        Raises:
            ValueError: `first` has no pictures.
        """
        view = self.modalities[self.first].view("eval")
        if not isinstance(view, EvalView):
            raise ValueError(f"modalities.{self.first}: wanted pictures, and this model reads something else")
        return view

    def kinds(self) -> tuple[str, str]:
        """Kinds of the encoders of `first` and `text`."""
        first, text = (str(getattr(self.configs[name], "kind", "")) for name in (self.first, self.text))
        return first, text
