"""Filtering shards: what `mmssl shards filter` does. New shards of the samples that meet all criteria, and a ledger of the others.

What is damaged is what `mmssl shards check` calls a fault. Members are copied byte for byte; equal shards and criteria give equal
output.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmssl.core.errors import DataError
from mmssl.core.sample import Fault, Origin
from mmssl.curation.check import decoders_of, find_shards, formats_of, local_file
from mmssl.curation.check_report import aligned
from mmssl.curation.check_shard import SOURCE, Decoders, Findings, examine
from mmssl.curation.filter_choice import Choice, Examined, FilterConfig, LeftOut, conditions, stored_samples
from mmssl.data.modalities.class_names import CLASS_NAMES_FILE
from mmssl.data.shards.manifests import Formats
from mmssl.data.shards.remote import Remote
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
    write_atomically,
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
    """

    samples: int = 0
    kept: int = 0
    shards: int = 0
    ignored: int = 0
    left: list[LeftOut] = field(default_factory=list)

    def table(self) -> str:
        """The counts by reason, as a text table."""
        counts = Counter(f"{one.reason} {one.field}".strip() for one in self.left if one.key)
        spans = sum(not one.key for one in self.left)
        rows: list[tuple[str, Any]] = [
            ("samples", f"{self.samples:,}"),
            ("kept", f"{self.kept:,} in {self.shards} shards"),
            ("left out", f"{sum(counts.values()):,}"),
            *((f"  {reason}", f"{count:,}") for reason, count in sorted(counts.items())),
        ]
        if spans:
            rows.append(("unreadable", f"{spans:,} parts of shards; the ledger names them"))
        if self.ignored:
            rows.append(("not copied", f"{self.ignored:,} members without an extension, which belong to no sample"))
        return "\n".join(aligned(rows))


def filter_shards(
    shards: Sequence[str | Path],
    out: str | Path,
    config: FilterConfig | None = None,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    threads: int = 1,
    remote: Remote | None = None,
    progress: Progress | None = None,
) -> FilterReport:
    """Write the samples that meet all criteria: a new shard for each that keeps some, sidecars, `manifest.json`, `left_out.jsonl`.

    Args:
        shards: paths, folders, globs, brace patterns; or URLs with braces, which are fetched as a whole.
        out: folder; not one that holds any of the shards.
        overwrite: replace finished shards in `out`. dry_run: write nothing.
        threads: shards to examine in parallel.
        remote: client for URLs; default: one with the usual cache.
        progress: called with (shards examined, shards in all).

    Raises:
        DataError: damaged shards without `repair` (the message names them), members of different formats, no sample is left, or
            `out` holds something else.
        RecipeError: `where` is malformed.
    """
    config, folder = config or FilterConfig(), Path(out)
    where = conditions(config)
    places, client = find_shards(shards, remote)
    formats = formats_of(places, client)
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
    report, choice = FilterReport(), Choice(config, where, examined)
    settings = {
        "writer": "filter",
        "version": VERSION,
        "sources": _described(examined),
        **config.model_dump(mode="json"),
    }
    records: list[ShardRecord] = []
    for shard in examined:
        with local_file(shard.place, client) as (path, _):
            record = _filter_one(
                shard,
                path,
                choice,
                report,
                None if dry_run else Manifest(folder, settings, tuple(records), complete=False),
            )
        if record is not None:
            records.append(record)
    if not report.kept:
        raise DataError(f"no sample would be left:\n{report.table()}\nLoosen the criteria; nothing was written")
    if not dry_run:
        _finish(Manifest(folder, settings, tuple(records), formats=shared), report, places)
    return report


def _examine(place: str | Path, client: Remote | None, decoders: Decoders, config: FilterConfig) -> Examined:
    with local_file(place, client) as (path, name):
        try:
            table, lost, _ = salvage_table(path, SOURCE) if config.repair else (scan(path), [], 0)
        except DataError as error:
            words = str(error).replace(str(path), name)
            fault = Fault("", Origin(SOURCE, name, 0, 0), "tar", "damaged", words)
            return Examined(place, None, Findings(path, name, path.stat().st_size, faults=[fault]))
        found = examine(path, decoders, None, name=name, table=table)
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


def _filter_one(
    shard: Examined, path: Path, choice: Choice, report: FilterReport, manifest: Manifest | None
) -> ShardRecord | None:
    """Decide on the samples of a shard, and write those that are kept into the folder of the manifest so far, if there is one."""
    start, kept = report.samples, []
    lost = _lost(shard.found)
    report.left += lost
    with path.open("rb", buffering=0) as file:
        for sample in stored_samples(shard.table, file.fileno()):
            left = choice.against(shard, sample)
            if left is None:
                kept.append(sample)
            else:
                report.left.append(left)
        report.samples += len(shard.found.samples) + sum(bool(one.key) for one in lost)
        report.ignored += shard.found.ignored
        report.kept += len(kept)
        report.shards += bool(kept)
        if not kept or manifest is None:
            return None
        manifest.write()
        name = f"{len(manifest.shards):06d}.tar"
        written = ({"__key__": sample.key, **sample.read_all()} for sample in kept)
        record = write_shard(manifest.folder, name, start, report.samples, written)
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


def _described(examined: Sequence[Examined]) -> list[dict[str, Any]]:
    return [{"name": Path(shard.found.name).name, "bytes": shard.found.shard_bytes} for shard in examined]


def _finish(manifest: Manifest, report: FilterReport, places: Sequence[str | Path]) -> None:
    """Write the ledger, the class names if all shards have the same, and the manifest."""
    lines = "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in report.left)
    write_atomically(manifest.folder / LEDGER, lines.encode())
    beside = {path.parent / CLASS_NAMES_FILE for path in places if isinstance(path, Path)}
    names = {path.read_bytes() if path.is_file() else b"" for path in beside}
    if len(names) == 1 and b"" not in names:
        write_atomically(manifest.folder / CLASS_NAMES_FILE, names.pop())
    else:
        (manifest.folder / CLASS_NAMES_FILE).unlink(missing_ok=True)
    remove_stale(manifest.folder, [shard.path for shard in manifest.shards])
    manifest.write()
