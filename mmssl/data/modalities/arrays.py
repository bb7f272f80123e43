"""Conversions between arrays and tensors, and checks of those that are passed instead of files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmssl.data.modality import DecodeError

if TYPE_CHECKING:
    from torch import Tensor


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
