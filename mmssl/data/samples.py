"""From the bytes of a sample to decoded values, and from values to views. Pure functions: the same in every process."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from mmssl.core.batch import Needs
from mmssl.core.errors import did_you_mean
from mmssl.core.sample import Fault, Origin, Sample
from mmssl.core.seeding import generator
from mmssl.data.modality import DecodeError, Modality
from mmssl.data.shards.index import RawSample, ShardIndex
from mmssl.data.timeline import Extent, Window


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


def decode_sample(
    raw: RawSample, index: int, modalities: Mapping[str, Modality], optional: Collection[str] = ()
) -> Sample:
    """Decode the members that the modalities read.

    Args:
        raw: the bytes.
        index: dense number of the sample in its data set.
        modalities: name -> modality; each must be there, but for those in `optional`.

    Raises:
        BadSample: a modality is missing, or its bytes do not hold what they should.
    """
    members = find_members(raw, modalities, optional)
    return Sample(raw.key, raw.origin, index, decode_members(raw, members, modalities, optional))


def find_members(raw: RawSample, modalities: Mapping[str, Modality], optional: Collection[str] = ()) -> dict[str, str]:
    """Modality -> extension of the member that it reads; optional ones that are missing have none.

    Raises:
        BadSample: a modality is missing.
    """
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


def decode_members(
    raw: RawSample,
    members: Mapping[str, str],
    modalities: Mapping[str, Modality],
    optional: Collection[str] = (),
    windows: Mapping[str, Window] | None = None,
) -> dict[str, Any]:
    """Decoded values by modality. A member without the modality in it, such as a video without sound, is like a missing one.

    Args:
        members: from `find_members`.
        windows: the part of each modality that is decoded; default: all.

    Raises:
        BadSample: a modality that is not in `optional` is missing, or bytes do not hold what they should.
    """
    values: dict[str, Any] = {}
    for name, extension in members.items():
        with blamed(raw, extension, name in optional):
            values[name] = modalities[name].decode(raw.fields[extension], extension, (windows or {}).get(name))
    return values


def read_extents(
    raw: RawSample, members: Mapping[str, str], modalities: Mapping[str, Modality], optional: Collection[str] = ()
) -> dict[str, Extent]:
    """What the headers of the members say about time, of the modalities that have a time axis; nothing is decoded.

    Raises:
        BadSample: as `decode_members`, as far as headers tell.
    """
    extents: dict[str, Extent] = {}
    for name, extension in members.items():
        with blamed(raw, extension, name in optional):
            extent = modalities[name].extent(raw.fields[extension], extension)
            if extent is not None:
                extents[name] = extent
    return extents


@contextmanager
def blamed(raw: RawSample, extension: str, optional: bool = False) -> Iterator[None]:
    """A DecodeError within becomes a BadSample; that a modality is missing within its member is borne where it is optional."""
    try:
        yield
    except DecodeError as error:
        if error.reason == "missing" and optional:  # a mute video has no sound, and nothing is wrong with it
            return
        raise BadSample(Fault(raw.key, raw.origin, extension, error.reason, error.detail)) from error


def load_sample(
    index: ShardIndex, ordinal: int, modalities: Mapping[str, Modality], optional: Collection[str] = ()
) -> Sample:
    """Read and decode sample `ordinal`; only members that the modalities read are read.

    Raises:
        BadSample: see `decode_sample`; also for members that are there twice.
        DataError: the shard cannot be read.
    """
    return decode_sample(read_sample(index, ordinal, modalities), ordinal, modalities, optional)


def read_sample(index: ShardIndex, ordinal: int, modalities: Mapping[str, Modality]) -> RawSample:
    """Bytes of sample `ordinal`, of the members that the modalities read.

    Raises:
        BadSample: members that are there twice, or too large. DataError: the shard cannot be read.
    """
    wanted = {extension for modality in modalities.values() for extension in modality.extensions}
    try:
        return index.read(ordinal, wanted)
    except DecodeError as error:
        origin: Origin = index.origin(ordinal)
        raise BadSample(Fault(index.key(ordinal), origin, error.field, error.reason, error.detail)) from error


def iterate(
    index: ShardIndex,
    modalities: Mapping[str, Modality],
    ordinals: Iterable[int] | None = None,
    optional: Collection[str] = (),
) -> Iterator[Sample | Fault]:
    """Decoded samples in order, and in place of those that cannot be used the reason why.

    Raises:
        DataError: a shard cannot be read.
    """
    for ordinal in range(len(index)) if ordinals is None else ordinals:
        try:
            yield load_sample(index, ordinal, modalities, optional)
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


def make_views(
    sample: Sample, modalities: Mapping[str, Modality], needs: Needs, key: tuple[int | str, ...]
) -> dict[str, dict[str, Tensor]]:
    """All views that are needed of the modalities that the sample has: modality -> f"{kind}{i}" -> tensor.

    Args:
        key: what chance is keyed by, such as (seed, epoch, source, shard, number); each view adds its modality and name.
    """
    views: dict[str, dict[str, Tensor]] = {}
    for name, value in sample.values.items():
        made = views[name] = {}
        for kind, count in needs[name].items():
            view = modalities[name].views[kind]
            for view_name in (f"{kind}{i}" for i in range(count)):
                made[view_name] = view(value, view.draw(value, generator(*key, name, view_name)))
    return views
