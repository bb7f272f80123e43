"""Shards that differ from the manifest beside them: each difference is a fault of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mmssl.core.errors import DataError
from mmssl.curation.check_manifest import compare_with_manifests
from mmssl.data.shards.writer import Manifest, write_shard


def folder_of(root: Path, names: list[str]) -> Manifest:
    records = [
        write_shard(root, name, i, i + 1, [{"__key__": f"{i}", "txt": b"a cat"}]) for i, name in enumerate(names)
    ]
    return Manifest(root, {}, tuple(records)).write()


def reasons(*shards: Path) -> list[tuple[str, str]]:
    return [(Path(fault.origin.shard).name, fault.reason) for fault in compare_with_manifests(shards)]


def test_each_difference_is_a_fault(tmp_path: Path) -> None:
    manifest = folder_of(tmp_path, [f"{i}.tar" for i in range(5)])
    assert compare_with_manifests([tmp_path]) == []
    (tmp_path / "1.tar").unlink()
    (tmp_path / "2.tar").write_bytes(b"short")
    flipped = bytearray((tmp_path / "3.tar").read_bytes())
    flipped[515] ^= 1
    (tmp_path / "3.tar").write_bytes(flipped)
    write_shard(tmp_path, "new.tar", 0, 1, [{"__key__": "0", "txt": b"a dog"}])
    wrong = [("1.tar", "missing"), ("2.tar", "size"), ("3.tar", "sha256"), ("new.tar", "extra")]
    assert reasons(tmp_path) == wrong
    assert reasons(tmp_path / "0.tar", tmp_path / "3.tar") == [wrong[0], wrong[2]]
    replace(manifest, complete=False).write()
    assert reasons(tmp_path) == wrong, "that it is unfinished is told without this comparison, too"


def test_a_manifest_above_several_splits_answers_for_those_that_are_checked(tmp_path: Path) -> None:
    folder_of(tmp_path, ["train/0.tar", "test/0.tar"])
    (tmp_path / "test/0.tar").write_bytes(b"short")
    assert reasons(tmp_path / "train") == []
    assert reasons(tmp_path / "train", tmp_path / "test") == [("0.tar", "size")]


def test_shards_without_a_manifest(tmp_path: Path) -> None:
    write_shard(tmp_path / "a", "0.tar", 0, 1, [{"__key__": "0", "txt": b"a dog"}])
    assert reasons(tmp_path / "a") == [("manifest.json", "manifest")]
    (tmp_path / "a/manifest.json").write_text("{}")
    assert reasons(tmp_path / "a") == [("manifest.json", "manifest")]
    with pytest.raises(DataError, match="wanted a local path"):
        compare_with_manifests(["https://host/0.tar"])
