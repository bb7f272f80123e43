"""CLIP's residual network on spectrograms: the convolutional counterpart of the spectrogram transformer."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmssl.core.encoder import Encoder, Features
from mmssl.encoders.adapters.adapter import refuse_masks
from mmssl.encoders.positions import fit_columns
from mmssl.encoders.resnet import Stages, StagesConfig
from mmssl.encoders.sound_config import FrontEndEncoderConfig
from mmssl.encoders.weights import load_and_freeze
from mmssl.encoders.windows import encode_windows


class AudioResNetConfig(StagesConfig, FrontEndEncoderConfig):
    """Settings of an audio ResNet: CLIP's residual network on mel spectrograms."""

    kind: Literal["audio_resnet"] = "audio_resnet"

    def build(self) -> AudioResNet:
        """Build it, load `weights` (positions resampled to this length), freeze."""
        encoder = AudioResNet(self)
        load_and_freeze(
            encoder, self, adapt=lambda state: fit_columns(state, "attnpool.positional_embedding", encoder.grid, 1)
        )
        return encoder


class AudioResNet(Stages):
    """Audio ResNet: waveforms [B, C, samples] -> pooled [B, D] and the cells of the last feature map as tokens [B, T, D].

    The grid is (rows over the filters from low to high, columns over time), read row by row; cells at the ends may be cut.
    """

    capabilities = frozenset({Encoder.TOKENS, Encoder.PREPARED})

    def __init__(self, config: AudioResNetConfig) -> None:
        front_end = config.front_end.build()
        size = (front_end.mels, front_end.length(round(config.rate * config.seconds)))
        super().__init__(config, front_end.planes, (-(-size[0] // config.stride), -(-size[1] // config.stride)))
        self.front_end = front_end

    def prepare(self, x: Tensor) -> Tensor:
        """Waveforms [B, C, samples], int16 or float in [-1, 1] -> normalised spectrograms [B, planes, filters, frames]."""
        return self._spectrograms(x, augment=False)

    def forward(
        self,
        x: Tensor,
        *,
        keep: Tensor | None = None,
        replace: tuple[Tensor, Tensor] | None = None,
        hidden: int = 0,
        pooled_only: bool = False,
    ) -> Features:
        """See `Encoder.forward`. Several windows of a sound [B, n, C, samples] give the mean of their pooled features, no tokens.

        Spectrograms that `prepare` made are taken, too.

        Raises:
            ValueError: masks or hidden layers are asked for, or `x` is not audio.
        """
        refuse_masks(self, keep, replace)
        self.check_hidden(hidden)
        if x.ndim == 4 and not self.front_end.is_spectrogram(x):
            return encode_windows(self, x)
        return self.encode(self._spectrograms(x, augment=self.training))

    def _spectrograms(self, x: Tensor, *, augment: bool) -> Tensor:
        made: Tensor = self.front_end(x, augment=augment)
        return made.contiguous(memory_format=torch.channels_last)
