"""Series modality: measurements over time at one rate, such as electrocardiograms (ECG) and sensors, from `.npy`, `.npz`, `.csv`.

Values are float32 [channels, samples] in the units of the file. They have a timeline: synchronized windows of series, sounds and
videos of one sample are the same seconds. Normalisation belongs to the encoder's `prepare`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from mmssl.core.input_spec import InputSpec
from mmssl.data.inspection import FileFormats, Inspection
from mmssl.data.modalities.array_files import Stored, check_value_count, check_whole, open_array, open_csv
from mmssl.data.modalities.arrays import as_array
from mmssl.data.modalities.corruptions.measurements import SERIES as CORRUPTIONS
from mmssl.data.modalities.kernels.series import SERIES
from mmssl.data.modalities.masks.audio import SoundOrderConfig, SpansConfig
from mmssl.data.modalities.views.choice import ChoiceConfig
from mmssl.data.modalities.views.series import CentreSeries, RandomSeriesConfig
from mmssl.data.modality import DecodeError, Modality, ModalityConfig, View, build_views
from mmssl.data.timeline import Extent, Window

SeriesViewConfig = Annotated[
    RandomSeriesConfig | SoundOrderConfig | SpansConfig | ChoiceConfig, Field(discriminator="kind")
]
SeriesAxis = Literal["time", "channel"]
NanSamples = Literal["refuse", "interpolate"]


class SeriesModality(Modality):
    """Series: float32 arrays [channels, samples] at `rate`.

    Args:
        axes: names of the stored axes.
        rate: samples a second of every file, in Hz.
        channels: channels that every series must have.
        entry: name of the array in `.npz` files.
        nan: what becomes of NaN.
        max_values: series with more numbers are refused by their header.
    """

    kernels = SERIES
    corruptions = CORRUPTIONS
    warnings: ClassVar[Mapping[str, str]] = {
        "repeated": "series repeat earlier ones: equal series are false negatives, or leak between splits",
        "with NaN": "series hold NaN: a run takes them if its recipe says `nan: interpolate`",
        "constant channel": "series have a channel that does not change, such as a lead that is off",
    }

    def __init__(
        self,
        name: str,
        extensions: tuple[str, ...],
        views: Mapping[str, View],
        axes: tuple[SeriesAxis, ...],
        rate: float,
        channels: int,
        entry: str | None,
        nan: NanSamples,
        max_values: int,
    ) -> None:
        super().__init__(name, extensions, views)
        self.axes, self.channels = axes, channels
        self.rate = self.values_per_second = rate
        self.entry, self.nan, self.max_values = entry, nan, max_values

    def length(self, value: np.ndarray) -> float:
        """Seconds of a series [channels, samples]."""
        return float(value.shape[1] / self.rate)

    def extent(self, data: bytes, extension: str) -> Extent:
        """Start (0) and length by the header.

        Raises:
            DecodeError: as `decode`, as far as the header tells.
        """
        return Extent(self._samples(self._open(data, extension).shape) / self.rate)

    def decode(self, data: bytes, extension: str, window: Window | None = None) -> np.ndarray:
        """Decode to [channels, samples], float32.

        Args:
            data: the file.
            extension: "csv": a text with a line of each time; else the first bytes say what it is.
            window: (start, length) in seconds: the samples of that span, fewer if the series ends within it.

        Raises:
            DecodeError: "undecodable", "too_large", "entry", "shape" (other axes), "channels" (another number), "empty" (no
                samples in the window), "not_finite" (NaN with `nan: refuse`, or infinite numbers, in the window).
        """
        stored = self._open(data, extension)
        samples = self._samples(stored.shape)
        first = 0 if window is None else max(0, round(window[0] * self.rate))
        stop = samples if window is None else min(samples, first + round(window[1] * self.rate))
        if stop <= first:
            raise DecodeError("empty", f"no samples in {window}: the series has {samples} at {self.rate:g} Hz")
        return self._filled(self._arranged(stored.read()), first, stop)

    def inspect(self, data: bytes, extension: str) -> Inspection:
        """Length, share of NaN, type, and the numbers of each channel, in the units of the file."""
        stored = self._open(data, extension)
        value = self._arranged(stored.read())
        finite = np.isfinite(value)
        still = any(len(x) and (x == x[0]).all() for x in (one[ok] for one, ok in zip(value, finite, strict=True)))
        flags = {
            "with NaN": bool(np.isnan(value).any()),
            "infinite": bool(np.isinf(value).any()),
            "constant channel": still,
        }
        whole = value.T[finite.all(axis=0)].astype(np.float64)
        return Inspection(
            {"seconds": [self.length(value)], "NaN share": [float(np.isnan(value).mean())]},
            {"type": str(stored.dtype)},
            tuple(flag for flag, holds in flags.items() if holds),
            (("a series", data),),
            whole if len(whole) else None,
        )

    def from_value(self, value: Any) -> np.ndarray:
        """Check an array or tensor with the axes of the recipe: [channels, samples], float32.

        Raises:
            DecodeError: "type", "shape", "empty", "not_finite", "channels", "too_large".
        """
        wanted = f"a path, bytes, or an array or tensor of numbers [{', '.join(self.axes)}] at {self.rate:g} Hz"
        array = as_array(value, wanted, finite=False)
        if array.dtype.kind not in "biuf":
            raise DecodeError("type", f"got {array.dtype}, wanted {wanted}")
        check_value_count(array.shape, self.max_values)
        samples = self._samples(array.shape)
        return self._filled(self._arranged(array), 0, samples)

    def _open(self, data: bytes, extension: str) -> Stored:
        if extension != "csv":
            stored = open_array(data, self.entry, self.max_values)
        elif self.axes[0] == "channel":
            raise DecodeError("shape", "got .csv, which has a line of each time, wanted axes: [time, channel]")
        else:
            stored = open_csv(data, self.max_values)
            if len(self.axes) == 1 and stored.shape[1] == 1:
                numbers = stored.read()[:, 0]
                stored = Stored(numbers.shape, numbers.dtype, lambda: numbers)
        self._samples(stored.shape)
        return stored

    def _samples(self, shape: tuple[int, ...]) -> int:
        """Number of samples; checks axes and channels."""
        if len(shape) != len(self.axes):
            raise DecodeError("shape", f"got shape {list(shape)}, wanted {len(self.axes)} axes: {', '.join(self.axes)}")
        sizes = dict(zip(self.axes, shape, strict=True))
        if sizes.get("channel", 1) != self.channels:
            raise DecodeError(
                "channels", f"got {sizes.get('channel', 1)} channels, wanted {self.channels} (`channels`)"
            )
        return sizes["time"]

    def _arranged(self, array: np.ndarray) -> np.ndarray:
        """Stored axes to [channels, samples]; it may share memory."""
        return array.reshape(-1, self.channels).T if self.axes[0] == "time" else array

    def _filled(self, value: np.ndarray, first: int, stop: int) -> np.ndarray:
        """A window as float32, with NaN interpolated from the whole series, so that a window is that part of the whole."""
        part = np.array(value[:, first:stop], dtype=np.float32, order="C")
        if np.isfinite(part).all():
            return part
        missing = np.isnan(part)
        infinite = int((~np.isfinite(part) & ~missing).sum())
        if infinite or self.nan == "refuse":
            remedy = "" if infinite else "; `nan: interpolate` takes a line between its neighbours"
            raise DecodeError(
                "not_finite", f"{int(missing.sum())} of {part.size} numbers are NaN, {infinite} infinite{remedy}"
            )
        for channel in np.flatnonzero(missing.any(axis=1)):
            known = np.flatnonzero(np.isfinite(value[channel]))
            if not len(known):
                raise DecodeError("not_finite", f"channel {channel} has no numbers but NaN")
            places = first + np.flatnonzero(missing[channel])
            part[channel, missing[channel]] = np.interp(places, known, value[channel, known])
        return part


class SeriesConfig(ModalityConfig):
    """Settings of series: rate and channels of the files, and length of the views.

    Attributes:
        axes: names of the stored axes in their order: [time, channel], [channel, time] or [time]. Texts have a line of each time;
            `extensions: [csv]` reads them.
        rate: samples a second of every file, in Hz; series are not resampled.
        channels: number of channels that every series must have; 1 with the axes [time].
        seconds: length of every view. Shorter series are padded with the mean of each channel.
        views: kind of view that an objective needs -> its settings. The view "eval" always exists: the window in the middle.
        entry: name of the array in `.npz` files; None: they hold one.
        nan: "refuse" series with NaN, or "interpolate": a line between the neighbours in time.
        max_values: series with more numbers are refused before decoding.
    """

    kind: Literal["series"] = "series"
    axes: tuple[SeriesAxis, ...]
    rate: float = Field(gt=0)
    channels: int = Field(ge=1)
    seconds: float = Field(gt=0)
    views: dict[str, SeriesViewConfig] = Field(default={"crop": RandomSeriesConfig()})
    entry: str | None = None
    nan: NanSamples = "refuse"
    max_values: int = Field(default=50_000_000, ge=1)

    files = FileFormats(
        "a series",
        {"npy": rb"\x93NUMPY", "npz": rb"PK\x03\x04"},
        columns=("series", "ecg", "sensor"),
        template="a {}",
        verify=check_whole,
    )

    def input_spec(self) -> InputSpec:
        """Length, rate and channels of the views."""
        return InputSpec(seconds=self.seconds, rate=self.rate, channels=self.channels)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if sorted(self.axes) not in (["time"], ["channel", "time"]) or (len(self.axes) == 1 and self.channels != 1):
            raise ValueError(
                f"axes: got {list(self.axes)} with {self.channels} channels, wanted [time, channel], [channel, time], or "
                "[time] with one channel"
            )
        if round(self.rate * self.seconds) < 1:
            raise ValueError(f"got {self.seconds:g} seconds at {self.rate:g} Hz, wanted at least one sample")
        self._views()  # raises on settings that do not fit
        return self

    def build(self, name: str) -> SeriesModality:
        """Build the modality with its name in the recipe."""
        return SeriesModality(
            name,
            self.extensions or ("npy", "npz"),
            self._views(),
            self.axes,
            self.rate,
            self.channels,
            self.entry,
            self.nan,
            self.max_values,
        )

    def _views(self) -> dict[str, View]:
        shape = (self.channels, round(self.rate * self.seconds))
        return build_views(self.views, lambda view: view.build(shape), CentreSeries(shape))
