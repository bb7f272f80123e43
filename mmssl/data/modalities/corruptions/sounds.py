"""Corruptions of sounds: noise, echoes of a room, clipping, gain, compression, coarse quantisation, limits of the band."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mmssl.data.modalities.corruptions.corruption import Corruption

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


def _reverb(x: Tensor, strength: float, generator: Generator) -> Tensor:
    """A room of noise that falls by 60 dB in `strength` samples (Polack's model), as loud as the sound, which loses its share."""
    import torch

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


SOUNDS: Mapping[str, Corruption] = {
    "white_noise": Corruption(_white_noise, (20, 15, 10, 5, 0)),
    "pink_noise": Corruption(_pink_noise, (20, 15, 10, 5, 0)),
    "reverb": Corruption(_reverb, (0.1, 0.3, 0.7, 1.5, 3.0), seconds=True),
    "clipping": Corruption(_clipping, (0.5, 0.3, 0.2, 0.1, 0.05)),
    "gain": Corruption(_gain, (-6, -12, -18, -24, -30)),
    "compression": Corruption(_compression, (0.8, 0.65, 0.5, 0.35, 0.2)),
    "quantisation": Corruption(_quantisation, (7, 6, 5, 4, 3)),
    "low_pass": Corruption(_low_pass, (0.5, 0.35, 0.25, 0.15, 0.1)),
    "high_pass": Corruption(_high_pass, (0.02, 0.05, 0.1, 0.2, 0.35)),
}
"""Corruptions of sounds; strengths: signal to noise in dB (twice), seconds, share of the peak, dB, exponent, bits, shares of the
band that is left below, or lost."""
