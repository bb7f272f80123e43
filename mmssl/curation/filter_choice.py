"""Choosing samples: the criteria of `mmssl shards filter`, applied to one sample after the other."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mmssl.core.config import Config
from mmssl.core.errors import DataError, RecipeError
from mmssl.curation.check import expected_fields, missing_fields
from mmssl.curation.check_shard import Findings
from mmssl.curation.dedupe import Exact, Perceptual, difference_hash
from mmssl.curation.where import NoAnswer, Where, parse_conditions
from mmssl.data.modalities.usual import file_formats, own_extensions, usual_modalities
from mmssl.data.shards.table import ShardTable, members_of

DISTANCE = 4
METADATA = "json"  # the member that `where` reads


class FilterConfig(Config):
    """Criteria that a sample must meet, besides being without faults.

    Attributes:
        where: conditions on the sample's `.json`, as in "json.width >= 200"; see `mmssl.curation.where`.
        duplicates: leave out samples whose media files equal an earlier sample's ("exact"), or also whose picture looks like an
            earlier one ("perceptual").
        distance: of "perceptual": most bits, of 64, in which the difference hashes of pictures that look alike differ; None: 4.
        min_side: shortest side of pictures and videos, in pixels.
        min_words, max_words, max_tokens: length of every caption, in words or CLIP tokens (with start and end).
        required: extensions that every sample must have; None: those that three quarters have.
        repair: also take the readable samples of damaged shards.
        min_similarity, min_probability, keep_share: of the samples that meet all others, those whose pair of modalities has this
            cosine under a model, this calibrated probability of a match, or is in the share of the largest cosines; one of them.
    """

    where: str | None = None
    duplicates: Literal["exact", "perceptual"] | None = None
    distance: int | None = Field(default=None, ge=0, le=16)
    min_side: int | None = Field(default=None, ge=1)
    min_words: int | None = Field(default=None, ge=0)
    max_words: int | None = Field(default=None, ge=0)
    max_tokens: int | None = Field(default=None, ge=2)
    required: tuple[str, ...] | None = None
    repair: bool = False
    min_similarity: float | None = Field(default=None, ge=-1, le=1)
    min_probability: float | None = Field(default=None, ge=0, le=1)
    keep_share: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.distance is not None and self.duplicates != "perceptual":
            raise ValueError(f"--distance: got {self.distance} without --duplicates perceptual, where it has no effect")
        if None not in (self.min_words, self.max_words) and self.min_words > self.max_words:  # type: ignore[operator]
            raise ValueError(
                f"--min-words: got {self.min_words}, wanted at most {self.max_words}, which is --max-words"
            )
        if len(given := self.by_similarity()) > 1:
            raise ValueError(f"got {' and '.join(given)}, wanted one of them: each says how similar a pair must be")
        return self

    def by_similarity(self) -> list[str]:
        """Options of the criteria that need a model."""
        names = ("min_similarity", "min_probability", "keep_share")
        return [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) is not None]


@dataclass(frozen=True)
class LeftOut:
    """A line of the ledger: a sample that was left out, or (key "") a part of a shard, and why."""

    key: str
    shard: str
    reason: str
    field: str
    detail: str


@dataclass(frozen=True)
class Examined:
    """A shard that was examined.

    Attributes:
        place: path or URL. table: its readable members; None: nothing can be read. found: faults and inspections.
    """

    place: str | Path
    table: ShardTable | None
    found: Findings


@dataclass(frozen=True)
class StoredSample:
    """A sample of a shard that is open as `fd`; extension -> (offset, size)."""

    key: str
    members: Mapping[str, tuple[int, int]]
    fd: int

    def read(self, extension: str) -> bytes:
        """Bytes of a member."""
        offset, size = self.members[extension]
        data = os.pread(self.fd, size, offset)
        if len(data) != size:
            raise DataError(f"sample {self.key}: the shard has become shorter while it was read; run again")
        return data

    def read_all(self) -> dict[str, bytes]:
        """Bytes of all members."""
        return {extension: self.read(extension) for extension in self.members}


def stored_samples(table: ShardTable | None, fd: int) -> Iterator[StoredSample]:
    """The samples of an open shard, in order."""
    for key, rows in groupby(members_of(table) if table is not None else (), key=lambda row: row[0]):
        yield StoredSample(key, {extension: (offset, size) for _, extension, offset, size, _ in rows}, fd)


class Choice:
    """Decides which samples are kept; of repeated ones the first."""

    def __init__(self, config: FilterConfig, where: Where | None, examined: Sequence[Examined]) -> None:
        self.config, self.where = config, where
        having = Counter(one for shard in examined for _, _, some in shard.found.samples for one in some)
        self._expected = expected_fields(
            having, sum(len(shard.found.samples) for shard in examined), required=config.required
        )
        self._exact, self._perceptual = Exact(), Perceptual(DISTANCE if config.distance is None else config.distance)
        self._media = {
            extension: one
            for name, one in usual_modalities().items()
            if name in file_formats()
            for extension in own_extensions(one)
        }
        self._shard: Examined | None = None
        self._faults: dict[str, LeftOut] = {}

    def against(self, shard: Examined, sample: StoredSample) -> LeftOut | None:
        """Why a sample is left out; None: it is kept."""
        if shard is not self._shard:
            self._shard, self._faults = shard, self._faults_of(shard)
        name = f"{sample.key} of {shard.found.name}"
        if sample.key in self._faults:
            return self._faults[sample.key]
        unmet = next(self._unmet(sample, name), None)
        return LeftOut(sample.key, shard.found.name, *unmet) if unmet is not None else None

    def _faults_of(self, shard: Examined) -> dict[str, LeftOut]:
        """Key -> the first fault, or what the inspection says against the sample."""
        found, faults = shard.found, dict[str, LeftOut]()
        for fault in (*found.faults, *missing_fields(found, self._expected)):
            line = LeftOut(fault.key, found.name, fault.reason, fault.field, fault.detail)
            faults.setdefault(fault.key, line)
        for modality, number, held in found.inspected:
            key = found.samples[number][0]
            for reason, detail in self._out_of_bounds(held.figures) if held is not None else ():
                faults.setdefault(key, LeftOut(key, found.name, reason, modality, detail))
        return faults

    def _out_of_bounds(self, figures: Mapping[str, Sequence[float]]) -> Iterator[tuple[str, str]]:
        config = self.config
        if config.min_side is not None and {"width", "height"} <= set(figures):
            width, height = int(figures["width"][0]), int(figures["height"][0])
            if min(width, height) < config.min_side:
                yield "small", f"{width} x {height} pixels, wanted at least {config.min_side} on each side"
        bounds = (("words", config.min_words, config.max_words), ("tokens", None, config.max_tokens))
        for unit, least, most in bounds:
            for count in figures.get(unit, ()):
                if least is not None and count < least:
                    yield "short", f"a caption of {count:.0f} {unit}, wanted at least {least}"
                if most is not None and count > most:
                    yield "long", f"a caption of {count:.0f} {unit}, wanted at most {most}"

    def _unmet(self, sample: StoredSample, name: str) -> Iterator[tuple[str, str, str]]:
        """(Reason, field, detail) of the criteria that read members; duplicates last, so that the first one kept stays."""
        if self.where is not None:
            try:
                if not self.where(_metadata(sample)):
                    yield "where", METADATA, f"{self.config.where} does not hold"
            except NoAnswer as error:
                yield "no_value", METADATA, str(error)
        if self.config.duplicates is None:
            return
        media = {extension: sample.read(extension) for extension in sample.members if extension in self._media}
        first = self._exact.first(media, name)
        if first is not None:
            yield "repeated", ", ".join(media), f"equal to {first}"
        if self.config.duplicates == "perceptual":
            hashes = {}
            for extension, data in media.items():
                pixels = self._media[extension].inspect(data, extension).channels
                if pixels is not None and pixels.ndim == 3:
                    hashes[extension] = difference_hash(pixels)
            for extension, bits in hashes.items():
                first = self._perceptual.first(bits)
                if first is not None:
                    yield "similar", extension, f"looks like {first}"
            for bits in hashes.values():
                self._perceptual.add(bits, name)


def _metadata(sample: StoredSample) -> dict[str, Any]:
    """The values of the `.json`, those of nested objects too, by dotted names that begin with `json.`."""
    if METADATA not in sample.members:
        raise NoAnswer(f"the sample has no .{METADATA}")
    values: dict[str, Any] = {}
    rest = [(METADATA, json.loads(sample.read(METADATA)))]
    while rest:
        name, value = rest.pop()
        if isinstance(value, dict):
            rest += [(f"{name}.{key}", one) for key, one in value.items()]
        else:
            values[name] = value
    return values


def conditions(config: FilterConfig) -> Where | None:
    """The conditions of `where`.

    Raises:
        RecipeError: they are malformed, or about something else than the `.json`.
    """
    where = None if config.where is None else parse_conditions(config.where)
    for name in where.names if where is not None else ():
        if not name.startswith(f"{METADATA}."):
            raise RecipeError(f"--where: got the name {name!r}, wanted a key of the sample's .json, as in json.{name}")
    return where
