"""Load samples: bytes to decoded values, values to views. Pure functions: the same in every process."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from mmssl.core.batch import Needs
from mmssl.core.errors import DataError, did_you_mean
from mmssl.core.sample import Fault, Origin, Sample
from mmssl.data.modality import DecodeError, Modality
from mmssl.data.shards.index import RawSample
from mmssl.data.shards.manifests import Formats
from mmssl.data.timeline import Extent, Window

if TYPE_CHECKING:
    pass


class BadSample(Exception):
    """An unusable sample: a member is missing, duplicated or damaged.

    Attributes:
        fault: sample, place and reason.
    """

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault

    def __str__(self) -> str:
        return str(self.fault)


class Samples(Protocol):
    """Random access to samples 0 ... N-1: the interface of an index of shards for loading."""

    def __len__(self) -> int: ...

    def key(self, number: int, /) -> str:
        """Key of a sample."""
        ...

    def origin(self, number: int, /) -> Origin:
        """Shard and position of a sample."""
        ...

    def read(self, number: int, extensions: Collection[str], /) -> RawSample:
        """Bytes of a sample's members with these extensions; see `ShardIndex.read`."""
        ...


class SampleIndex(Samples, Protocol):
    """All that one pass over the samples of a data set needs, whether they lie in shards or not.

    Attributes:
        source: name of the data set.
        digest: indexes with equal digests number the same samples alike.
    """

    source: str
    digest: str

    @property
    def formats(self) -> Sequence[Formats]:
        """Formats of the members of each shard; of one in all where there are no shards."""
        ...

    def identity(self, number: int, /) -> tuple[str, str, int]:
        """Key of the random draws of a sample."""
        ...

    def folder_starts(self) -> Mapping[int, range]:
        """Number within `formats` -> the samples of one folder with those formats."""
        ...

    def close(self) -> None:
        """Close open files; the next read opens them again."""
        ...


@dataclass(frozen=True)
class EncodedSample:
    """A sample that was read but not decoded: `decode` it whole, or in windows chosen with the help of headers.

    Attributes:
        raw: key, origin and bytes.
        index: dense number of the sample in its data set.
        modalities: name -> modality, as it reads the formats of the sample's members.
        members: name -> extension of the member that it reads; no entry for modalities that the sample lacks.
        optional: modalities that samples may lack.
    """

    raw: RawSample
    index: int
    modalities: Mapping[str, Modality]
    members: Mapping[str, str]
    optional: Collection[str] = ()

    @cached_property
    def extents(self) -> dict[str, Extent]:
        """Start and length by the headers, of each modality with a time axis. Decodes nothing.

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
        """Start time of the frame on screen at `moment` in the first modality with frames, in seconds on the sample's timeline.

        `moment` itself if no modality has frames. Decodes nothing.

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
        """Decode values. A member that lacks the modality, such as a video without sound, counts as missing.

        Args:
            windows: modality -> (start, length) in seconds to decode; default: all.
            names: modalities to decode; default: all.

        Raises:
            BadSample: a modality that is not in `optional` is missing, or a member does not decode.
            DataError: the decoder of a member's format is not installed.
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
        """Turn a DecodeError into a BadSample, unless an optional modality is missing in its member."""
        try:
            yield
        except DecodeError as error:
            if error.reason == "missing" and name in self.optional:  # a silent video is no fault
                return
            raise BadSample(
                Fault(self.raw.key, self.raw.origin, self.members[name], error.reason, error.detail)
            ) from error
        except DataError as error:  # no fault of the bytes: their decoder is not installed
            raise DataError(f"sample {self.raw.key!r}, .{self.members[name]}: {error}") from error


def read_sample(
    samples: Samples, number: int, modalities: Mapping[str, Modality], optional: Collection[str] = ()
) -> EncodedSample:
    """Read a sample: the members that the modalities decode, and no others.

    Args:
        samples: an index of shards.
        number: of the sample, 0 ... N-1.
        modalities: name -> modality; the sample must have all that are not in `optional`.
        optional: modalities that samples may lack.

    Raises:
        BadSample: a modality is missing, or a member is duplicated, too large, or differs from its checksum.
        DataError: the shard cannot be read.
    """
    wanted = {extension for modality in modalities.values() for extension in modality.extensions}
    try:
        raw = samples.read(number, wanted)
    except DecodeError as error:
        fault = Fault(samples.key(number), samples.origin(number), error.field, error.reason, error.detail)
        raise BadSample(fault) from error
    reading = {name: modality.reading(raw.formats) for name, modality in modalities.items()}
    return EncodedSample(raw, number, reading, _find_members(raw, modalities, optional), optional)


def load(
    samples: Samples,
    number: int,
    modalities: Mapping[str, Modality],
    optional: Collection[str] = (),
    windows: Mapping[str, Window] | None = None,
) -> Sample:
    """Read and decode a sample.

    Use `read_sample` and `EncodedSample.decode` separately to choose windows with the help of headers, to decode several
    windows of one sample, or to time the two steps.

    Args:
        windows: modality -> (start, length) in seconds to decode; default: all. Others: see `read_sample`.

    Raises:
        BadSample, DataError: see `read_sample` and `EncodedSample.decode`.
    """
    return read_sample(samples, number, modalities, optional).decode(windows)


def _find_members(raw: RawSample, modalities: Mapping[str, Modality], optional: Collection[str]) -> dict[str, str]:
    members: dict[str, str] = {}
    for name, modality in modalities.items():
        extension = next((extension for extension in modality.extensions if extension in raw.fields), None)
        if extension is not None:
            members[name] = extension
        elif name not in optional:
            detail = describe_lack(name, modality.extensions, raw.extensions or tuple(raw.fields))
            raise BadSample(Fault(raw.key, raw.origin, name, "missing", detail))
    return members


def describe_lack(
    name: str,
    wanted: Collection[str],
    got: Collection[str],
    otherwise: str = "if samples may lack it, in `data.optional`",
) -> str:
    """What samples have in place of a modality, and which key of the recipe to change.

    Args:
        name: of the modality.
        wanted: extensions that it reads.
        got: extensions of the members that are there.
        otherwise: what to do if no member holds it; by default what helps where a recipe needs it of every sample.
    """
    alike = [extension for extension in got if extension.rpartition(".")[2] in wanted]
    remedy = (
        f"set `modalities.{name}.extensions: [{', '.join(alike)}]`"
        if alike
        else f"if a member holds it, name it in `modalities.{name}.extensions`; {otherwise}"
    )
    there, asked = (", ".join(f".{extension}" for extension in some) for some in (got, wanted))
    return f"got {there}, wanted {asked.replace(', ', ' or ')}: {remedy}"


def iterate(
    samples: Samples,
    modalities: Mapping[str, Modality],
    numbers: Iterable[int] | None = None,
    optional: Collection[str] = (),
) -> Iterator[Sample | Fault]:
    """Iterate over decoded samples in order; an unusable sample gives its `Fault` instead.

    Raises:
        DataError: a shard cannot be read.
    """
    for number in range(len(samples)) if numbers is None else numbers:
        try:
            yield load(samples, number, modalities, optional)
        except BadSample as bad:
            yield bad.fault


def select_modalities(modalities: Mapping[str, Modality], needs: Needs) -> dict[str, Modality]:
    """Select the modalities in `needs`, and check that they have all views.

    Raises:
        ValueError: `needs` is empty, or names an unknown modality or kind of view.
    """
    for name, kinds in needs.items():
        if name not in modalities:
            raise ValueError(
                f"got needs for modality {name!r}{did_you_mean(name, modalities)}, wanted one of {sorted(modalities)}"
            )
        for kind in kinds:
            modalities[name].view(kind)
    if not any(count for kinds in needs.values() for count in kinds.values()):
        raise ValueError(f"got the needs {dict(needs)}, wanted at least one view")
    return {name: modalities[name] for name in needs}
