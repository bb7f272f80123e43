"""Synchronized augmentation kernels for pictures, uint8 [H, W, 3]."""

from __future__ import annotations

import numpy as np

from mmssl.data.kernel import Entry, Kernel, Operand, identity
from mmssl.data.modalities.arrays import to_tensor


def _bounds(start: float, length: float, pixels: int) -> slice:
    first = min(round(start * pixels), pixels - 1)
    return slice(first, max(first + 1, round((start + length) * pixels)))


def crop_raster(frames: np.ndarray, entry: Entry, field: Operand) -> np.ndarray:
    """Crop the entry's box out of pictures [..., H, W, 3], in both axes or one, by the entry's `axes`."""
    left, top, width, height = entry["box"]
    axes = entry["axes"].get(field.name, "xy")
    rows = _bounds(top, height, frames.shape[-3]) if "y" in axes else slice(None)
    columns = _bounds(left, width, frames.shape[-2]) if "x" in axes else slice(None)
    return np.ascontiguousarray(frames[..., rows, columns, :])


def reverse_axis(value: np.ndarray, axis: int) -> np.ndarray:
    """Copy an array with one axis reversed."""
    # `ascontiguousarray` would leave an axis of length 1, such as a mono sound's, with the negative stride that torch refuses.
    return np.flip(value, axis).copy()


def _mirror_picture(picture: np.ndarray, entry: Entry, field: Operand) -> np.ndarray:
    return picture if field.name in entry["without_sides"] else reverse_axis(picture, 1)


def blend(a: np.ndarray, b: np.ndarray, weight: float) -> np.ndarray:
    """Convex combination of uint8 [..., H, W, 3]; the second is resized to the first."""
    if a.shape[-3:] != b.shape[-3:]:
        from torch.nn.functional import interpolate  # slow to import, and only needed here

        planes = to_tensor(np.ascontiguousarray(b.reshape(-1, *b.shape[-3:]))).permute(0, 3, 1, 2)
        size = (a.shape[-3], a.shape[-2])
        planes = interpolate(planes, size, mode="bilinear", antialias=True)
        b = planes.permute(0, 2, 3, 1).numpy().reshape(*b.shape[:-3], *size, 3)
    mixed = np.float32(weight) * a.astype(np.float32) + np.float32(1 - weight) * b.astype(np.float32)
    out: np.ndarray = np.rint(mixed).astype(np.uint8)
    return out


def _mix_pictures(picture: np.ndarray, entry: Entry, field: Operand) -> np.ndarray:
    return blend(picture, field.partner, entry["weight"])


_STILL = identity("a still picture has no time axis")
STILL_PICTURES = {
    "time_crop": _STILL,
    "speed": _STILL,
    "reverse": _STILL,
    "roll": _STILL,
    "time_mask": _STILL,
    "gain": identity("only sounds have a level"),
    "negative": identity("negatives change the sound or the caption, and keep the picture"),
}
"""Kernels that leave pixels as they are."""
PICTURES = {
    **STILL_PICTURES,
    "flip": Kernel(_mirror_picture),
    "crop": Kernel(crop_raster),
    "mixup": Kernel(_mix_pictures),
}
