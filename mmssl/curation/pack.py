"""Packing data sets into shards: what `mmssl shards pack` does.

The order of samples, the choice of templates and the cuts between shards depend on the source and the config alone: the
number of workers changes nothing, and an interrupted packing resumes where it stopped. Media are copied byte for byte
unless `max_side` is given; arrays of pixels become PNG, which loses nothing.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.core.errors import DataError
from mmssl.core.seeding import fold, generator
from mmssl.curation.importers.registry import open_source
from mmssl.curation.pack_columns import Columns
from mmssl.curation.pack_config import PackConfig
from mmssl.curation.pack_formats import BadRow, default_template, verify_media
from mmssl.curation.pack_items import TEXT, Item, RowSource, encoded_fields, text_members
from mmssl.data.modalities.class_names import CLASS_NAMES_FILE
from mmssl.data.shards.manifests import MULTI_LABEL, SET_TYPE_FILE
from mmssl.data.shards.sidecar import write_sidecar
from mmssl.data.shards.writer import (
    Manifest,
    Progress,
    ShardRecord,
    claim_folder,
    map_in_order,
    remove_stale,
    telling_what_stays,
    write_atomically,
    write_shard,
)

__all__ = ["Columns", "PackConfig", "open_source", "pack"]

VERSION = 6  # raise it when equal settings give other bytes


def pack(
    source: str | Path,
    out: str | Path,
    config: PackConfig | None = None,
    *,
    root: str | Path | None = None,
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Pack a data set into shards: `out/000000.tar ...`, `out/manifest.json` and, if classes have names, `out/classnames.txt`.

    Rows of several classes have a vector of zeros and ones in a `.npy`, and `out/dataset_type.txt` says `multilabel`, as in
    CLIP_benchmark's layout.

    Until the end, and after an error, `out/manifest.unfinished.json` lists the finished shards in place of the manifest.

    Args:
        source: a file or folder of one of the formats in `mmssl.curation.importers.registry`.
        out: folder. Finished shards of the same packing are kept if their digests are right.
        config: see `PackConfig`.
        root: folder that relative paths in a table start from; None: the table's folder.
        workers: threads that read and encode.
        overwrite: replace another packing in `out`.
        progress: called with (rows done, rows in all).

    Returns:
        The manifest; `skipped` counts rows that were left out, and each shard's record names them.

    Raises:
        DataError: the source, a row (named) or a template cannot be used; or `out` holds something else.
    """
    config = config or PackConfig()
    rows = open_source(source, config, root)
    templates = _check_templates(config, rows)
    folder = Path(out)
    settings = _settings(config, rows)
    before, formats = _previous(folder, settings, overwrite)
    with telling_what_stays(folder, "the same command, or with --on-error skip, goes on behind them"):
        Manifest(folder, settings, tuple(before.values()), complete=False, formats=formats).write()
        manifest = _Job(rows, config, templates, workers, folder, settings, progress, formats).run(before)
        _write_classes(folder, rows)
        remove_stale(folder, [shard.path for shard in manifest.shards])
        return manifest.write()


@dataclass(frozen=True)
class _Job:
    """One call of `pack`: its source, settings and output folder.

    Attributes:
        formats: extension -> format of the members in the shards so far, see `Manifest`.
    """

    source: RowSource
    config: PackConfig
    templates: tuple[str, ...] | None
    workers: int
    folder: Path
    settings: dict[str, Any]
    progress: Progress | None
    formats: dict[str, str]

    def run(self, before: Mapping[int, ShardRecord]) -> Manifest:
        """Keep or write shard after shard; the manifest on disk always lists the finished ones.

        Args:
            before: first position -> shard of an earlier call.
        """
        shards: list[ShardRecord] = []
        position, total = 0, len(self.source)
        while position < total:
            record = before.get(position)
            if record is None or not self._may_keep(record):
                cut = _Cut(self, position)
                samples = iter(cut)
                first = next(samples, None)
                if first is None:  # only unusable rows were left: the last shard answers for them
                    shards = _append_skipped(shards, cut)
                    break
                name = f"{len(shards):06d}.tar"
                record = write_shard(self.folder, name, position, position, itertools.chain([first], samples))
                write_sidecar(self.folder / name)
                record = replace(record, stop=cut.stop, skipped=tuple(cut.skipped))
                later = [shard for start, shard in before.items() if start >= record.stop]
                self._manifest((*shards, record, *later), complete=False).write()
            shards.append(record)
            position = record.stop
            if self.progress is not None:
                self.progress(position, total)
        return self._manifest(tuple(shards))

    def _manifest(self, shards: tuple[ShardRecord, ...], *, complete: bool = True) -> Manifest:
        return Manifest(self.folder, self.settings, shards, complete, dict(self.formats))

    def _may_keep(self, record: ShardRecord) -> bool:
        # Skipped rows must be met again by a call that wants them raised.
        hides = bool(record.skipped) and self.config.on_error == "raise"
        return not hides and self._manifest(()).intact(record)

    @functools.cached_property
    def order(self) -> np.ndarray:
        """Row of each position, [N]."""
        rows, seed = len(self.source), self.config.shuffle
        return np.arange(rows) if seed is None else generator(seed, "pack").permutation(rows)

    def sample(self, position: int) -> dict[str, Any] | BadRow:
        """The sample at a position, or the reason why the row is unusable; called from several threads."""
        row = int(self.order[position])
        try:
            item, fields = self._read(row)
            self._refuse_taken_key(row, item)
        except BadRow as error:
            return error
        key = item.key or f"{position:0{len(str(len(self.source)))}d}"
        captions: Sequence[str] = item.captions
        if self.templates != () and item.label is not None:
            templates = self.templates or (default_template(next(iter(fields))),)
            template = templates[fold("template", row) % len(templates)]
            captions = [template.replace("{}", self.source.class_names[item.label])]
        return {"__key__": key, **fields, **text_members(captions, item.label)}

    def _read(self, row: int) -> tuple[Item, dict[str, bytes]]:
        """A row, and its files as they are written."""
        item = self.source.item(row)
        fields = encoded_fields(item, self.config.max_side, self.config.quality)
        for extension, data in fields.items() if self.config.verify else ():
            verify_media(item.where, extension, data)
        return item, fields

    def _refuse_taken_key(self, row: int, item: Item) -> None:
        """Raise BadRow if an earlier row has the same key, and can be used: of each key the first such row is packed."""
        for earlier in () if self.source.keys is None else self.source.keys.earlier(row):
            with contextlib.suppress(BadRow):
                first, _ = self._read(earlier)
                break
        else:
            return
        detail = f"got key {item.key!r}, which {first.where} has too; wanted distinct keys"
        raise BadRow(item.where, "duplicate_key", detail)


class _Cut:
    """The samples of one shard, until it is full or the rows end.

    Attributes:
        stop: position after the last row that was looked at.
        skipped: rows that could not be used.
    """

    def __init__(self, job: _Job, start: int) -> None:
        self.job = job
        self.start = start
        self.stop = start
        self.skipped: list[dict[str, Any]] = []

    def __iter__(self) -> Iterator[dict[str, Any]]:
        config, size, count = self.job.config, 0, 0
        rows = range(self.start, len(self.job.source))
        with contextlib.closing(map_in_order(self.job.sample, rows, self.job.workers)) as outcomes:
            for position, outcome in zip(rows, outcomes, strict=False):
                self.stop = position + 1
                if self.job.progress is not None and self.stop % 100 == 0:
                    self.job.progress(self.stop, len(self.job.source))
                if isinstance(outcome, BadRow):
                    self._skip(position, outcome)
                    continue
                if TEXT in outcome and self.job.formats.get(TEXT) != "lines":
                    self.job.formats[TEXT] = "lines" if b"\n" in outcome[TEXT] else "whole"
                # Size in the tar: a header block, and the data padded to whole blocks.
                size += sum(512 + -(-len(data) // 512) * 512 for name, data in outcome.items() if name != "__key__")
                count += 1
                yield outcome
                if size >= config.shard_bytes or count >= config.shard_samples:
                    return

    def _skip(self, position: int, error: BadRow) -> None:
        if self.job.config.on_error == "raise":
            raise DataError(f"{error}; correct the row, or skip such rows (--on-error skip)") from error
        row = int(self.job.order[position])
        self.skipped.append({"row": row, "where": error.where, "reason": error.reason, "detail": error.detail})


def _append_skipped(shards: list[ShardRecord], cut: _Cut) -> list[ShardRecord]:
    if not shards:
        first = cut.skipped[0]
        raise DataError(
            f"none of the {len(cut.skipped)} rows can be used; {first['where']}: {first['reason']}: {first['detail']}"
        )
    *others, last = shards
    return [*others, replace(last, stop=cut.stop, skipped=(*last.skipped, *cut.skipped))]


def _write_classes(folder: Path, rows: RowSource) -> None:
    """Write the class names, and whether samples have several; what an earlier packing wrote does not stay."""
    names, kind = folder / CLASS_NAMES_FILE, folder / SET_TYPE_FILE
    if rows.class_names:
        write_atomically(names, "".join(f"{name}\n" for name in rows.class_names).encode())
    else:
        names.unlink(missing_ok=True)
    if rows.several:
        write_atomically(kind, MULTI_LABEL.encode())
    elif kind.is_file() and kind.read_bytes().strip() == MULTI_LABEL.encode():
        kind.unlink()


def _check_templates(config: PackConfig, source: RowSource) -> tuple[str, ...] | None:
    """Templates of captions to use (None: the usual one of each file); refuses malformed ones, and templates without effect."""
    for number, template in enumerate(config.templates or (), 1):
        if template.count("{}") != 1:
            raise DataError(
                f"template {number} is {template!r}, wanted text with one {{}} for the class name: 'a photo of a {{}}'"
            )
    if config.templates and source.captioned:
        raise DataError(
            f"{source.name} has captions, so templates would have no effect: drop the templates or the captions"
        )
    if config.templates and not (source.labelled and source.class_names):
        lack = "its labels are numbers without names: give class names" if source.labelled else "it has no labels"
        lack = (
            "its samples have several: make captions of a column (--column 'caption=sounds of {NAME}')"
            if source.several
            else lack
        )
        raise DataError(f"templates need a class name for each sample of {source.name}, but {lack}")
    if source.captioned or not (source.labelled and source.class_names):
        return ()
    return config.templates


def _settings(config: PackConfig, source: RowSource) -> dict[str, Any]:
    described = {"kind": source.kind, "name": source.name, "rows": len(source), "fingerprint": source.fingerprint}
    described |= {"notes": list(source.notes)} if source.notes else {}
    # The kind says the format. Without `on_error`: after a bad row, a call that skips such rows keeps the finished shards.
    options = config.model_dump(mode="json", exclude={"on_error", "format"})
    return {"writer": "pack", "version": VERSION, "source": described, **options}


def _previous(
    folder: Path, settings: dict[str, Any], overwrite: bool
) -> tuple[Mapping[int, ShardRecord], dict[str, str]]:
    """First position -> shard of an earlier call with the same settings; and the formats of their members."""
    previous = claim_folder(folder)
    if previous is None:
        return {}, {}
    if dict(previous.settings) == settings:
        return {shard.start: shard for shard in previous.shards}, dict(previous.formats)
    if previous.complete and not overwrite:
        changed = sorted(name for name in settings if previous.settings.get(name) != settings[name])
        raise DataError(
            f"{folder} holds a finished packing that differs in {', '.join(changed)}: choose another folder, or replace the "
            "packing (--overwrite)"
        )
    return {}, {}
