"""Filtering shards: what `mmssl shards filter` does. New shards of the samples that meet all criteria, and a ledger of the others.

What is damaged is what `mmssl shards check` calls a fault. The similarity of pairs under a model is the last criterion, so that a
share counts over what meets all others. Members are copied byte for byte; equal shards and criteria give equal output.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mmssl.core.errors import DataError
from mmssl.core.sample import Fault, Origin
from mmssl.curation.check import decoders_of, find_shards, formats_of, local_file
from mmssl.curation.check_report import aligned_lines
from mmssl.curation.check_shard import SOURCE, Decoders, Findings, examine_shard
from mmssl.curation.filter_choice import Choice, Examined, FilterConfig, LeftOut, conditions, stored_samples
from mmssl.curation.filter_similarity import (
    SIMILARITIES,
    PairScorer,
    PairScores,
    check_criteria,
    index_of,
    score_pairs,
    with_scores,
)
from mmssl.data.modalities.class_names import CLASS_NAMES_FILE
from mmssl.data.shards.manifests import SET_TYPE_FILE, Formats, warn_of_unfinished
from mmssl.data.shards.remote import Remote
from mmssl.data.shards.remote_manifests import beside_remote, fetch_file
from mmssl.data.shards.salvage import salvage_table
from mmssl.data.shards.sidecar import write_sidecar
from mmssl.data.shards.table import scan
from mmssl.data.shards.writer import (
    Manifest,
    Progress,
    ShardRecord,
    claim_folder,
    map_in_order,
    remove_stale,
    telling_what_stays,
    write_atomically,
    write_lines,
    write_shard,
)

VERSION = 1
LEDGER = "left_out.jsonl"


@dataclass
class FilterReport:
    """What was kept, and what was left out.

    Attributes:
        samples: in all, also those that are only known from sidecars; kept: of them. shards: new shards.
        ignored: members without an extension, which belong to no sample.
        left: the ledger.
        scores: of the pairs, if a model scored them.
    """

    samples: int = 0
    kept: int = 0
    shards: int = 0
    ignored: int = 0
    left: list[LeftOut] = field(default_factory=list)
    scores: PairScores | None = None

    def counts(self) -> dict[str, int]:
        """Samples that were left out, by reason and field."""
        return dict(sorted(Counter(f"{one.reason} {one.field}".strip() for one in self.left if one.key).items()))

    def to_json(self) -> str:
        """The counts, the ledger, and what the manifest says of the scores, as a JSON object."""
        own = {"samples": self.samples, "kept": self.kept, "shards": self.shards, "ignored": self.ignored}
        similarity = {} if self.scores is None else {"similarity": self.scores.facts()}
        left = [asdict(one) for one in self.left]
        return json.dumps({**own, "counts": self.counts(), **similarity, "left": left}, indent=1)

    def table(self) -> str:
        """The counts by reason, as a text table."""
        counts, spans = self.counts(), sum(not one.key for one in self.left)
        rows: list[tuple[str, Any]] = [
            ("samples", f"{self.samples:,}"),
            ("kept", f"{self.kept:,} in {self.shards} shards"),
            ("left out", f"{sum(counts.values()):,}"),
            *((f"  {reason}", f"{count:,}") for reason, count in counts.items()),
        ]
        if spans:
            rows.append(("unreadable", f"{spans:,} parts of shards; the ledger names them"))
        if self.ignored:
            rows.append(("not copied", f"{self.ignored:,} members without an extension, which belong to no sample"))
        if self.scores is not None:
            rows += self.scores.rows()
        return "\n".join(aligned_lines(rows))


def filter_shards(
    shards: Sequence[str | Path],
    out: str | Path,
    config: FilterConfig | None = None,
    *,
    scorer: PairScorer | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    threads: int = 1,
    remote: Remote | None = None,
    progress: Progress | None = None,
) -> FilterReport:
    """Write the samples that meet all criteria: a new shard for each that keeps some, sidecars, `manifest.json`, `left_out.jsonl`;
    and with a scorer `similarities.jsonl`, the scores of all samples that meet the other criteria.

    Args:
        shards: paths, folders, globs, brace patterns; or URLs with braces, which are fetched as a whole.
        out: folder; not one that holds any of the shards.
        scorer: model of the criteria by similarity. With `dry_run` it may be there without one, for the distribution.
        overwrite: replace finished shards in `out`. dry_run: write nothing.
        threads: shards to examine in parallel.
        remote: client for URLs; default: one with the usual cache.
        progress: called with (shards examined, shards in all).

    Raises:
        DataError: damaged shards without `repair` (the message names them), members of different formats, no sample is left, or
            `out` holds something else.
        RecipeError: `where` is malformed; a criterion that needs a scorer, or a scorer without a criterion.
    """
    config, folder = config or FilterConfig(), Path(out)
    check_criteria(config, scorer, dry_run=dry_run)
    where = conditions(config)
    places, client = find_shards(shards, remote)
    formats = formats_of(places, client)
    warn_of_unfinished([place for place in places if isinstance(place, Path)])
    if not dry_run:
        _claim(folder, places, overwrite)
    decoders = decoders_of()
    examined: list[Examined] = []
    for shard in map_in_order(
        lambda number: _examine(places[number], client, decoders, config), range(len(places)), threads
    ):
        examined.append(shard)
        if progress is not None:
            progress(len(examined), len(places))
    if not config.repair:
        _refuse_damaged(examined)
    shared = _shared_formats(examined, formats)
    report, settings = FilterReport(), _settings(config, examined)
    verdicts: Iterable[list[LeftOut | None]] = _verdicts(examined, Choice(config, where, examined), client)
    if scorer is not None:
        verdicts, report.scores = _by_similarity(scorer, config, examined, list(verdicts), formats, client)
        settings["similarity"] = report.scores.facts()
    records: list[ShardRecord] = []
    with telling_what_stays(folder, "give the same command again, which writes all of them anew"):
        for shard, left in zip(examined, verdicts, strict=True):
            start = report.samples
            kept = _count(shard, left, report)
            if kept and not dry_run:
                manifest = Manifest(folder, settings, tuple(records), complete=False)
                records.append(_write(shard, kept, client, range(start, report.samples), manifest))
        if not report.kept:
            raise DataError(f"no sample would be left:\n{report.table()}\nLoosen the criteria; nothing was written")
        if not dry_run:
            _finish(Manifest(folder, settings, tuple(records), formats=shared), report, places, client)
    return report


def _examine(place: str | Path, client: Remote | None, decoders: Decoders, config: FilterConfig) -> Examined:
    with local_file(place, client) as (path, name):
        try:
            table, lost, _ = salvage_table(path, SOURCE) if config.repair else (scan(path), [], 0)
        except DataError as error:
            words = str(error).replace(str(path), name)
            fault = Fault("", Origin(SOURCE, name, 0, 0), "tar", "damaged", words)
            return Examined(place, None, Findings(path, name, path.stat().st_size, faults=[fault]))
        found = examine_shard(path, decoders, None, name=name, table=table)
        found.faults = [*lost, *found.faults]
        return Examined(place, table, found)


def _refuse_damaged(examined: Sequence[Examined]) -> None:
    damaged = [fault.detail for shard in examined if shard.table is None for fault in shard.found.faults]
    if damaged:
        more = f"\n... and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        shown = "\n".join(damaged[:5]) + more
        raise DataError(
            f"{len(damaged)} damaged shards:\n{shown}\nFetch them again, or take their readable samples (--repair)"
        )


def _shared_formats(examined: Sequence[Examined], formats: Sequence[Formats]) -> dict[str, str]:
    """Extension -> format of such members, which all shards that have some must have in common.

    Raises:
        DataError: two shards differ, or the manifest of one says nothing.
    """
    shared: dict[str, tuple[str | None, str]] = {}
    for extension in dict.fromkeys(one for known in formats for one in known):
        for shard, known in zip(examined, formats, strict=True):
            if shard.table is not None and extension in shard.table.extensions:
                form, first = shared.setdefault(extension, (known.get(extension), shard.found.name))
                if known.get(extension) != form:
                    (a, b) = (f"{one!r}" if one else "said by no manifest" for one in (form, known.get(extension)))
                    raise DataError(
                        f"the format of .{extension} is {a} in {first} and {b} in {shard.found.name}, and a folder has one: filter "
                        "them into a folder each, and name both in `data.sources`"
                    )
    return {extension: form for extension, (form, _) in shared.items() if form is not None}


def _verdicts(examined: Sequence[Examined], choice: Choice, client: Remote | None) -> Iterator[list[LeftOut | None]]:
    """Of each shard, why each of its samples is left out; None: it meets the criteria that need no model."""
    for shard in examined:
        with local_file(shard.place, client) as (path, _), path.open("rb", buffering=0) as file:
            yield [choice.against(shard, sample) for sample in stored_samples(shard.table, file.fileno())]


def _by_similarity(
    scorer: PairScorer,
    config: FilterConfig,
    examined: Sequence[Examined],
    verdicts: Sequence[Sequence[LeftOut | None]],
    formats: Sequence[Formats],
    client: Remote | None,
) -> tuple[list[list[LeftOut | None]], PairScores]:
    """The verdicts of each shard, with those of the similarity, and the scores."""
    flat = list(chain.from_iterable(verdicts))
    scores = score_pairs(scorer, config, index_of(examined, formats, client), flat)
    together = iter(with_scores(flat, scores, config))
    return [list(islice(together, len(some))) for some in verdicts], scores


def _count(shard: Examined, verdicts: Sequence[LeftOut | None], report: FilterReport) -> set[int]:
    """Add a shard to the report; the places of the samples that are kept."""
    lost = _lost(shard.found)
    report.left += lost
    report.left += [left for left in verdicts if left is not None]
    kept = {place for place, left in enumerate(verdicts) if left is None}
    report.samples += len(shard.found.samples) + sum(bool(one.key) for one in lost)
    report.ignored += shard.found.ignored
    report.kept += len(kept)
    report.shards += bool(kept)
    return kept


def _write(shard: Examined, kept: set[int], client: Remote | None, span: range, manifest: Manifest) -> ShardRecord:
    """Write the kept samples of a shard, which has a span of all samples, behind the shards of the manifest so far."""
    manifest.write()
    name = f"{len(manifest.shards):06d}.tar"
    with local_file(shard.place, client) as (path, _), path.open("rb", buffering=0) as file:
        stored = enumerate(stored_samples(shard.table, file.fileno()))
        written = ({"__key__": sample.key, **sample.read_all()} for place, sample in stored if place in kept)
        record = write_shard(manifest.folder, name, span.start, span.stop, written)
    write_sidecar(manifest.folder / name, force=True)
    return record


def _lost(found: Findings) -> list[LeftOut]:
    """Ledger lines of what a damaged shard has lost: unreadable parts (key ""), and samples of which nothing is left."""
    there = {key for key, _, _ in found.samples}
    lines: dict[str | int, LeftOut] = {}
    for number, fault in enumerate(found.faults):
        if fault.key not in there:
            line = LeftOut(fault.key, found.name, fault.reason, fault.field, fault.detail)
            lines.setdefault(fault.key or number, line)
    return list(lines.values())


def _claim(folder: Path, places: Sequence[str | Path], overwrite: bool) -> None:
    """Refuse a folder that holds other shards, or those that are read."""
    inside = [one for one in places if isinstance(one, Path) and folder.resolve() in one.resolve().parents]
    if inside:
        raise DataError(f"--out: {folder} holds {inside[0]}, which is read: choose another folder")
    previous = claim_folder(folder)
    if previous is not None and previous.complete and not overwrite:
        raise DataError(f"--out: {folder} holds finished shards: choose another folder, or replace them (--overwrite)")


def _settings(config: FilterConfig, examined: Sequence[Examined]) -> dict[str, Any]:
    sources = [{"name": Path(shard.found.name).name, "bytes": shard.found.shard_bytes} for shard in examined]
    return {"writer": "filter", "version": VERSION, "sources": sources, **config.model_dump(mode="json")}


def _finish(manifest: Manifest, report: FilterReport, places: Sequence[str | Path], client: Remote | None) -> None:
    """Write the ledger, the similarities, class names and type of set if all shards have the same, and the manifest."""
    write_lines(manifest.folder / LEDGER, (json.dumps(asdict(one), ensure_ascii=False) for one in report.left))
    if report.scores is not None:
        write_lines(manifest.folder / SIMILARITIES, report.scores.lines())
    else:
        (manifest.folder / SIMILARITIES).unlink(missing_ok=True)
    for name in (CLASS_NAMES_FILE, SET_TYPE_FILE):
        found = {_read(file, client) for file in {_beside(place, name) for place in places}}
        if len(found) == 1 and b"" not in found:
            write_atomically(manifest.folder / name, found.pop())
        else:
            (manifest.folder / name).unlink(missing_ok=True)
    remove_stale(manifest.folder, [shard.path for shard in manifest.shards])
    manifest.write()


def _beside(place: str | Path, name: str) -> str | Path | None:
    return place.parent / name if isinstance(place, Path) else beside_remote(place, name)


def _read(file: str | Path | None, client: Remote | None) -> bytes:
    """What a file holds; empty: there is none."""
    if isinstance(file, Path):
        return file.read_bytes() if file.is_file() else b""
    return b"" if file is None or client is None else fetch_file(file, client) or b""
