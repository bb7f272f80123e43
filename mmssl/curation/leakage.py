"""Leakage: test samples that are in the training shards too, as equal files, pictures that look alike, captions, or by a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mmssl.curation.dedupe import Perceptual, difference_hash
from mmssl.curation.figures import bytes_digest
from mmssl.data.modalities.usual import file_formats, modality_configs, own_extensions, usual_modalities
from mmssl.data.modality import DecodeError, Modality
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.remote import Remote

KINDS = {
    "equal": "files that are equal, byte for byte",
    "alike": "pictures that look alike (difference hash)",
    "caption": "captions that are equal but for case and blanks",
    "near": "features of a model that lie near those of a training sample",
}
"""Kind of leak -> in words."""
NO_PROOF = ("caption", "near")
"""Kinds that are no proof alone: short captions repeat by chance, and a model may take different things for alike."""


@dataclass(frozen=True)
class Leak:
    """A test sample that a training sample repeats.

    Attributes:
        kind: of `KINDS`. field: extension of the test sample's member; the modality of "near". test, train: key and shard of each.
    """

    kind: str
    field: str
    test: str
    train: str


@dataclass
class LeakReport:
    """What was found.

    Attributes:
        test, train: numbers of samples.
        leaks: each test member once for each kind, with the first training sample that repeats it.
        unreadable: members that could not be decoded, and so were compared by their bytes only.
        notes: lines on what was compared by a model; empty: nothing was.
    """

    test: int
    train: int
    leaks: list[Leak] = field(default_factory=list)
    unreadable: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no file of the test set is in the training set."""
        return all(leak.kind in NO_PROOF for leak in self.leaks)

    def counts(self) -> dict[str, int]:
        """Kind -> number of test samples."""
        kinds = [kind for kind in KINDS if kind != "near" or self.notes]
        return {kind: len({leak.test for leak in self.leaks if leak.kind == kind}) for kind in kinds}

    def add_near(self, modality: str, pairs: Iterable[tuple[str, str]], note: str) -> None:
        """Add pairs (test sample, training sample) that a model takes for alike, but for files that were found already.

        Args:
            modality: compared by. pairs: key and shard of each.
            note: a line for the report.
        """
        known = {leak.test for leak in self.leaks if leak.kind in ("equal", "alike")}
        self.leaks += [Leak("near", modality, test, train) for test, train in pairs if test not in known]
        self.notes.append(note)

    def table(self, examples: int = 3) -> str:
        """The findings as text."""
        lines = [f"{self.test:,} test samples against {self.train:,} training samples"]
        for kind, count in self.counts().items():
            share = 100 * count / max(1, self.test)
            lines.append(f"  {count:,} ({share:.2f} %) have {KINDS[kind]}")
            some = [leak for leak in self.leaks if leak.kind == kind][:examples]
            lines += [
                f"    {leak.field} of {leak.test} is like that of {leak.train}"
                if kind == "near"
                else f"    .{leak.field} of {leak.test} is in {leak.train}"
                for leak in some
            ]
        lines += [f"  {note}" for note in self.notes]
        if self.unreadable:
            lines.append(f"  {self.unreadable:,} members cannot be decoded: they were compared by their bytes only")
        return "\n".join(lines)

    def to_json(self) -> str:
        """The findings as JSON, with every leak."""
        return json.dumps({**asdict(self), "counts": self.counts()}, indent=1)


def find_leaks(
    train: Sequence[str | Path],
    test: Sequence[str | Path],
    *,
    distance: int = 4,
    remote: Remote | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LeakReport:
    """Look for the samples of test shards in training shards. Memory is that of the test samples' hashes.

    Args:
        train, test: paths, folders, globs, brace patterns; or URLs with braces.
        distance: bits of 64 in which the difference hashes of pictures that look alike may differ.
        remote: client for URLs; default: one with the usual cache.
        progress: called with (samples done, samples in all).

    Raises:
        DataError: shards that cannot be read.
    """
    looked_for, searched = (ShardIndex.open(list(shards), remote=remote) for shards in (test, train))
    report = LeakReport(len(looked_for), len(searched))
    total = len(looked_for) + len(searched)
    exact: dict[tuple[str, bytes], tuple[str, str]] = {}
    perceptual = Perceptual(distance)
    pictures: dict[str, str] = {}
    reader = _Reader(report)
    for done, (name, kind, extension, found) in enumerate(_marks(looked_for, reader, progress, 0, total)):
        if isinstance(found, int):
            unique = f"{name}\0{done}"
            perceptual.add(found, unique)
            pictures[unique] = extension
        else:
            exact.setdefault((kind, found), (extension, name))
    seen: set[tuple[str, str, str]] = set()
    for name, kind, _, found in _marks(searched, reader, progress, len(looked_for), total):
        if isinstance(found, int):
            unique = perceptual.first(found) or ""
            hit = (pictures[unique], unique.partition("\0")[0]) if unique else None
        else:
            hit = exact.get((kind, found))
        if hit is not None and (kind, *hit) not in seen:
            seen.add((kind, *hit))
            report.leaks.append(Leak(kind, *hit, name))
    equal = {(leak.field, leak.test) for leak in report.leaks if leak.kind == "equal"}
    report.leaks = [leak for leak in report.leaks if leak.kind != "alike" or (leak.field, leak.test) not in equal]
    return report


class _Reader:
    """Marks of members: digests of files and captions, and difference hashes of pictures."""

    def __init__(self, report: LeakReport) -> None:
        self.report = report
        usual = usual_modalities(captions="lines")
        self.kinds = modality_configs().keys() - usual.keys()
        self.media: Mapping[str, Modality] = {
            extension: one for name, one in usual.items() if name in file_formats() for extension in own_extensions(one)
        }
        self.texts: Mapping[str, Modality] = {
            extension: one for one in usual.values() if one.language for extension in one.extensions
        }

    def marks(self, extension: str, data: bytes) -> Iterator[tuple[str, bytes | int]]:
        """(Kind, mark) of one member."""
        if extension in self.media:
            yield "equal", bytes_digest(data)
        try:
            held = (self.media.get(extension) or self.texts[extension]).inspect(data, extension)
        except DecodeError:
            self.report.unreadable += 1
            return
        if extension in self.texts:
            for _, text in held.items:
                yield "caption", bytes_digest(" ".join(text.decode().casefold().split()).encode())
        elif held.channels is not None and held.channels.ndim == 3:
            yield "alike", difference_hash(held.channels)


def _marks(
    index: ShardIndex, reader: _Reader, progress: Callable[[int, int], None] | None, before: int, total: int
) -> Iterator[tuple[str, str, str, bytes | int]]:
    """(Key and shard, kind, extension, mark) of every member of every sample."""
    wanted = {*reader.media, *reader.texts}
    for number in range(len(index)):
        try:
            sample = index.read(number, wanted)
        except DecodeError:
            reader.report.unreadable += 1
            continue
        name = f"{sample.key} of {sample.origin.shard}"
        for extension, data in sample.fields.items():
            if sample.formats.get(extension) in reader.kinds:  # vectors of classes, which are equal by chance
                continue
            for kind, mark in reader.marks(extension, data):
                yield name, kind, extension, mark
        if progress is not None:
            progress(before + number + 1, total)
    index.reader.close()
