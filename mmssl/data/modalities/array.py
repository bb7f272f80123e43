"""Array modality: pictures of any number of channels and any type, such as multispectral, 16-bit and depth pictures.

Files are `.npy` and `.npz` with axes that the recipe names, or PNG and TIFF of any depth. Numbers keep their stored type and
units; views are float32, and the encoder's `mean` and `std`, in the units of the file, normalise them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from mmssl.core.input_spec import InputSpec
from mmssl.data.inspection import FileFormats, Inspection
from mmssl.data.modalities.array_files import check_value_count, check_whole, is_picture, open_array, read_picture
from mmssl.data.modalities.arrays import as_array
from mmssl.data.modalities.corruptions.measurements import ARRAYS as CORRUPTIONS
from mmssl.data.modalities.kernels.array import ARRAYS
from mmssl.data.modalities.masks.image import (
    ImageBlocksConfig,
    ImageInverseBlocksConfig,
    ImageJepaConfig,
    ImageOrderConfig,
)
from mmssl.data.modalities.views.array import ArrayCropConfig, ArrayEval
from mmssl.data.modalities.views.choice import ChoiceConfig
from mmssl.data.modality import DecodeError, Modality, ModalityConfig, View, build_views
from mmssl.data.timeline import Window

ArrayViewConfig = Annotated[
    ArrayCropConfig | ImageOrderConfig | ImageBlocksConfig | ImageInverseBlocksConfig | ImageJepaConfig | ChoiceConfig,
    Field(discriminator="kind"),
]
AxisNames = tuple[str, ...] | None
NanPixels = Literal["refuse", "mean"]
SPATIAL = ("height", "width")


class ArrayModality(Modality):
    """Arrays [H, W, C] of the type that they are stored in.

    Args:
        axes: names of the stored axes, see `ArrayConfig`.
        channels: C that every array must have; None: any.
        entry: name of the array in `.npz` files.
        nan: what becomes of NaN.
        max_values: arrays with more numbers are refused by their header.
    """

    kernels = ARRAYS
    corruptions = CORRUPTIONS
    visual = True
    warnings: ClassVar[Mapping[str, str]] = {
        "repeated": "arrays repeat earlier ones: equal arrays are false negatives, or leak between splits",
        "with NaN": "arrays hold NaN: a run takes them if its recipe says `nan: mean`",
        "constant": "arrays are constant: they carry no information",
    }

    def __init__(
        self,
        name: str,
        extensions: tuple[str, ...],
        views: Mapping[str, View],
        axes: AxisNames,
        channels: int | None,
        entry: str | None,
        nan: NanPixels,
        max_values: int,
    ) -> None:
        super().__init__(name, extensions, views)
        self.axes, self.channels, self.entry, self.nan, self.max_values = axes, channels, entry, nan, max_values

    def decode(self, data: bytes, extension: str, window: Window | None = None) -> np.ndarray:
        """Decode to [H, W, C] of the stored type. The format is detected from the bytes, not from the extension.

        Raises:
            DecodeError: "undecodable", "empty", "too_large", "entry", "shape" (other axes), "channels" (another number),
                "not_finite" (NaN with `nan: refuse`, or infinite numbers).
        """
        return filled(self._read(data), self.nan)

    def inspect(self, data: bytes, extension: str) -> Inspection:
        """Stored shape and type, share of NaN, range, and the numbers of each channel, in the units of the file."""
        value = self._read(data)
        shape = value.shape if is_picture(data) else open_array(data, self.entry, self.max_values).shape
        finite = np.isfinite(value)
        some = value[finite]
        nan = int(np.isnan(value).sum()) if value.dtype.kind == "f" else 0
        flags = {
            "with NaN": nan > 0,
            "infinite": some.size + nan < value.size,
            "constant": some.size > 0 and bool((some == some[0]).all()),
        }
        figures = {"NaN share": [nan / value.size]}
        if some.size:
            figures |= {"smallest": [float(some.min())], "largest": [float(some.max())]}
        whole = value[finite.all(axis=-1)].astype(np.float64)
        return Inspection(
            figures,
            {"shape": f"{' x '.join(map(str, shape))} {value.dtype}"},
            tuple(flag for flag, holds in flags.items() if holds),
            (("an array", data),),
            whole if len(whole) else None,
        )

    def from_value(self, value: Any) -> np.ndarray:
        """Check an array or tensor with the axes of the recipe: [H, W, C] of its type.

        Raises:
            DecodeError: "type", "shape", "empty", "not_finite", "channels", "too_large".
        """
        axes = ", ".join(self.axes) if self.axes else "..., channel"
        array = as_array(value, f"a path, bytes, or an array or tensor of numbers [{axes}]", finite=False)
        if array.dtype.kind not in "biuf":
            raise DecodeError("type", f"got {array.dtype}, wanted integers, floats or booleans")
        check_value_count(array.shape, self.max_values)
        return filled(self._arranged(array), self.nan)

    def _read(self, data: bytes) -> np.ndarray:
        if is_picture(data):
            return self._checked(read_picture(data, self.max_values))
        stored = open_array(data, self.entry, self.max_values)
        arranged(np.broadcast_to(np.zeros((), np.uint8), stored.shape), self.axes)  # by the header, before any number
        return self._arranged(stored.read())

    def _arranged(self, array: np.ndarray) -> np.ndarray:
        return self._checked(np.array(arranged(array, self.axes), order="C"))

    def _checked(self, value: np.ndarray) -> np.ndarray:
        if self.channels is not None and value.shape[2] != self.channels:
            raise DecodeError("channels", f"got {value.shape[2]} channels, wanted {self.channels} (`channels`)")
        return value


class ArrayConfig(ModalityConfig):
    """Settings of arrays with a height and a width: multispectral, 16-bit and depth pictures.

    Attributes:
        axes: names of the stored axes in their order: `height`, `width`, and others of any name, which together are the channels,
            in reading order: [channel, height, width], [height, width], [date, band, height, width]. PNG and TIFF need no names.
            null, for audits: an axis much smaller than all others is the channels.
        channels: number of channels that every array must have; null: any.
        size: height and width of views in pixels; a view may have a `size` of its own.
        views: kind of view that an objective needs -> its settings. The view "eval" always exists: the largest centred square.
        entry: name of the array in `.npz` files; None: they hold one.
        nan: "refuse" arrays with NaN, or replace NaN by the "mean" of its channel in this array (0 where there is none).
        max_values: arrays with more numbers are refused before decoding.
    """

    kind: Literal["array"] = "array"
    axes: Annotated[tuple[str, ...], Field(min_length=2)] | None
    channels: Annotated[int, Field(ge=1)] | None
    size: int = Field(ge=8)
    views: dict[str, ArrayViewConfig] = Field(default={"crop": ArrayCropConfig()})
    entry: str | None = None
    nan: NanPixels = "refuse"
    max_values: int = Field(default=50_000_000, ge=1)

    files = FileFormats(
        "an array",
        {"npy": rb"\x93NUMPY", "npz": rb"PK\x03\x04"},
        within=("png",),
        columns=("array", "depth"),
        template="a {}",
        verify=check_whole,
    )

    @classmethod
    def usual(cls) -> ArrayConfig:
        """Arrays of any axes and channels, with NaN."""
        return cls(axes=None, channels=None, size=64, nan="mean")

    def input_spec(self) -> InputSpec:
        """Size and channels of the views."""
        return InputSpec(pixels=self.size, channels=self.channels)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.axes is not None and (not set(SPATIAL) <= set(self.axes) or len(set(self.axes)) < len(self.axes)):
            raise ValueError(
                f"axes: got {list(self.axes)}, wanted height and width, and channels of other names, each once, as in "
                "[channel, height, width]"
            )
        self._views()  # raises on settings that do not fit
        return self

    def build(self, name: str) -> ArrayModality:
        """Build the modality with its name in the recipe."""
        return ArrayModality(
            name,
            self.extensions or ("npy", "npz"),
            self._views(),
            self.axes,
            self.channels,
            self.entry,
            self.nan,
            self.max_values,
        )

    def _views(self) -> dict[str, View]:
        form = (self.size, self.channels)
        return build_views(self.views, lambda view: view.build(*form), ArrayEval(*form))


def arranged(array: np.ndarray, axes: AxisNames) -> np.ndarray:
    """Move the axes of an array to [H, W, C]; axes of other names than height and width become the channels, in reading order.

    Without names, an axis of at most a quarter of each other one is the channels; the first of the others is the height.

    Raises:
        DecodeError: "shape": another number of axes.
    """
    if axes is None:
        small = int(np.argmin(array.shape))
        others = [size for axis, size in enumerate(array.shape) if axis != small]
        named = bool(others) and 4 * array.shape[small] <= min(others)
        moved = np.moveaxis(array, small, -1) if named else array[..., None]
        return moved.reshape(moved.shape[0], -1, moved.shape[-1])
    if array.ndim != len(axes):
        raise DecodeError("shape", f"got shape {list(array.shape)}, wanted {len(axes)} axes: {', '.join(axes)}")
    order = [*(axes.index(name) for name in SPATIAL), *(i for i, name in enumerate(axes) if name not in SPATIAL)]
    height, width, *rest = (array.shape[axis] for axis in order)
    return array.transpose(order).reshape(height, width, math.prod(rest))


def filled(value: np.ndarray, nan: NanPixels) -> np.ndarray:
    """[H, W, C] with every NaN replaced by the mean of its channel, or 0 where a channel has no number.

    Raises:
        DecodeError: "not_finite": NaN with `nan` "refuse", NaN alone, or infinite numbers.
    """
    if value.dtype.kind != "f" or np.isfinite(value).all():
        return value
    missing = np.isnan(value)
    infinite = int((~np.isfinite(value) & ~missing).sum())
    if infinite or nan == "refuse":
        remedy = "" if infinite else "; `nan: mean` takes the mean of its channel"
        raise DecodeError(
            "not_finite", f"{int(missing.sum())} of {value.size} numbers are NaN, {infinite} infinite{remedy}"
        )
    counts = (~missing).sum(axis=(0, 1))
    if not counts.any():
        raise DecodeError("not_finite", "it has no numbers but NaN")
    means = np.where(missing, 0, value).sum(axis=(0, 1), dtype=np.float64) / np.maximum(counts, 1)
    made: np.ndarray = np.where(missing, means.astype(value.dtype), value)
    return made
