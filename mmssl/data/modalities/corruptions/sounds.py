"""Corruptions of sounds: noise, echoes, clipping, gain, compression, coarse quantisation, limits of the band, lossy codecs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mmssl.data.corruption import Corruption
from mmssl.data.media.lossy import coding_rate, through_codec
from mmssl.data.modalities.resampling import resample, resampling_ratio

if TYPE_CHECKING:
    from torch import Generator, Tensor


def _white_noise(x: Tensor, strength: float, generator: Generator) -> Tensor:
    level = x.square().mean().sqrt() * 10 ** (-strength / 20)
    return x + level * x.new_empty(x.shape).normal_(generator=generator)


def _clipping(x: Tensor, strength: float, generator: Generator) -> Tensor:
    peak = float(x.abs().max()) * strength
    return x.clamp(-peak, peak)


def _gain(x: Tensor, strength: float, generator: Generator) -> Tensor:
    return x * 10 ** (strength / 20)


def _low_pass(x: Tensor, strength: float, generator: Generator) -> Tensor:
    import torch

    spectrum = torch.fft.rfft(x)
    spectrum[..., int(strength * spectrum.shape[-1]) :] = 0
    passed: Tensor = torch.fft.irfft(spectrum, n=x.shape[-1])
    return passed


def _high_pass(x: Tensor, strength: float, generator: Generator) -> Tensor:
    import torch

    spectrum = torch.fft.rfft(x)
    spectrum[..., : math.ceil(strength * spectrum.shape[-1])] = 0
    passed: Tensor = torch.fft.irfft(spectrum, n=x.shape[-1])
    return passed


def _pink_noise(x: Tensor, strength: float, generator: Generator) -> Tensor:
    """Noise of equal power in every octave, at a signal-to-noise ratio of `strength` dB."""
    import torch

    spectrum = torch.fft.rfft(x.new_empty(x.shape).normal_(generator=generator))
    noise = torch.fft.irfft(spectrum / torch.arange(1, spectrum.shape[-1] + 1).sqrt(), n=x.shape[-1])
    level = x.square().mean().sqrt() * 10 ** (-strength / 20)
    made: Tensor = x + level * noise / noise.square().mean().sqrt().clamp_min(1e-12)
    return made


def _reverb(x: Tensor, strength: float, generator: Generator, *, rate: float) -> Tensor:
    """A room of noise that falls by 60 dB in `strength` seconds (Polack's model), as loud as the sound, which loses its share."""
    import torch

    strength *= rate
    length = max(2, min(round(strength), x.shape[-1]))
    fall = torch.exp(-math.log(1000) * torch.arange(length) / strength)
    room = fall * torch.empty(length).normal_(generator=generator)
    size = 2 ** math.ceil(math.log2(x.shape[-1] + length))
    echo = torch.fft.irfft(torch.fft.rfft(x, n=size) * torch.fft.rfft(room, n=size), n=size)[..., : x.shape[-1]]
    before, after = x.square().mean().sqrt(), echo.square().mean().sqrt().clamp_min(1e-12)
    wet = strength / (strength + x.shape[-1] / 8)
    mixed: Tensor = (1 - wet) * x + wet * echo * before / after
    return mixed


def _compression(x: Tensor, strength: float, generator: Generator) -> Tensor:
    """Dynamic range compression without memory: levels to the power of `strength`, with the peak where it was."""
    peak = x.abs().max().clamp_min(1e-12)
    return x.sign() * peak * (x.abs() / peak) ** strength


def _quantisation(x: Tensor, strength: float, generator: Generator) -> Tensor:
    """Mu-law coding (ITU-T G.711) with `strength` bits."""
    import torch

    steps = 2 ** (int(strength) - 1)
    coded = x.sign() * torch.log1p(255 * x.abs().clamp_max(1)) / math.log(256)
    coarse = (coded * steps).round() / steps
    heard: Tensor = coarse.sign() * torch.expm1(coarse.abs() * math.log(256)) / 255
    return heard


def _coded(codec: str, x: Tensor, strength: float, generator: Generator, *, rate: float) -> Tensor:
    """Each channel through a codec of `strength` kbit/s and back, at the next rate that the codec has."""
    import torch

    bits, stored = round(1000 * strength), round(rate)
    coding = coding_rate(codec, stored, bits)
    ratio = resampling_ratio(coding, stored)
    waves = resample(x.reshape(-1, x.shape[-1]).numpy(), ratio)
    coded = np.stack([through_codec(wave, codec, coding, bits) for wave in waves])
    return torch.from_numpy(resample(coded, 1 / ratio))[:, : x.shape[-1]].reshape(x.shape)


SOUNDS: Mapping[str, Corruption] = {
    "white_noise": Corruption(_white_noise, (20, 15, 10, 5, 0)),
    "pink_noise": Corruption(_pink_noise, (20, 15, 10, 5, 0)),
    "reverb": Corruption(_reverb, (0.1, 0.3, 0.7, 1.5, 3.0), timed=True),
    "clipping": Corruption(_clipping, (0.5, 0.3, 0.2, 0.1, 0.05)),
    "gain": Corruption(_gain, (-6, -12, -18, -24, -30)),
    "compression": Corruption(_compression, (0.8, 0.65, 0.5, 0.35, 0.2)),
    "quantisation": Corruption(_quantisation, (7, 6, 5, 4, 3)),
    "low_pass": Corruption(_low_pass, (0.5, 0.35, 0.25, 0.15, 0.1)),
    "high_pass": Corruption(_high_pass, (0.02, 0.05, 0.1, 0.2, 0.35)),
    "mp3": Corruption(partial(_coded, "mp3"), (64, 32, 24, 16, 8), timed=True),
    "opus": Corruption(partial(_coded, "opus"), (32, 16, 12, 8, 6), timed=True),
    "aac": Corruption(partial(_coded, "aac"), (64, 32, 24, 16, 8), timed=True),
}
"""Corruptions of sounds; strengths: signal to noise in dB (twice), seconds, share of the peak, dB, exponent, bits, shares of the
band that is left below, or lost, kbit/s of a channel (three times)."""
