"""From the bytes of a sample to decoded values, and from values to views. Pure functions: the same in every process."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

from mmssl.core.batch import Needs, view_names
from mmssl.core.errors import did_you_mean
from mmssl.core.sample import Fault, Origin, Sample
from mmssl.core.seeding import generator
from mmssl.data.modality import DecodeError, Modality
from mmssl.data.shards.index import RawSample
from mmssl.data.timeline import Extent, Window

Parameters = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Modality -> view name -> what was drawn for that view."""


class BadSample(Exception):
    """A sample that cannot be used as it is.

    Attributes:
        fault: which, where and why.
    """

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault

    def __str__(self) -> str:
        return str(self.fault)


class Samples(Protocol):
    """Samples by number, 0 ... N-1: what loading asks of an index of shards."""

    def __len__(self) -> int: ...

    def key(self, number: int, /) -> str:
        """Key of a sample."""
        ...

    def origin(self, number: int, /) -> Origin:
        """Where a sample lies."""
        ...

    def read(self, number: int, extensions: Collection[str], /) -> RawSample:
        """Bytes of a sample's members with these extensions; see `ShardIndex.read`."""
        ...


@dataclass(frozen=True)
class EncodedSample:
    """A sample that was read and is decoded on request: whole, or the windows that were chosen by what headers tell.

    Attributes:
        raw: key, origin, and the bytes.
        index: dense number of the sample in its data set.
        modalities: name -> what decodes it.
        members: name -> extension of the member that it reads; modalities that the sample lacks have none.
        optional: modalities that samples may lack.
    """

    raw: RawSample
    index: int
    modalities: Mapping[str, Modality]
    members: Mapping[str, str]
    optional: Collection[str] = ()

    @cached_property
    def extents(self) -> dict[str, Extent]:
        """What the headers say about time, of the modalities that have a time axis; nothing is decoded.

        Raises:
            BadSample: as `decode`, as far as headers tell.
        """
        extents: dict[str, Extent] = {}
        for name, extension in self.members.items():
            with self._blaming(name):
                extent = self.modalities[name].extent(self.raw.fields[extension], extension)
                if extent is not None:
                    extents[name] = extent
        return extents

    def frame_start(self, moment: float) -> float:
        """When the frame began that the first modality with frames shows at `moment`, in seconds on the sample's timeline.

        The moment itself where no modality has frames. Nothing is decoded.

        Raises:
            BadSample: the file cannot be searched.
        """
        for name in self.extents:
            with self._blaming(name):
                start = self.modalities[name].frame_start(self.raw.fields[self.members[name]], moment)
                if start is not None:
                    return start
        return moment

    def decode(self, windows: Mapping[str, Window] | None = None, names: Collection[str] | None = None) -> Sample:
        """Decoded values. A member without the modality in it, such as a video without sound, is like a missing one.

        Args:
            windows: modality -> the part that is decoded, in seconds; default: all.
            names: modalities that are decoded; default: all.

        Raises:
            BadSample: a modality that is not in `optional` is missing, or bytes do not hold what they should.
        """
        values: dict[str, Any] = {}
        for name, extension in self.members.items():
            if names is None or name in names:
                with self._blaming(name):
                    window = (windows or {}).get(name)
                    values[name] = self.modalities[name].decode(self.raw.fields[extension], extension, window)
        return Sample(self.raw.key, self.raw.origin, self.index, values)

    @contextmanager
    def _blaming(self, name: str) -> Iterator[None]:
        """A DecodeError within becomes a BadSample, unless an optional modality is missing within its member."""
        try:
            yield
        except DecodeError as error:
            if (
                error.reason == "missing" and name in self.optional
            ):  # a mute video has no sound, and nothing is wrong with it
                return
            raise BadSample(
                Fault(self.raw.key, self.raw.origin, self.members[name], error.reason, error.detail)
            ) from error


def read(
    samples: Samples, number: int, modalities: Mapping[str, Modality], optional: Collection[str] = ()
) -> EncodedSample:
    """Read a sample: the members that the modalities decode, and no others.

    Args:
        samples: an index of shards.
        number: of the sample, 0 ... N-1.
        modalities: name -> modality; the sample must have each, but for those in `optional`.
        optional: modalities that samples may lack.

    Raises:
        BadSample: a modality is missing, or a member is there twice, too large, or not what its checksum says.
        DataError: the shard cannot be read.
    """
    wanted = {extension for modality in modalities.values() for extension in modality.extensions}
    try:
        raw = samples.read(number, wanted)
    except DecodeError as error:
        fault = Fault(samples.key(number), samples.origin(number), error.field, error.reason, error.detail)
        raise BadSample(fault) from error
    return EncodedSample(raw, number, modalities, _find_members(raw, modalities, optional), optional)


def load(
    samples: Samples,
    number: int,
    modalities: Mapping[str, Modality],
    optional: Collection[str] = (),
    windows: Mapping[str, Window] | None = None,
) -> Sample:
    """Read and decode a sample: the one way from shards to values.

    Who chooses windows by what headers tell, wants several windows of one sample, or times the two halves takes `read` and
    `EncodedSample.decode` apart.

    Args:
        windows: modality -> the part that is decoded, in seconds; default: all. Others: see `read`.

    Raises:
        BadSample, DataError: see `read` and `EncodedSample.decode`.
    """
    return read(samples, number, modalities, optional).decode(windows)


def _find_members(raw: RawSample, modalities: Mapping[str, Modality], optional: Collection[str]) -> dict[str, str]:
    members: dict[str, str] = {}
    for name, modality in modalities.items():
        extension = next((extension for extension in modality.extensions if extension in raw.fields), None)
        if extension is not None:
            members[name] = extension
        elif name not in optional:
            wanted = " or ".join(f".{extension}" for extension in modality.extensions)
            got = ", ".join(f".{extension}" for extension in raw.fields) or "no member that any modality reads"
            raise BadSample(Fault(raw.key, raw.origin, name, "missing", f"got {got}, wanted {wanted}"))
    return members


def iterate(
    samples: Samples,
    modalities: Mapping[str, Modality],
    numbers: Iterable[int] | None = None,
    optional: Collection[str] = (),
) -> Iterator[Sample | Fault]:
    """Decoded samples in order, and in place of those that cannot be used the reason why.

    Raises:
        DataError: a shard cannot be read.
    """
    for number in range(len(samples)) if numbers is None else numbers:
        try:
            yield load(samples, number, modalities, optional)
        except BadSample as bad:
            yield bad.fault


def select(modalities: Mapping[str, Modality], needs: Needs) -> dict[str, Modality]:
    """The modalities that the needs name, after a check that all views are there.

    Raises:
        ValueError: the needs are empty, or name a modality or a kind of view that is not there.
    """
    for name, kinds in needs.items():
        if name not in modalities:
            raise ValueError(
                f"views of {name!r} are needed{did_you_mean(name, modalities)}, and the modalities are {sorted(modalities)}"
            )
        for kind in kinds:
            modalities[name].view(kind)
    if not any(count for kinds in needs.values() for count in kinds.values()):
        raise ValueError(f"got the needs {dict(needs)}, wanted at least one view")
    return {name: modalities[name] for name in needs}


def draw_views(
    sample: Sample, modalities: Mapping[str, Modality], needs: Needs, key: tuple[int | str, ...]
) -> Parameters:
    """Draw the parameters of all views that are needed of the modalities that the sample has.

    Args:
        key: what chance is keyed by, such as (seed, epoch, source, shard, number); each view adds its modality and name.
    """
    return {
        name: {
            view: modalities[name].views[kind].draw(value, generator(*key, name, view))
            for kind, count in needs[name].items()
            for view in view_names(kind, count)
        }
        for name, value in sample.values.items()
    }


def make_views(
    sample: Sample, modalities: Mapping[str, Modality], needs: Needs, parameters: Parameters
) -> dict[str, dict[str, Tensor]]:
    """All views that are needed of the modalities that the sample has: modality -> view name -> tensor.

    Args:
        parameters: from `draw_views`, or from a record in `Batch.records`: equal ones give equal bits.
    """
    return {
        name: {
            view: modalities[name].views[kind](value, parameters[name][view])
            for kind, count in needs[name].items()
            for view in view_names(kind, count)
        }
        for name, value in sample.values.items()
    }
