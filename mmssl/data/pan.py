"""Where sounds of a stereo recording come from, moved to where they are seen after the picture was cropped."""

from __future__ import annotations

import math

import numpy as np
import torch

_WINDOW_SECONDS = 0.032


def remap_pan(wave: np.ndarray, left: float, width: float, rate: int) -> np.ndarray:
    """Move what is heard at fraction u of the old picture to (u - left) / width, in each cell of time and frequency by itself.

    Panning is that of constant power: a source at u has the gains cos(u pi / 2) and sin(u pi / 2). What stands outside of the new
    picture is heard from its edge. Turning both channels by the difference of the angles keeps power and phase, and leaves what
    was recorded without a place (as by two distant microphones) as diffuse as it was.

    Args:
        wave: float32 [2, N]. left: left edge of the new picture, as a fraction of the old one. width: its width, likewise.
        rate: samples a second.
    """
    size = 1 << max(5, round(math.log2(_WINDOW_SECONDS * rate)))
    sound = torch.from_numpy(np.ascontiguousarray(wave))
    window = torch.hann_window(size)
    spectra = torch.stft(sound, size, size // 4, window=window, pad_mode="constant", return_complex=True)  # [2, F, T]
    angle = torch.atan2(spectra[1].abs(), spectra[0].abs())
    turned = ((angle * (2 / math.pi) - left) / width).clamp(0, 1) * (math.pi / 2) - angle
    cosine, sine = turned.cos(), turned.sin()
    # Channels in opposite phase are turned the other way, as their angle is the mirrored one.
    sine = torch.where((spectra[0] * spectra[1].conj()).real < 0, -sine, sine)
    made = torch.stack([cosine * spectra[0] - sine * spectra[1], sine * spectra[0] + cosine * spectra[1]])
    wide = torch.istft(made, size, size // 4, window=window, length=wave.shape[1])
    out: np.ndarray = wide.numpy()
    return out
