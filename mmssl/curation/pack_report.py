"""What `mmssl shards pack` prints at its end: the rows that were left out, by reason."""

from __future__ import annotations

from collections import defaultdict

from mmssl.data.shards.writer import MANIFEST, Manifest

CAPTIONS = {"whole": "one caption each", "lines": "one caption a line"}
"""Format of text files -> what is printed of it."""
SHOWN = 3
"""Rows that are printed of each reason."""


def packing_summary(manifest: Manifest) -> str:
    """What was packed and what was left out, in lines of text."""
    left_out = sum(manifest.skipped.values())
    packed = f"{manifest.samples} samples in {len(manifest.shards)} shards, {left_out} rows left out; read as "
    texts = "".join(f", .{extension}: {CAPTIONS[name]}" for extension, name in manifest.formats.items())
    last = f"{packed}{manifest.settings['source']['kind']}{texts}; see {manifest.folder}"
    return "\n".join([*filter(None, [skipped_table(manifest)]), *manifest.settings["source"].get("notes", ()), last])


def skipped_table(manifest: Manifest, shown: int = SHOWN) -> str:
    """Table of the rows that were left out: each reason with its number of rows, the most frequent first, and the first rows.

    Args:
        manifest: of the packing; it has all rows.
        shown: rows of each reason.

    Returns:
        Lines of text; empty if no row was left out.
    """
    rows = defaultdict[str, list[str]](list)
    for row in sorted((row for shard in manifest.shards for row in shard.skipped), key=lambda row: int(row["row"])):
        rows[row["reason"]].append(f"{row['where']}: {row['detail']}")
    if not rows:
        return ""
    title = "left out because"
    width = max(len(text) for text in (title, *rows))
    lines = [f"{title:{width}}  rows  (all are in {manifest.folder / MANIFEST})"]
    for reason, found in sorted(rows.items(), key=lambda item: (-len(item[1]), item[0])):
        lines.append(f"{reason:{width}}  {len(found):,}")
        lines += [f"  {line}" for line in found[:shown]]
        lines += [f"  and {len(found) - shown:,} more"] * (len(found) > shown)
    return "\n".join(lines)
