"""Tar files of shards: the bytes of webdataset's writer."""

from __future__ import annotations

import hashlib
from pathlib import Path

import webdataset

from mmssl.data.shards.writer import write_shard


def test_shards_are_those_of_webdataset_byte_for_byte(tmp_path: Path) -> None:
    samples = [
        {"__key__": "a/ünï", "txt": b"a caption", "jpg": bytes(range(256)) * 5, "left.png": b""},
        {"__key__": "000001", "json": b"{}"},
        {"__key__": "x" * 300, "cls": b"7"},
    ]
    with webdataset.TarWriter(
        str(tmp_path / "theirs.tar"), encoder=False, compress=False, mtime=0, user="mmssl", group="mmssl", mode=0o644
    ) as writer:
        for sample in samples:
            writer.write(sample)
    record = write_shard(tmp_path, "ours.tar", 0, 3, samples)
    theirs = (tmp_path / "theirs.tar").read_bytes()
    assert (tmp_path / "ours.tar").read_bytes() == theirs
    assert (record.samples, record.bytes, record.sha256) == (3, len(theirs), hashlib.sha256(theirs).hexdigest())
