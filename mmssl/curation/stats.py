"""Statistics of a data set: what `mmssl shards stats` does. Reads an evenly spaced subset of the samples.

Use it to choose an image size, a context length, the mean and standard deviation of normalisation, and to know how fast one
core loads.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.curation.check_report import aligned_lines
from mmssl.curation.figures import ModalityFigures, Spread, Tally
from mmssl.data.modalities.usual import usual_modalities
from mmssl.data.modality import DecodeError, Modality
from mmssl.data.samples import describe_lack
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.remote import Remote
from mmssl.data.shards.writer import Progress


@dataclass(frozen=True)
class StatsReport:
    """Statistics of a data set; distributions are over the sampled samples, except `fields`.

    Attributes:
        shards, samples, bytes: of the whole set.
        sampled: samples that were read and decoded.
        undecodable: number of their members that did not decode, and do not count below.
        fields: extension -> distribution of sizes in bytes, over all samples.
        modalities: name -> statistics of its members.
        lacking: of modalities that were named, those that no sample has -> what is there in their place, and the key to change.
        read_rate, decode_rate: samples a second on one thread of this process for reading, and for decoding.
        rate: of both, one after the other.
    """

    shards: int
    samples: int
    bytes: int
    sampled: int
    undecodable: int
    fields: Mapping[str, Spread]
    modalities: Mapping[str, ModalityFigures]
    read_rate: float
    decode_rate: float
    rate: float
    lacking: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The whole report as a JSON object."""
        return json.dumps(asdict(self), indent=1)

    def table(self) -> str:
        """The report as a text table."""
        speed = f"{self.rate:,.0f} samples/s on one thread (reading {self.read_rate:,.0f}, decoding {self.decode_rate:,.0f})"
        return "\n".join(aligned_lines([*self.rows(), ("speed", speed)]))

    def rows(self) -> list[tuple[str, Any]]:
        """Rows of a table without the speed: (name, value)."""
        rows: list[tuple[str, Any]] = [
            (
                "samples",
                f"{self.samples:,} in {self.shards} shards of {self.bytes:,} bytes; {self.sampled:,} looked at",
            ),
            *((f".{name}", f"in {spread.count:,}, {spread.text('bytes')}") for name, spread in self.fields.items()),
        ]
        for name, figures in self.modalities.items():
            rows += figures.rows(name)
        rows += ((f"{name} in none", why) for name, why in self.lacking.items())
        if self.undecodable:
            rows.append(("undecodable", f"{self.undecodable:,} members: see `mmssl shards check`"))
        return rows


def measure_shards(
    shards: Sequence[str | Path],
    modalities: Mapping[str, Modality] | None = None,
    *,
    sample: int = 2000,
    seconds: float | None = None,
    remote: Remote | None = None,
    progress: Progress | None = None,
) -> StatsReport:
    """Compute statistics of a data set: sizes, figures of each modality, channel means, decoding rate.

    Args:
        shards: paths, folders, globs, brace patterns; or URLs with braces.
        modalities: name -> modality that decodes its members; None: all modalities with their usual settings.
        sample: number of samples to read and decode.
        seconds: time after which no further one is read; those before it are spread over the set. At least one is. None: no limit.
        remote: client for URLs; default: one with the usual cache.
        progress: called with (samples done, samples to do).

    Raises:
        ValueError: `sample` is below 1.
        DataError: no shards, or shards that cannot be read.
    """
    if sample < 1:
        raise ValueError(f"got sample={sample}, wanted at least 1")
    end = math.inf if seconds is None else time.monotonic() + seconds
    index = ShardIndex.open(shards, remote=remote)
    chosen = np.unique(np.linspace(0, len(index) - 1, min(sample, len(index))).round().astype(int))
    if seconds is not None:
        chosen = chosen[_spread(len(chosen))]
    tally, done = _Tally(modalities), 0
    for done, ordinal in enumerate(chosen.tolist(), 1):
        tally.add(index, ordinal)
        if progress is not None and (done % 100 == 0 or done == len(chosen)):
            progress(done, len(chosen))
        if time.monotonic() >= end:
            break
    return tally.report(index, done)


def _spread(count: int) -> np.ndarray:
    """An order of the numbers below `count` of which every beginning is evenly spread: ranks of multiples of the golden ratio."""
    places = np.arange(count) * (math.sqrt(5) - 1) / 2 % 1
    return places.argsort().argsort()


class _Tally:
    """Sums over the sampled samples."""

    def __init__(self, modalities: Mapping[str, Modality] | None) -> None:
        self.modalities = modalities
        self.decoders: dict[str, Mapping[str, tuple[Modality, ...]]] = {}  # by the formats of the shard
        self.tallies: dict[str, Tally] = {}
        self.undecodable = 0
        self.reading = self.decoding = 0.0

    def add(self, index: ShardIndex, ordinal: int) -> None:
        start = time.perf_counter()
        try:
            raw = index.read(ordinal)
        except DecodeError:
            self.undecodable += 1
            return
        finally:
            self.reading += time.perf_counter() - start
        for extension, data in raw.fields.items():
            for modality in self._decoders_of(raw.formats).get(extension, ()):
                start = time.perf_counter()
                with suppress(ValueError):  # settings that contradict the manifest
                    modality = modality.reading(raw.formats)
                try:
                    held = modality.inspect(data, extension)
                except DecodeError as error:
                    self.undecodable += error.reason != "missing"  # a silent video is no fault
                    continue
                finally:
                    self.decoding += time.perf_counter() - start
                self.tallies[modality.name].add(held)

    def _decoders_of(self, formats: Mapping[str, str]) -> Mapping[str, tuple[Modality, ...]]:
        said = repr(formats)
        if said not in self.decoders:
            decoders: dict[str, tuple[Modality, ...]] = {}
            for modality in (usual_modalities(formats) if self.modalities is None else self.modalities).values():
                decoders |= {name: (*decoders.get(name, ()), modality) for name in modality.extensions}
                self.tallies.setdefault(modality.name, Tally())
            self.decoders[said] = decoders
        return self.decoders[said]

    def report(self, index: ShardIndex, sampled: int) -> StatsReport:
        return StatsReport(
            shards=len(index.shards),
            samples=len(index),
            bytes=index.shard_bytes,
            sampled=sampled,
            undecodable=self.undecodable,
            fields={name: Spread.of(one) for name, one in index.sizes().items()},
            modalities={name: tally.report() for name, tally in self.tallies.items() if tally.members},
            read_rate=sampled / self.reading,
            decode_rate=sampled / self.decoding if self.decoding else 0.0,
            rate=sampled / (self.reading + self.decoding),
            lacking={
                name: describe_lack(name, one.extensions, tuple(index.sizes()), "if none does, choose other shards")
                for name, one in (self.modalities or {}).items()
                if index.sizes().keys().isdisjoint(one.extensions)
            },
        )
