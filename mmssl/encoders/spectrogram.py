"""Audio front-ends: waveforms to normalised log-mel spectrograms, batched, on any device, differentiable.

The conventions of published models are presets with their normalisation: statistics belong to the front-end and not to the data
set, because every front-end has another scale. All are computed in float32, also under autocast.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmssl.core.config import Config
from mmssl.encoders.spec_augment import SpecAugmentConfig, spec_augment

Channel = Literal["mean", "first", "both", "level_difference"]

FULL_SCALE = 32768
"""int16 value that means 1.0 in waveforms."""


class FrontEndSettings(Config):
    """Settings of every log-mel front-end.

    Attributes:
        rate: sampling rate of the waveforms in Hz.
        mels: F, number of mel filters.
        low, high: lowest and highest frequency of the mel filters in Hz; high None: half of the rate.
        channel: how stereo is used: the "mean" of all channels, or the "first" one; or two planes, from which an encoder can learn
            the side of a sound: "both" channels, or "level_difference": the mean of the channels, and the level of the left over
            the right one in each filter and frame (difference of the logarithms over `std`; the cue of human hearing at high
            frequencies, Rayleigh 1907).
        frames: T; more frames are cut off, missing ones are zeros before normalisation (as in AST). None: no fixed number.
        mean, std: statistics of the logarithms: the output is (x - mean) / std.
        spec_augment: SpecAugment masks in training; None: none.
    """

    rate: int = Field(default=16_000, gt=0)
    mels: int = Field(default=128, gt=0)
    low: float = Field(default=20.0, ge=0)
    high: float | None = Field(default=None, gt=0)
    channel: Channel = "mean"
    frames: int | None = Field(default=None, gt=0)
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)
    spec_augment: SpecAugmentConfig | None = None

    @property
    def planes(self) -> int:
        """Number of spectrograms of one sound: 1, or 2 where both channels are used."""
        return 2 if self.channel in ("both", "level_difference") else 1

    @property
    def top(self) -> float:
        """Highest frequency of the mel filters in Hz."""
        return self.rate / 2 if self.high is None else self.high

    @model_validator(mode="after")
    def _band(self) -> Self:
        if not self.low < self.top <= self.rate / 2:
            raise ValueError(f"got low {self.low:g} and high {self.top:g}, wanted low < high <= {self.rate / 2:g} Hz")
        return self


class KaldiConfig(FrontEndSettings):
    """Settings of Kaldi's log-mel filter banks, as in AST and its descendants; see `KaldiFrontEnd`.

    Attributes:
        window, hop: length of a frame, and step from one to the next, in milliseconds.
    """

    kind: Literal["kaldi"] = "kaldi"
    window: float = Field(default=25.0, gt=0)
    hop: float = Field(default=10.0, gt=0)

    @property
    def settings(self) -> KaldiConfig:
        """All settings of the spectrogram."""
        return self

    def build(self) -> KaldiFrontEnd:
        """Build the front-end."""
        return KaldiFrontEnd(self)


class MelConfig(FrontEndSettings):
    """Settings of a log-mel spectrogram of centred frames, as in torchaudio and librosa; see `MelFrontEnd`.

    Attributes:
        window, hop: length of a frame, and step from one to the next, in samples.
        scale: mel scale: "htk" (torchaudio's default) or "slaney" (librosa's default, LAION-CLAP).
        norm: normalisation of the filters: "slaney": equal area; None: equal height.
        log: logarithm of the power: "ln", or "db" (10 log10).
        floor: smallest power; smaller values are raised to it before the logarithm.
    """

    kind: Literal["mel"] = "mel"
    mels: int = Field(default=64, gt=0)
    low: float = Field(default=0.0, ge=0)
    window: int = Field(default=400, gt=1)
    hop: int = Field(default=160, gt=0)
    scale: Literal["htk", "slaney"] = "htk"
    norm: Literal["slaney"] | None = None
    log: Literal["ln", "db"] = "ln"
    floor: float = Field(default=1e-6, gt=0)

    @property
    def settings(self) -> MelConfig:
        """All settings of the spectrogram."""
        return self

    def build(self) -> MelFrontEnd:
        """Build the front-end."""
        return MelFrontEnd(self)


PRESETS: dict[str, KaldiConfig | MelConfig] = {
    "ast": KaldiConfig(frames=1024, mean=-4.2677393, std=2 * 4.5689974),
    "cav_mae": KaldiConfig(frames=1024, channel="first", mean=-5.081, std=4.4849),  # its authors divide by one deviation
    "imagebind": KaldiConfig(frames=204, channel="first", mean=-4.268, std=9.138),
    # Not normalised: the models that they were made for begin with a batch norm over the filters.
    "clap_htsat_unfused": MelConfig(
        rate=48_000, mels=64, low=50, high=14_000, window=1024, hop=480,
        scale="slaney", norm="slaney", log="db", floor=1e-10,
    ),
    "clap_htsat_fused": MelConfig(
        rate=48_000, mels=64, low=50, high=14_000, window=1024, hop=480, log="db", floor=1e-10,
    ),
}  # fmt: skip
"""The front-ends of AST (arXiv:2104.01778), CAV-MAE (arXiv:2210.07839), ImageBind (arXiv:2305.05665; one clip of two seconds) and
LAION-CLAP without and with fusion (arXiv:2211.06687; one spectrogram; for the four of fusion see `ClapFrontEnd`)."""


class PresetConfig(Config):
    """Settings of a published model's front-end, by name; the numbers are in `PRESETS`.

    Attributes:
        kind: name of the model; "clap_htsat_fused" is one spectrogram of the whole sound with that model's filters.
        channel: how stereo is used; None: as in the preset.
        frames: T; None: as in the preset.
        mean, std: statistics of the logarithms; None: those of the preset.
        spec_augment: SpecAugment masks in training; None: none.
    """

    kind: Literal["ast", "cav_mae", "imagebind", "clap_htsat_unfused", "clap_htsat_fused"]
    channel: Channel | None = None
    frames: int | None = Field(default=None, gt=0)
    mean: float | None = None
    std: float | None = Field(default=None, gt=0)
    spec_augment: SpecAugmentConfig | None = None

    @property
    def settings(self) -> KaldiConfig | MelConfig:
        """All settings of the spectrogram."""
        given = {name: value for name, value in self if name != "kind" and value is not None}
        return PRESETS[self.kind].model_copy(update=given)

    def build(self) -> FrontEnd:
        """Build the front-end."""
        return self.settings.build()


FrontEndConfig = Annotated[KaldiConfig | MelConfig | PresetConfig, Field(discriminator="kind")]


class FrontEnd(nn.Module, ABC):
    """Log-mel front-end: waveforms [B, C, samples] -> normalised spectrograms [B, planes, F, T]; 2 planes for both channels.

    Filters are non-persistent buffers: they belong to the config, not to the state dict.
    """

    filters: Tensor
    window: Tensor

    def __init__(self, settings: FrontEndSettings) -> None:
        super().__init__()
        self.settings = settings

    @abstractmethod
    def frame_count(self, samples: int) -> int:
        """Number of frames of a waveform of this number of samples, before `frames` cuts or pads it."""

    @abstractmethod
    def _log_mel(self, x: Tensor) -> Tensor:
        """[N, samples] float32 in [-1, 1] -> [N, F, frame_count(samples)]."""

    @property
    def planes(self) -> int:
        """Number of spectrograms of one sound (left before right)."""
        return self.settings.planes

    @property
    def mels(self) -> int:
        """F."""
        return self.settings.mels

    def length(self, samples: int) -> int:
        """T: number of frames of the output for a waveform of this number of samples."""
        return self.settings.frames or self.frame_count(samples)

    def is_spectrogram(self, x: Tensor) -> bool:
        """Whether `x` is what `forward` made, [B, planes, F, T], and no sounds of several windows [B, n, C, samples]."""
        return x.is_floating_point() and x.ndim == 4 and x.shape[1:3] == (self.planes, self.mels) and self.mels > 2

    def forward(self, x: Tensor, *, augment: bool = False) -> Tensor:
        """[B, C, samples], int16 in units of 1 / 32768 or float in [-1, 1] -> [B, planes, F, T]; `augment` applies spec_augment.

        Spectrograms that it has made, and whatever changed them since, stay as they are, but for spec_augment.

        Raises:
            ValueError: `x` has another shape or dtype, is too short for one frame, or is not stereo and `channel` needs both.
        """
        masks = self.settings.spec_augment if augment else None
        made = x.float() if self.is_spectrogram(x) else self._spectrograms(x)
        return made if masks is None else spec_augment(made, masks)

    def _spectrograms(self, x: Tensor) -> Tensor:
        if x.ndim != 3 or not (x.dtype == torch.int16 or x.is_floating_point()):
            raise ValueError(
                f"got {x.dtype} {list(x.shape)}, wanted sounds as int16, or as floats in [-1, 1], of shape [B, channels, samples]"
            )
        if self.frame_count(x.shape[2]) < 1:
            raise ValueError(f"got sounds of {x.shape[2]} samples, too short for one frame of {self.settings}")
        with torch.autocast(x.device.type, enabled=False):
            x = x.float() / FULL_SCALE if x.dtype == torch.int16 else x.float()
            heard = self._input_planes(x)
            made = self._log_mel(heard.flatten(0, 1))
            made = made.reshape(*heard.shape[:2], *made.shape[1:])
            if self.settings.frames is not None:
                made = F.pad(made[..., : self.settings.frames], (0, max(0, self.settings.frames - made.shape[-1])))
            made = (made - self.settings.mean) / self.settings.std
            if self.settings.channel == "level_difference":
                made = torch.stack([made[:, 0], made[:, 1] - made[:, 2]], dim=1)
            return made

    def _input_planes(self, x: Tensor) -> Tensor:
        # [B, C, samples] -> one waveform for each spectrogram, [B, n, samples]
        if self.settings.planes == 2:
            if x.shape[1] != 2:
                raise ValueError(
                    f"got sounds of {x.shape[1]} channel(s), wanted two for the front-end's channel: {self.settings.channel}; "
                    "set `channels: stereo` in the modality, which doubles mono sounds, or channel: mean in the front-end"
                )
            return x if self.settings.channel == "both" else torch.cat([x.mean(1, keepdim=True), x], dim=1)
        return x[:, :1] if self.settings.channel == "first" else x.mean(1, keepdim=True)


class KaldiFrontEnd(FrontEnd):
    """Kaldi's log-mel filter banks (ln, power), batched: equals `torchaudio.compliance.kaldi.fbank` without dither.

    torchaudio's function silently returns the first row of a batch only. Frames lie wholly inside the sound. Of each, the mean is
    subtracted; then come a pre-emphasis of 0.97, a symmetric Hann window, and zeros up to a power of two.
    """

    def __init__(self, config: KaldiConfig) -> None:
        from torchaudio.compliance.kaldi import get_mel_banks

        super().__init__(config)
        self.size = int(config.rate * config.window * 0.001)
        self.hop = int(config.rate * config.hop * 0.001)
        self.fft = 2 ** math.ceil(math.log2(self.size))
        banks, _ = get_mel_banks(config.mels, self.fft, float(config.rate), config.low, config.top, 100.0, -500.0, 1.0)
        self.register_buffer("filters", F.pad(banks, (0, 1)).T.contiguous(), persistent=False)  # [fft / 2 + 1, F]
        self.register_buffer("window", torch.hann_window(self.size, periodic=False), persistent=False)

    def frame_count(self, samples: int) -> int:
        """Number of whole frames."""
        return 0 if samples < self.size else 1 + (samples - self.size) // self.hop

    def _log_mel(self, x: Tensor) -> Tensor:
        x = x.unfold(1, self.size, self.hop)  # [B, T, size]
        x = x - x.mean(2, keepdim=True)
        x = (x - 0.97 * torch.cat([x[..., :1], x[..., :-1]], dim=2)) * self.window
        power: Tensor = torch.fft.rfft(x, n=self.fft).abs().square()
        floor = torch.finfo(torch.float32).eps
        return (power @ self.filters).clamp(min=floor).log().transpose(1, 2)


class MelFrontEnd(FrontEnd):
    """Log-mel spectrogram (power) of frames centred on multiples of the hop: periodic Hann window, reflection padding."""

    def __init__(self, config: MelConfig) -> None:
        from torchaudio.functional import melscale_fbanks

        super().__init__(config)
        self.size, self.hop, self.floor = config.window, config.hop, config.floor
        self.factor = 10 / math.log(10) if config.log == "db" else 1.0
        banks = melscale_fbanks(
            self.size // 2 + 1, config.low, config.top, config.mels, config.rate, config.norm, config.scale
        )
        self.register_buffer("filters", banks, persistent=False)  # [size / 2 + 1, F]
        self.register_buffer("window", torch.hann_window(self.size), persistent=False)

    def frame_count(self, samples: int) -> int:
        """Number of whole hops plus one; 0 where the sound is too short for reflection padding."""
        return 0 if samples <= self.size // 2 else 1 + samples // self.hop

    def _log_mel(self, x: Tensor) -> Tensor:
        x = torch.stft(x, self.size, self.hop, window=self.window, center=True, pad_mode="reflect", return_complex=True)
        power = x.abs().square().transpose(1, 2) @ self.filters  # [B, T, F]
        return self.factor * power.clamp(min=self.floor).log().transpose(1, 2)
