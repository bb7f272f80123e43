"""Conversions between arrays and tensors, and checks of those that are passed instead of files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmssl.data.modality import DecodeError

if TYPE_CHECKING:
    from torch import Tensor


_RGB = "a path, bytes, a PIL picture, an array or tensor [H, W, 3], or in grey [H, W] or [H, W, 1]: uint8, or floats in [0, 1]"


def to_tensor(array: np.ndarray) -> Tensor:
    """The array as a tensor, which shares its memory."""
    import torch  # slow to import, and commands that make no view do without it

    return torch.from_numpy(array)


def as_array(value: Any, wanted: str, *, finite: bool = True) -> np.ndarray:
    """Convert an array, or a tensor on any device (detached), to a numpy array.

    Args:
        value: the input.
        wanted: description of a valid input, for the message.
        finite: refuse NaN and infinite numbers.

    Raises:
        DecodeError: "type" (neither array nor tensor), "empty", "not_finite" (NaN or infinity).
    """
    import torch  # slow to import

    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if not isinstance(value, np.ndarray):
        raise DecodeError("type", f"got {type(value).__module__}.{type(value).__qualname__}, wanted {wanted}")
    if not value.size:
        raise DecodeError("empty", f"got shape {list(value.shape)}, wanted {wanted}")
    if finite and value.dtype.kind == "f" and not np.isfinite(value).all():
        raise DecodeError(
            "not_finite",
            f"{int((~np.isfinite(value)).sum())} of {value.size} values are NaN or infinite, wanted {wanted}",
        )
    # torch takes no negative strides, as of a[..., ::-1], and warns of arrays that cannot be written to.
    return np.require(value, requirements=["C", "W"])


def as_pixels(value: Any, wanted: str) -> np.ndarray:
    """Convert pixels, uint8 or floats in [0, 1], to uint8 [..., H, W, 3].

    Raises:
        DecodeError: as `as_array`; also "type" (another dtype), "range" (floats outside [0, 1]).
    """
    pixels = as_array(value, wanted)
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind != "f":
        raise DecodeError("type", f"got {pixels.dtype} {list(pixels.shape)}, wanted {wanted}")
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1:
        raise DecodeError(
            "range",
            f"got floats {list(pixels.shape)} from {low:g} to {high:g}, wanted [0, 1]: divide by 255, and do not normalise",
        )
    made: np.ndarray = np.rint(pixels * 255).astype(np.uint8)
    return made


def as_rgb(value: Any) -> np.ndarray:
    """Convert pixels [H, W, 3], [H, W] or [H, W, 1], uint8 or floats in [0, 1], to uint8 [H, W, 3].

    Raises:
        DecodeError: as `as_pixels`; also "shape".
    """
    pixels = as_pixels(value, _RGB)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise DecodeError("shape", f"got shape {list(pixels.shape)}, wanted {_RGB}{_advice(pixels.shape)}")
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _advice(shape: tuple[int, ...]) -> str:
    """What to do with an array of a shape that is refused."""
    if len(shape) == 4:
        return "; give a batch as a list of pictures: list(batch)"
    if len(shape) == 3 and shape[2] == 4:
        return "; of RGBA give [..., :3], or a PIL picture"
    return "; permute(1, 2, 0) makes [H, W, 3] of [3, H, W]" if len(shape) == 3 and shape[0] in (1, 3) else ""
