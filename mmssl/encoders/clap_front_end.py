"""CLAP's mel spectrograms (arXiv:2211.06687, section 3.3): one of ten seconds, or four of any length; no randomness in evaluation.

transformers' feature extractor draws the chunks of long sounds at random, in inference too, and treats one random short sound of a
batch as long. So the embedding of one file changes from call to call. Here evaluation is deterministic.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmssl.core.config import Config
from mmssl.encoders.spec_augment import SpecAugmentConfig
from mmssl.encoders.spectrogram import PRESETS, MelConfig, MelFrontEnd


class ClapFrontEndConfig(Config):
    """Settings of the mel front-end of CLAP's audio towers.

    Attributes:
        kind: "clap_htsat_unfused": one spectrogram of the middle `seconds`; "clap_htsat_fused": four of that length, see
            `ClapFrontEnd`. Their mel filters differ too (Slaney's and HTK's).
        mel: mel filters; None: the published ones.
        seconds: length of a spectrogram. Shorter sounds are repeated as often as they fit whole; silence fills the rest.
        spec_augment: SpecAugment masks in training; None: none.
    """

    kind: Literal["clap_htsat_fused", "clap_htsat_unfused"]
    mel: MelConfig | None = None
    seconds: float = Field(default=10.0, gt=0)
    spec_augment: SpecAugmentConfig | None = None

    @model_validator(mode="after")
    def _one_plane(self) -> Self:
        if self.settings.planes != 1:
            raise ValueError(
                "mel.channel: got 'both', wanted mean or first: the input planes of CLAP's towers are chunks of time"
            )
        return self

    @property
    def settings(self) -> MelConfig:
        """Settings of the spectrogram: the published ones where `mel` is None."""
        mel = self.mel or PRESETS[self.kind]
        assert isinstance(mel, MelConfig)
        return mel.model_copy(update={"spec_augment": self.spec_augment or mel.spec_augment})

    def build(self) -> ClapFrontEnd:
        """Build the front-end."""
        return ClapFrontEnd(self)


class ClapFrontEnd(nn.Module):
    """CLAP's mel front-end: waveforms [B, C, samples] -> spectrograms [B, 1, F, T], or with fusion [B, 4, F, T].

    T is the number of frames of `seconds`. With fusion, a longer sound gives its whole spectrogram, shrunk to T frames (bilinear),
    and three chunks of T frames: the first, the central and the last, or with `augment` one at a random place of each third (as
    LAION trains). Other sounds give four equal planes. Without fusion the middle of a longer sound is taken.
    """

    def __init__(self, config: ClapFrontEndConfig) -> None:
        super().__init__()
        self.mel = MelFrontEnd(config.settings)
        self.fused = config.kind == "clap_htsat_fused"
        self.samples = round(config.settings.rate * config.seconds)
        self.frames = self.mel.frame_count(self.samples)

    def is_longer(self, samples: int) -> bool:
        """Whether sounds of this number of samples have chunks that differ: what fused towers call "longer"."""
        return self.fused and self.mel.frame_count(samples) > self.frames

    def forward(self, x: Tensor, *, augment: bool = False) -> Tensor:
        """[B, C, samples], int16 in units of 1 / 32768 or float in [-1, 1] -> [B, 1 or 4, F, T].

        Args:
            x: waveforms.
            augment: apply spec_augment, and draw the places of chunks.

        Raises:
            ValueError: `x` has another shape or dtype.
        """
        x = self._crop_or_repeat(x)
        mel: Tensor = self.mel(x, augment=augment)  # [B, 1, F, frames]
        if not self.fused:
            return mel
        if mel.shape[3] == self.frames:
            return mel.expand(-1, 4, -1, -1)
        whole = F.interpolate(mel, (mel.shape[2], self.frames), mode="bilinear", align_corners=False)
        place = self._chunk_starts(mel, augment)[:, :, None] + torch.arange(self.frames, device=mel.device)  # [B, 3, T]
        chunks = mel.expand(-1, 3, -1, -1).gather(3, place[:, :, None].expand(-1, -1, mel.shape[2], -1))
        return torch.cat([whole, chunks], dim=1)

    def _crop_or_repeat(self, x: Tensor) -> Tensor:
        # [B, C, at least `samples`]; exactly `samples` without fusion
        length = x.shape[-1]
        if x.ndim != 3 or length == 0:
            return x  # the spectrogram says what is wrong
        if length < self.samples:
            times = self.samples // length
            return F.pad(x.repeat(1, 1, times), (0, self.samples - times * length))
        start = (length - self.samples) // 2
        return x if self.fused else x[..., start : start + self.samples]

    def _chunk_starts(self, mel: Tensor, augment: bool) -> Tensor:
        # [B, 3], first frames of the chunks
        places = mel.shape[3] - self.frames + 1
        if not augment:
            return torch.tensor([0, (places - 1) // 2, places - 1], device=mel.device).expand(len(mel), -1)
        counts = places // 3 + (torch.arange(3, device=mel.device) < places % 3)
        first = torch.where(counts > 0, counts.cumsum(0) - counts, 0)  # too few places for three thirds: the front
        return first + (torch.rand(len(mel), 3, device=mel.device) * counts).long()
