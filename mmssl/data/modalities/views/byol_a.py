"""Augmentation of BYOL-A: a faint other sound in the spectrogram (log-mix-exp), and a random resize crop of it.

Both act on log-mel spectrograms: the loader cuts the windows, and the rest follows on the training device, where the front-end is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from mmssl.core.config import Config, Entries, Range
from mmssl.core.sample import Partner
from mmssl.data.modalities.arrays import to_tensor
from mmssl.data.modalities.views.audio import Pad, SoundShape, cut_window
from mmssl.data.modalities.views.batch_colours import host_to_device
from mmssl.data.modality import View

if TYPE_CHECKING:
    from torch import Tensor

    from mmssl.core.encoder import Encoder

Multiple = Annotated[float, Field(ge=1)]


class ByolAConfig(Config):
    """Spectrogram of a random window, of the modality's `seconds`, mixed with that of another sample, cropped and resized.

    Niizumi et al. 2021, "BYOL for Audio" (arXiv:2103.06695). It needs `channels: mono`, and an encoder that takes spectrograms. Two
    views of a sample have the same window if `time_crop` of `data.synchronized` leaves no longer sound, as in BYOL-A.

    Attributes:
        mixup: the other sound has a share that is uniform from 0 to this.
        filters, frames: range of the height and width of the crop, as multiples of those of the spectrogram.
        canvas: filters and frames of the area that crops lie in, as multiples; beyond the spectrogram it is 0, the mean.
    """

    kind: Literal["byol_a"] = "byol_a"
    mixup: float = Field(default=0.4, ge=0, lt=1)
    filters: Range = (0.6, 1.5)
    frames: Range = (0.6, 1.5)
    canvas: Annotated[tuple[Multiple, Multiple], Entries(("filters", "frames"))] = (1.0, 1.5)

    def build(self, shape: SoundShape, pad: Pad) -> ByolAView:
        """Build the view of [channels, samples].

        Raises:
            ValueError: there are two channels.
        """
        if shape[0] != 1:
            raise ValueError(
                "kind byol_a: got views of two channels, wanted one, whose power is mixed: set channels: mono"
            )
        return ByolAView(self, shape, pad)


class ByolAView(View):
    """Window of a sound and of its partner, int16 [2, 1, samples], which become one spectrogram [planes, filters, frames].

    Parameters: start, in samples; share of the partner; crop: [height, width] as multiples of the spectrogram, and [top, left] as
    shares of the room for it; and if there is a partner: its number, its record, and start of its window.

    Args:
        config: settings of the augmentation.
        shape: channels and samples of the window.
        pad: padding of shorter sounds.
    """

    random_time = True
    partner = True
    on_device = True

    def __init__(self, config: ByolAConfig, shape: SoundShape, pad: Pad) -> None:
        self.config, self.shape, self.pad = config, shape, pad

    def draw(self, value: tuple[np.ndarray, Partner | None], rng: np.random.Generator) -> dict[str, Any]:
        """Draw both windows, the share of the partner, and the crop."""
        c, (wave, partner) = self.config, value
        drawn = {
            "start": self._start(wave, rng),
            "share": float(rng.uniform(0, c.mixup)),
            "crop": [float(rng.uniform(*c.filters)), float(rng.uniform(*c.frames)), *rng.random(2).tolist()],
        }
        return (
            drawn if partner is None else drawn | {**partner.named(), "partner_start": self._start(partner.value, rng)}
        )

    def __call__(self, value: tuple[np.ndarray, Partner | None], parameters: Mapping[str, Any]) -> Tensor:
        """Cut both windows; without a partner the second one is silence."""
        wave, partner = value
        own = cut_window(wave, parameters["start"], self.shape, self.pad)
        other = np.zeros_like(own)
        if partner is not None:
            other = cut_window(partner.value, parameters["partner_start"], self.shape, self.pad)
        return to_tensor(np.stack([own, other]))

    def finish(self, x: Tensor, parameters: Sequence[Mapping[str, Any] | None], encoder: Encoder) -> Tensor:
        """Windows [B, 2, 1, samples] -> spectrograms [B, planes, filters, frames] as the encoder prepares them, mixed and cropped.

        Raises:
            ValueError: the encoder takes no spectrograms.
        """
        import torch

        if encoder.PREPARED not in encoder.capabilities:
            raise ValueError(
                f"a view of kind byol_a needs an encoder that takes spectrograms, of kind audio_transformer or audio_resnet, "
                f"and got {type(encoder).__name__}"
            )
        with torch.no_grad():
            made = encoder.prepare(x.flatten(0, 1))
            made = made.reshape(len(x), 2, *made.shape[1:])
            given = [*parameters, *[None] * (len(x) - len(parameters))]  # of blank samples there are none
            shares = [drawn["share"] if drawn and "partner" in drawn else 0.0 for drawn in given]
            share = host_to_device(torch.tensor(shares, dtype=torch.float32), x.device)
            mixed = log_mix_exp(made[:, 0], made[:, 1], share)
            sizes = (made.shape[-2], made.shape[-1])
            canvas = (int(self.config.canvas[0] * sizes[0]), int(self.config.canvas[1] * sizes[1]))
            boxes = host_to_device(torch.tensor([_box(drawn, sizes, canvas) for drawn in given]), x.device)
            return resize_crops(mixed, boxes, canvas)

    def blank(self) -> Tensor:
        """Silence."""
        return to_tensor(np.zeros((2, *self.shape), dtype=np.int16))

    def _start(self, wave: np.ndarray, rng: np.random.Generator) -> int:
        return int(rng.integers(max(1, wave.shape[1] - self.shape[1] + 1)))


def log_mix_exp(x: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Mix logarithms as what they are logarithms of, log((1 - share) exp(x) + share exp(other)); `share` [B] in [0, 1)."""
    import torch

    share = share.view(-1, *[1] * (x.ndim - 1))
    return torch.logaddexp(x + torch.log1p(-share), other + share.log())


def _box(drawn: Mapping[str, Any] | None, sizes: tuple[int, int], canvas: tuple[int, int]) -> list[int]:
    """Top, left, height and width of a crop within the canvas, in filters and frames; all of the spectrogram without draws."""
    if drawn is None:
        return [(outer - inner) // 2 for outer, inner in zip(canvas, sizes, strict=True)] + [*sizes]
    extent = [
        min(max(int(multiple * inner), 1), outer)
        for multiple, inner, outer in zip(drawn["crop"][:2], sizes, canvas, strict=True)
    ]
    place = [
        int(share * (outer - own + 1)) for share, own, outer in zip(drawn["crop"][2:], extent, canvas, strict=True)
    ]
    return place + extent


def resize_crops(x: Tensor, boxes: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Crop spectrograms in the middle of a canvas of zeros, and resize the crops to the size of the spectrograms, bicubically.

    It equals `F.interpolate(crop, mode="bicubic", align_corners=True)` of each crop, in two products of matrices for all.

    Args:
        x: [B, planes, F, T].
        boxes: [B, 4] int64, top, left, height and width within the canvas.
        canvas: its filters and frames, at least F and T.

    Returns:
        [B, planes, F, T].
    """
    top, left, height, width = boxes.unbind(1)
    rows = _bicubic(top - (canvas[0] - x.shape[-2]) // 2, height, x.shape[-2], x.dtype)
    columns = _bicubic(left - (canvas[1] - x.shape[-1]) // 2, width, x.shape[-1], x.dtype)
    return rows[:, None] @ x @ columns[:, None].mT


def _bicubic(first: Tensor, size: Tensor, length: int, dtype: Any) -> Tensor:
    """Weights [B, length, length] of bicubic interpolation from places first ... first + size - 1 of an axis [length] to all of it.

    Places outside of the axis are zeros; beyond the ends of the crop its last values repeat.
    """
    import torch

    step = (size - 1).to(dtype) / max(length - 1, 1)
    at = step[:, None] * torch.arange(length, device=first.device)
    whole = at.floor()
    near = at - whole
    distance = torch.stack([near + 1, near, 1 - near, 2 - near], -1)  # [B, length, 4]
    close = (1.25 * distance - 2.25) * distance**2 + 1
    far = -0.75 * (((distance - 5) * distance + 8) * distance - 4)
    weights = torch.where(distance <= 1, close, far)
    taps = whole.long()[..., None] + torch.arange(-1, 3, device=first.device)
    place = first[:, None, None] + taps.clamp(min=0).minimum((size - 1)[:, None, None])
    inside = (place >= 0) & (place < length)
    made = weights.new_zeros(len(first), length, length)
    return made.scatter_add_(2, place.clamp(0, length - 1), weights * inside)
