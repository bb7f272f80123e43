"""Auditing shards: what `mmssl shards check` does. It looks at everything and does not stop at the first problem.

A fault is what a loader would refuse or lose: a damaged archive, a member that does not decode or is duplicated, a caption without
text, a field that a sample lacks, a folder whose packing did not end. A warning is about data that trains, but maybe not as
intended: equal images, truncated captions, fewer shards than workers. The readable part of a damaged archive is examined too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from mmssl.core.sample import Fault, Origin
from mmssl.curation.check_manifest import unfinished_faults
from mmssl.curation.check_report import CheckReport, FieldReport
from mmssl.curation.check_shard import SOURCE, Decoders, Findings, MemberDecoder, examine_shard
from mmssl.curation.figures import MemberPlace, Spread, Tally
from mmssl.data.modalities.usual import file_formats, own_extensions, usual_modalities
from mmssl.data.modality import Modality
from mmssl.data.samples import describe_lack
from mmssl.data.shards.manifests import Formats, read_formats
from mmssl.data.shards.paths import expand, expand_urls
from mmssl.data.shards.remote import CacheConfig, Remote
from mmssl.data.shards.remote_manifests import read_remote_formats
from mmssl.data.shards.storage import is_remote
from mmssl.data.shards.writer import Progress, map_in_order

MAX_LISTED = 1000  # faults in a report; all are counted
EXPECTED_SHARE = 0.75  # a field that this share of the samples has counts as missing in the others
_DOTTED = re.compile(r"(?:[^.]*\.)*[^.]*\d[^.]*\.[a-z][a-z0-9]{1,4}").fullmatch  # such as 17.3.jpg, but not caption.txt


def check_shards(
    shards: Sequence[str | Path],
    modalities: Mapping[str, Modality] | None = None,
    *,
    needs: Collection[str] | None = None,
    required: Collection[str] | None = None,
    limit: int | None = None,
    workers: int | None = None,
    context_length: int = 77,
    threads: int = 1,
    remote: Remote | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Audit shards: read and decode every member, and report faults, duplicates and statistics.

    Takes about half a kilobyte of memory a sample, to find duplicates.

    Args:
        shards: paths, folders, globs, brace patterns; or URLs with braces, which are fetched as a whole.
        modalities: name -> modality that decodes its members. None: all modalities with usual settings (pictures, sounds, videos
            and their sounds, `.txt` with one caption a line, `.cls`, those of other packages) and `.json` are decoded, other
            members are only counted.
        needs: modalities that every sample must have. None: all `modalities`.
        required: extensions that every sample must have. With neither `modalities`, `needs` nor `required`: what three quarters of
            the samples have.
        limit: maximum number of samples to read and decode: an equal share of every shard, its first samples; the others
            are counted.
        workers: DataLoader workers of the planned run, to compare with the number of shards.
        context_length: captions with more CLIP tokens than this count as truncated.
        threads: number of shards to audit in parallel.
        remote: client for URLs; default: one with the usual cache.
        progress: called with (shards done, shards in all).

    Raises:
        DataError: a pattern without files, or storage that fails. Faults of the files themselves are in the report.
    """
    places, client = find_shards(shards, remote)
    wanted = tuple(modalities) if needs is None and modalities is not None else needs
    formats = formats_of(places, client)
    different = {repr(one): one for one in formats}
    used = modalities
    if used is None:
        used = {name: one for some in different.values() for name, one in usual_modalities(some).items()}
    kinds = {text: decoders_of(modalities, wanted, one) for text, one in different.items()}
    decoders = [kinds[repr(one)] for one in formats]

    def one(number: int) -> Findings:
        with local_file(places[number], client) as (path, name):
            return examine_shard(path, decoders[number], _limit_of_shard(limit, number, len(places)), name=name)

    total = _Total(used, context_length, usual=modalities is None)
    total.add_faults(unfinished_faults(places))
    for number, findings in enumerate(map_in_order(one, range(len(places)), threads)):
        total.add(findings, formats[number])
        if progress is not None:
            progress(number + 1, len(places))
    groups = expected_fields(total.having, total.samples, used, wanted, required)
    for findings in total.findings:
        total.add_faults(missing_fields(findings, groups, used))
    return total.report(workers, groups, guessed=wanted is None and required is None)


def find_shards(
    shards: Sequence[str | Path], remote: Remote | None = None
) -> tuple[Sequence[str | Path], Remote | None]:
    """The shards, all paths or all URLs, and a client for URLs; local shards need none, and so do not import torch."""
    if any(is_remote(str(shard)) for shard in shards):
        return expand_urls(shards), remote or CacheConfig().build()
    return expand(shards), None


def formats_of(places: Sequence[str | Path], remote: Remote | None) -> tuple[Formats, ...]:
    """The formats of the members of each shard of `find_shards`, as its manifest says."""
    if remote is None:
        return read_formats([Path(place) for place in places])
    return read_remote_formats([str(place) for place in places], remote)


@contextmanager
def local_file(place: str | Path, remote: Remote | None) -> Iterator[tuple[Path, str]]:
    """The file of a shard, fetched as a whole if it is remote, and the name of the shard in messages."""
    if isinstance(place, Path):
        yield place, str(place)
    else:
        assert remote is not None
        shard = remote.shard(place)
        with remote.open_shard(shard):
            yield remote.cache.path(shard.key), shard.display_url


def _limit_of_shard(limit: int | None, shard: int, shards: int) -> int | None:
    """Number of samples of one shard under `limit`: shares differ by at most one, and their sum is `limit`."""
    return None if limit is None else (shard + 1) * limit // shards - shard * limit // shards


def decoders_of(
    modalities: Mapping[str, Modality] | None = None,
    needs: Collection[str] | None = None,
    formats: Mapping[str, str] | None = None,
) -> Decoders:
    """Extension -> decoders of its members; without modalities: all with usual settings, and JSON.

    Args:
        modalities, needs: see `check_shards`.
        formats: of the members, as the manifest of the shard says.
    """
    decoders: dict[str, tuple[MemberDecoder, ...]] = {} if modalities is not None else {"json": ()}
    for name, modality in (usual_modalities(formats) if modalities is None else modalities).items():
        needed = name in (needs or ())
        own = own_extensions(modality) if modalities is None else modality.extensions if needed else ()
        reading = _reading(modality, formats or {})
        for extension in modality.extensions:
            may_lack = name not in (needs or ()) and extension not in own
            decoders[extension] = (*decoders.get(extension, ()), MemberDecoder(reading, may_lack))
    # A damaged video is called a video before it is called a sound.
    return {extension: tuple(sorted(some, key=lambda one: one.may_lack)) for extension, some in decoders.items()}


def _reading(modality: Modality, formats: Mapping[str, str]) -> Modality:
    """The modality for these formats; if its settings contradict them, as it is: `check_formats` reports that."""
    try:
        return modality.reading(formats)
    except ValueError:
        return modality


def expected_fields(
    having: Mapping[str, int],
    samples: int,
    modalities: Mapping[str, Modality] | None = None,
    needs: Collection[str] | None = None,
    required: Collection[str] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Fields that every sample should have: name -> extensions, any one of which is enough.

    Args:
        having: extension -> samples that have it, of `samples` in all.
        modalities, needs, required: see `check_shards`.
    """
    if required is not None or needs is not None:
        extensions = {extension: (extension,) for extension in required or ()}
        return extensions | {name: (modalities or {})[name].extensions for name in needs or ()}
    usual = {name: own_extensions(one) for name, one in usual_modalities().items() if name in file_formats()}
    grouped = {extension for group in usual.values() for extension in group}
    groups = usual | {extension: (extension,) for extension in having if extension not in grouped}
    share = {name: sum(having.get(one, 0) for one in group) / max(1, samples) for name, group in groups.items()}
    return {name: group for name, group in groups.items() if share[name] >= EXPECTED_SHARE}


def missing_fields(
    found: Findings, groups: Mapping[str, tuple[str, ...]], modalities: Collection[str] = ()
) -> Iterator[Fault]:
    """Faults of the samples of a shard that lack an expected field; of modalities with the key of the recipe to change."""
    for number, (key, offset, extensions) in enumerate(found.samples):
        for name, group in groups.items():
            if not set(group) & set(extensions):
                got, wanted = (", ".join(f".{one}" for one in some) for some in (extensions, group))
                origin = Origin(SOURCE, found.name, number, offset)
                plain = f"got {got}, wanted {wanted}"
                detail = describe_lack(name, group, extensions) if name in modalities else plain
                yield Fault(key, origin, name, "missing", detail)


class _Total:
    """The findings of all shards."""

    def __init__(self, modalities: Mapping[str, Modality], context_length: int, usual: bool) -> None:
        self.modalities = modalities
        self.tallies = {name: Tally() for name in modalities}
        self.usual = usual  # whether each line of a text was taken as a caption, which a run must be told to do
        self.unsaid = 0  # texts of several lines without a manifest that says so
        self.context_length = context_length
        self.findings: list[Findings] = []
        self.sizes: dict[str, list[int]] = {}
        self.having: Counter[str] = Counter()
        self.decoded: Counter[str] = Counter()
        self.fault_counts: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self.keys: Counter[str] = Counter()
        self.samples = self.examined = self.ignored = 0

    def add(self, found: Findings, formats: Mapping[str, str]) -> None:
        self.findings.append(found)
        self.samples += len(found.samples)
        self.examined += found.examined
        self.ignored += found.ignored
        self.decoded += found.decoded
        for extension, sizes in found.sizes.items():
            self.sizes.setdefault(extension, []).extend(sizes)
        for key, _, extensions in found.samples:
            self.having.update(extensions)
            self.keys[key] += 1
        self.add_faults(found.faults)
        shard = len(self.findings) - 1
        for name, number, held in found.inspected:
            if held is None:
                self.tallies[name].lacking += 1
            else:
                self.tallies[name].add(held, (shard, number))
                self.unsaid += "txt" not in formats and "several captions" in held.flags
        found.inspected = []

    def add_faults(self, faults: Iterable[Fault]) -> None:
        for fault in faults:
            self.fault_counts[f"{fault.reason} {fault.field}"] += 1
            if len(self.faults) < MAX_LISTED:
                self.faults.append(fault)

    def key(self, place: MemberPlace) -> str:
        shard, number = place
        return self.findings[shard].samples[number][0]

    def report(self, workers: int | None, groups: Mapping[str, tuple[str, ...]], *, guessed: bool) -> CheckReport:
        present = [[extension for extension in group if extension in self.sizes] for group in groups.values()]
        expected = {group[0] for group in present if len(group) == 1}  # of several, each sample has one or the other
        return CheckReport(
            shards=len(self.findings),
            shard_samples=tuple(len(found.samples) for found in self.findings),
            samples=self.samples,
            examined=self.examined,
            bytes=sum(found.shard_bytes for found in self.findings),
            unverified=tuple(found.name for found in self.findings if not found.checksums),
            fields={
                name: FieldReport(self.having[name], name in expected, self.decoded[name], Spread.of(sizes))
                for name, sizes in sorted(self.sizes.items())
            },
            fault_counts=dict(self.fault_counts.most_common()),
            faults=tuple(self.faults),
            warnings=(
                *self._warnings(len(self.findings), workers),
                *(self._doubts() if guessed else ()),
                *self._names(),
            ),
            modalities={
                name: tally.report(self.key) for name, tally in self.tallies.items() if tally.members or tally.lacking
            },
            truncated=self.truncated,
            context_length=self.context_length,
        )

    @property
    def truncated(self) -> int:
        counts = (count for tally in self.tallies.values() for count in tally.numbers.get("tokens", ()))
        return sum(count > self.context_length for count in counts)

    def _warnings(self, shards: int, workers: int | None) -> Iterable[str]:
        if workers is not None and shards < workers:
            yield f"{shards} shards for {workers} workers: loaders that give whole shards to workers leave some workers idle"
        for name, tally in self.tallies.items():
            counts = {"repeated": tally.extra, **tally.flags}
            warnings = self.modalities[name].warnings
            yield from (f"{counts[flag]} {text}" for flag, text in warnings.items() if counts.get(flag))
        if self.usual and self.unsaid:
            yield (
                f"{self.unsaid} samples have a .txt of several lines, and no manifest says what they are: each line counts as a "
                "caption here; a run must say it: `modalities.text.captions: lines` (or whole)"
            )
        if self.truncated:
            yield f"{self.truncated} captions are longer than {self.context_length} CLIP tokens and will be truncated"

    def _doubts(self) -> Iterable[str]:
        """What a run may refuse, if it needs it: what some samples have, and what no modality reads under its name."""
        for name, modality in self.modalities.items():
            own = set(own_extensions(modality))
            having = sum(not own.isdisjoint(names) for found in self.findings for _, _, names in found.samples)
            if 0 < having < EXPECTED_SHARE * self.samples and not modality.label:
                yield (
                    f"{having:,} of {self.samples:,} samples have {name!r}: a run that needs it refuses the others; check with "
                    f"--needs {name}, or with the recipe"
                )
            other = [one for one in self.sizes if one not in own and one.rpartition(".")[2] in own and not _DOTTED(one)]
            if other:
                yield (
                    f".{' and .'.join(other)}: read only by a recipe that names it, as in `modalities.{name}.extensions: "
                    f"[{', '.join(other)}]`"
                )

    def _names(self) -> Iterable[str]:
        """Keys and names that may not mean what they should."""
        repeated = sum(count > 1 for count in self.keys.values())
        if repeated:
            yield f"{repeated} keys occur more than once: loaders that merge by key may mix their samples"
        dotted = sorted(name for name in self.sizes if _DOTTED(name))
        if dotted:
            example = next(
                key for found in self.findings for key, _, names in found.samples if set(names) & set(dotted)
            )
            yield (
                f"names have dots before their extension, as in {example}.{dotted[0]}: the key ends at the first dot, so "
                f"samples may be merged ({len(dotted)} such extensions); write the keys without dots"
            )
        if self.ignored:
            yield f"{self.ignored} members are ignored: hidden, in `__MACOSX`, or without an extension"
