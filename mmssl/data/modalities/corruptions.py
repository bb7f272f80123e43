"""Common corruptions of evaluation views, at five severities: pictures, frames and sounds (Hendrycks and Dietterich 2019).

They act on the view "eval", as in ImageNet-C: on what the encoder sees. The noise of a view depends on its content alone.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mmssl.core.seeding import fold
from mmssl.data.modality import Modality, View

if TYPE_CHECKING:
    from torch import Generator, Tensor

SEVERITIES = (1, 2, 3, 4, 5)
Corrupt = Callable[["Tensor", float, "Generator"], "Tensor"]
"""(view as float, strength, generator) -> view. Pictures [..., 3, H, W] are in 0 ... 1, sounds [C, samples] in -1 ... 1."""


def _gaussian_noise(x: Tensor, strength: float, generator: Generator) -> Tensor:
    return x + strength * x.new_empty(x.shape).normal_(generator=generator)


def _shot_noise(x: Tensor, strength: float, generator: Generator) -> Tensor:
    import torch

    return torch.poisson(x * strength, generator=generator) / strength


def _impulse_noise(x: Tensor, strength: float, generator: Generator) -> Tensor:
    draw = x.new_empty(x.shape).uniform_(generator=generator)
    return x.where(draw >= strength, (draw < strength / 2).to(x.dtype))


def _gaussian_blur(x: Tensor, strength: float, generator: Generator) -> Tensor:
    from torchvision.transforms.functional import gaussian_blur

    reach = min(round(4 * strength), (min(x.shape[-2:]) - 1) // 2)
    blurred: Tensor = gaussian_blur(x, [2 * reach + 1] * 2, [strength] * 2)
    return blurred


def _brightness(x: Tensor, strength: float, generator: Generator) -> Tensor:
    value = x.amax(-3, keepdim=True).clamp_min(1e-6)  # V of HSV
    return x * ((value + strength).clamp_max(1) / value)


def _contrast(x: Tensor, strength: float, generator: Generator) -> Tensor:
    mean = x.mean((-2, -1), keepdim=True)
    return (x - mean) * strength + mean


def _pixelate(x: Tensor, strength: float, generator: Generator) -> Tensor:
    from torch.nn.functional import interpolate

    flat = x.flatten(0, -4) if x.ndim > 3 else x[None]
    size = [max(1, int(side * strength)) for side in x.shape[-2:]]
    small = interpolate(flat, size=size, mode="area")
    return interpolate(small, size=list(x.shape[-2:]), mode="nearest").reshape(x.shape)


def _jpeg(x: Tensor, strength: float, generator: Generator) -> Tensor:
    import torch

    frames = (x.clamp(0, 1) * 255).round().byte().reshape(-1, *x.shape[-3:]).permute(0, 2, 3, 1).numpy()
    decoded = []
    for frame in frames:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=int(strength))
        decoded.append(torch.from_numpy(np.array(Image.open(file, formats=("JPEG",)))))
    return torch.stack(decoded).permute(0, 3, 1, 2).reshape(x.shape).to(x.dtype) / 255


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


PICTURES: Mapping[str, tuple[Corrupt, tuple[float, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (_shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": (_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "gaussian_blur": (_gaussian_blur, (1, 2, 3, 4, 6)),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": (_jpeg, (25, 18, 15, 10, 7)),
}
"""Corruption of pictures -> its strength at each severity, those of ImageNet-C."""
SOUNDS: Mapping[str, tuple[Corrupt, tuple[float, ...]]] = {
    "white_noise": (_white_noise, (20, 15, 10, 5, 0)),
    "clipping": (_clipping, (0.5, 0.3, 0.2, 0.1, 0.05)),
    "gain": (_gain, (-6, -12, -18, -24, -30)),
    "low_pass": (_low_pass, (0.5, 0.35, 0.25, 0.15, 0.1)),
}
"""Corruption of sounds -> its strength: signal to noise in dB, share of the peak, dB, share of the band."""


def corruptions_of(modality: Modality) -> Mapping[str, tuple[Corrupt, tuple[float, ...]]]:
    """The corruptions that a modality has; empty: none."""
    if modality.visual and modality.view("eval").pixels is not None:
        return PICTURES
    return SOUNDS if modality.audible else {}


def corrupted(modality: Modality, kind: str, severity: int) -> Modality:
    """The modality with a corrupted view "eval".

    Args:
        modality: to corrupt.
        kind: one of `corruptions_of`.
        severity: 1 to 5.
    """
    function, strengths = corruptions_of(modality)[kind]
    view = CorruptedView(modality.view("eval"), function, strengths[severity - 1], fold(kind, severity))
    other = copy(modality)
    other.views = {**modality.views, "eval": view}
    return other


class CorruptedView(View):
    """A view, corrupted; of the type and shape of that view.

    Args:
        view: of pictures uint8 [..., 3, H, W], or of sounds int16 or float [C, samples].
        corrupt, strength: see `Corrupt`.
        seed: of the noise, with the content of the view.
    """

    def __init__(self, view: View, corrupt: Corrupt, strength: float, seed: int) -> None:
        self.view, self.corrupt, self.strength, self.seed = view, corrupt, strength, seed
        self.pixels = view.pixels

    def draw(self, value: Any, rng: np.random.Generator) -> dict[str, Any]:
        """Those of the view."""
        return self.view.draw(value, rng)

    def __call__(self, value: Any, parameters: Mapping[str, Any]) -> Tensor:
        """Make the view, and corrupt it."""
        import torch

        x = self.view(value, parameters)
        content = hashlib.blake2b(x.contiguous().numpy().tobytes(), digest_size=8).hexdigest()
        generator = torch.Generator().manual_seed(fold(self.seed, content))
        if x.is_floating_point():
            return self.corrupt(x, self.strength, generator).to(x.dtype)
        limits = torch.iinfo(x.dtype)
        changed = self.corrupt(x.float() / limits.max, self.strength, generator) * limits.max
        return changed.round().clamp(limits.min, limits.max).to(x.dtype)

    def blank(self) -> Tensor:
        """That of the view."""
        return self.view.blank()
