"""A folder of shards that is not finished says so: by the name of its manifest, to whoever reads it, and what to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mmssl.core.errors import DataError
from mmssl.curation import filter as filtering
from mmssl.curation.check import check_shards
from mmssl.curation.filter import filter_shards
from mmssl.curation.pack import PackConfig, pack
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.manifests import unfinished_folders
from mmssl.data.shards.writer import MANIFEST, UNFINISHED, Manifest, read_manifest, write_shard
from tests.curation.test_pack import table

ONE = PackConfig(shuffle=None, shard_samples=1)


def manifests(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.json"))


def with_a_bad_row(folder: Path, place: int) -> Path:
    """A table of three pictures, of which one is empty."""
    path = table(folder, [(f"img/{number}.jpg", f"number {number}") for number in range(3)])
    (folder / "img" / f"{place}.jpg").write_bytes(b"")
    return path


def test_a_packing_that_ends_midway_has_no_manifest_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, out = with_a_bad_row(tmp_path, 2), tmp_path / "out"
    with pytest.raises(DataError, match="empty_file"):
        pack(path, out, ONE)
    assert manifests(out) == [UNFINISHED]
    assert caplog.messages == [
        f"{out} is unfinished (shards so far: 2, of 2 samples, in {UNFINISHED}): the same command, or with "
        "--on-error skip, goes on behind them"
    ]
    caplog.clear()
    assert len(ShardIndex.open([str(out)])) == 2
    assert caplog.messages == [f"{out} is unfinished: shards are missing; give the command that makes it again"]
    caplog.clear()
    found = check_shards([out])
    assert not found.ok
    assert found.fault_counts == {"unfinished tar": 1}
    assert f"unfinished 'tar' of {out}: shards are missing; give the command that makes it again" in found.table()
    assert not caplog.messages, "it is told once"
    times = [shard.stat().st_mtime_ns for shard in sorted(out.glob("*.tar"))]
    caplog.clear()
    manifest = pack(path, out, ONE.model_copy(update={"on_error": "skip"}))
    assert manifests(out) == [MANIFEST]
    assert manifest.samples == 2
    assert [shard.stat().st_mtime_ns for shard in sorted(out.glob("*.tar"))] == times, "they are kept"
    ShardIndex.open([str(out)])
    assert not caplog.messages
    assert check_shards([out]).ok


def test_shards_that_the_unfinished_manifest_does_not_list_are_unfinished_too(tmp_path: Path) -> None:
    """Killed between writing a shard and listing it; and splits below one manifest, beside shards that are none of its own."""
    record = write_shard(tmp_path / "sets", "train/0.tar", 0, 1, [{"__key__": "0", "txt": b"a dog"}])
    for name in ("train/1.tar", "other/0.tar"):
        write_shard(tmp_path / "sets", name, 0, 1, [{"__key__": "1", "txt": b"a cat"}])
    Manifest(tmp_path / "sets", {}, (record,), complete=False).write()
    Manifest(tmp_path / "empty", {}, (), complete=False).write()
    write_shard(tmp_path / "empty", "0.tar", 0, 1, [{"__key__": "2", "txt": b"a hen"}])
    shards = [tmp_path / name for name in ("sets/train/1.tar", "sets/other/0.tar", "empty/0.tar")]
    assert unfinished_folders(shards) == [tmp_path / "sets", tmp_path / "empty"]
    assert unfinished_folders(shards[1:2]) == []
    (tmp_path / "empty" / UNFINISHED).write_text("of another program")
    assert unfinished_folders(shards[2:]) == []


def test_a_packing_that_ends_before_its_first_shard_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match="empty_file"):
        pack(with_a_bad_row(tmp_path, 0), out, ONE)
    assert not [*out.iterdir()]
    whole = table(tmp_path, [(f"img/{number}.jpg", f"number {number}") for number in range(3)])
    pack(whole, out, ONE)
    with pytest.raises(DataError, match="empty_file"):  # other settings, before the old shards are replaced
        pack(with_a_bad_row(tmp_path, 0), out, replace_size(2), overwrite=True)
    assert manifests(out) == [UNFINISHED], "its shards are of no packing any more, and may be replaced"
    pack(table(tmp_path, [("img/0.jpg", "one")]), out, ONE)
    assert manifests(out) == [MANIFEST]


def replace_size(samples: int) -> PackConfig:
    return ONE.model_copy(update={"shard_samples": samples})


def test_what_a_kill_leaves_of_both_is_unfinished(tmp_path: Path) -> None:
    """Killed between writing one file and deleting the other."""
    manifest = Manifest(tmp_path, {"a": 1}, ())
    manifest.write()
    state = (tmp_path / MANIFEST).read_bytes()
    replace(manifest, complete=False).write()
    (tmp_path / MANIFEST).write_bytes(state)
    found = read_manifest(tmp_path)
    assert found is not None
    assert not found.complete
    manifest.write()
    assert manifests(tmp_path) == [MANIFEST]


def test_a_filter_that_ends_midway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(2):
        write_shard(tmp_path / "in", f"{number}.tar", 0, 1, [{"__key__": f"k{number}", "txt": b"a dog"}])
    real = filtering.write_shard

    def full(folder: Path, name: str, start: int, stop: int, samples: object) -> object:
        if name == "000001.tar":
            raise DataError("cannot write: no space is left on the disk")
        return real(folder, name, start, stop, samples)  # type: ignore[arg-type]

    monkeypatch.setattr(filtering, "write_shard", full)
    with pytest.raises(DataError, match="no space"):
        filter_shards([tmp_path / "in"], tmp_path / "out")
    assert manifests(tmp_path / "out") == [UNFINISHED]
    assert "is unfinished (shards so far: 1, of 1 samples, in" in caplog.text
    monkeypatch.undo()
    assert filter_shards([tmp_path / "in"], tmp_path / "out").kept == 2
    assert manifests(tmp_path / "out") == [MANIFEST]
