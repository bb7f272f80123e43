from __future__ import annotations

import io
import os
import pickle
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from mmssl.core.errors import DataError
from mmssl.data.modality import DecodeError
from mmssl.data.shards import local as local_module
from mmssl.data.shards import sidecar as shard_sidecar
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.sidecar import sidecar_path, write_sidecar
from mmssl.data.shards.table import split_name
from tests.data.make import pairs, write

Shard = Callable[..., Path]


def add(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_reads_what_webdataset_reads(folder: Path) -> None:
    paths = sorted(str(path) for path in folder.glob("*.tar"))
    theirs = list(wds.WebDataset(paths, shardshuffle=False, empty_check=False))
    ours = list(ShardIndex.open([folder]))
    assert len(ours) == len(theirs) == 23
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.key == other["__key__"]
        assert mine.fields == {name: data for name, data in other.items() if not name.startswith("__")}


def test_origin_and_identity(folder: Path) -> None:
    index = ShardIndex.open([folder], source="train")
    assert index.shard_sizes() == [7, 11, 5]
    origin = index.origin(8)
    assert (origin.source, origin.shard, origin.ordinal) == ("train", str(folder / "000001.tar"), 1)
    with open(origin.shard, "rb") as file:
        file.seek(origin.offset)
        assert file.read(8).startswith(b"0008.")
    assert index.identity(8) == ("train", "000001.tar", 1)
    assert set(index.read(8, {"txt"}).fields) == {"txt"}
    with pytest.raises(IndexError):
        index.read(23)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_names_of_every_tar_dialect(tmp_path: Path, form: int) -> None:
    long = "d" * 90 + "/" + "k" * 60 if form == tarfile.USTAR_FORMAT else "folder/" + "k" * 300
    other = "plain" if form == tarfile.USTAR_FORMAT else "zoë/ключ"
    path = add(tmp_path / "a.tar", [(f"{long}.txt", b"one"), (f"{other}.txt", b"two")], form)
    got = {raw.key: raw.fields["txt"] for raw in ShardIndex.open([path])}
    assert got == {long: b"one", other: b"two"}


@pytest.mark.parametrize(
    "name", ["a/b.c/d.jpg", "a.x.jpg", "./7.TXT", "k.", ".hidden", "a.b/c", "noext", "Ä.Jpg", "x/y.z.q", ".a/b.jpg"]
)
def test_names_split_as_webdataset_splits_them(name: str) -> None:
    key, extension = wds.tariterators.base_plus_ext(name)
    assert split_name(name) == (None if key is None else (key, extension.lower()))


@pytest.mark.parametrize(
    "name", ["._0.jpg", "a/._0.jpg", "a/b/.DS_Store", "a/.x", "__MACOSX/a/0.jpg", "a/__MACOSX/._0.jpg", "a.b/.x.jpg"]
)
def test_hidden_and_system_files_are_ignored_in_every_folder(tmp_path: Path, name: str) -> None:
    index = ShardIndex.open([add(tmp_path / "a.tar", [(name, b"x"), ("a/0.txt", b"A")])])
    assert [(raw.key, raw.fields) for raw in index] == [("a/0", {"txt": b"A"})]
    assert index.ignored == 1


def test_members_of_one_key_need_not_stand_together(tmp_path: Path) -> None:
    path = add(tmp_path / "a.tar", [("b.txt", b"B"), ("a.txt", b"A"), ("b.cls", b"1"), ("a.CLS", b"0")])
    assert [(raw.key, raw.fields) for raw in ShardIndex.open([path])] == [
        ("b", {"txt": b"B", "cls": b"1"}),
        ("a", {"txt": b"A", "cls": b"0"}),
    ]


def test_meta_files_folders_and_names_without_extension_are_no_samples(tmp_path: Path) -> None:
    path = add(tmp_path / "a.tar", [("__meta__", b"x"), ("__dir__/a.txt", b"x"), ("README", b"x"), ("a.txt", b"A")])
    with tarfile.open(path, "a") as archive:
        folder = tarfile.TarInfo("things.d")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    index = ShardIndex.open([path])
    assert [raw.key for raw in index] == ["a"]
    assert index.ignored == 1


def test_two_members_of_one_name_are_a_fault_of_that_sample_alone(tmp_path: Path) -> None:
    index = ShardIndex.open(
        [add(tmp_path / "a.tar", [("a.txt", b"1"), ("b.txt", b"2"), ("a.txt", b"3"), ("a.cls", b"4")])]
    )
    with pytest.raises(DecodeError) as caught:
        index.read(0)
    assert (caught.value.reason, caught.value.field) == ("duplicate", "txt")
    assert index.read(0, {"cls"}).fields == {"cls": b"4"}
    assert index.read(1).fields == {"txt": b"2"}


def test_a_member_that_is_too_large_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = ShardIndex.open([folder])
    monkeypatch.setattr(ShardIndex, "max_member_bytes", 10)
    with pytest.raises(DecodeError, match="too_large"):
        index.read(0, {"jpg"})


def headers(data: bytes) -> list[int]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [info.offset for info in archive]


def damage(data: bytes, how: str) -> bytes:
    places = headers(data)
    middle = places[len(places) // 2]
    broken = bytearray(data)
    if how == "checksum":
        broken[middle] ^= 1
    elif how == "zeroed header":
        broken[middle : middle + 512] = bytes(512)
    elif how == "hole":
        broken[middle : middle + 1024] = bytes(1024)
    elif how == "size":
        broken[middle + 124 : middle + 136] = b"not a number"
        broken[middle + 148 : middle + 156] = b" " * 8
        broken[middle + 148 : middle + 156] = f"{sum(broken[middle : middle + 512]):06o}\0 ".encode()
    cut = {"cut in data": middle + 520, "cut in header": middle + 100, "cut between members": middle}
    return bytes(broken[: cut.get(how, len(broken))])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("checksum", "checksum"),
        ("zeroed header", "after the end mark"),
        ("hole", "after the end mark"),
        ("size", "octal"),
        ("cut in data", "is truncated"),
        ("cut in header", "inside a header"),
        ("cut between members", "end mark is missing"),
    ],
)
def test_damage_is_never_silent(shard: Shard, how: str, message: str) -> None:
    path = shard(pairs(0, 10))
    path.write_bytes(damage(path.read_bytes(), how))
    with pytest.raises(DataError, match=message) as caught:
        ShardIndex.open([path])
    assert str(path) in str(caught.value)
    assert "Fetch or write them again" in str(caught.value)
    assert "`data.on_error: substitute`" in str(caught.value)


def test_two_archives_in_one_file_are_refused(shard: Shard, tmp_path: Path) -> None:
    one = shard(pairs(0, 3))
    both = tmp_path / "both.tar"
    both.write_bytes(one.read_bytes() * 2)
    with pytest.raises(DataError, match="concatenated archives"):
        ShardIndex.open([both])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>not found</html>" * 40, "not a tar file.*DOCTYPE"),
        (b"\x1f\x8b\x08" + bytes(2000), "compressed .gzip."),
        (bytes(10240), "holds no sample"),
        (b"x" * 100, "not a tar file"),
    ],
)
def test_files_that_are_no_shards(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        ShardIndex.open([path])


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        (tarfile.SYMTYPE, "a symbolic link: .* `--dereference`"),
        (tarfile.LNKTYPE, "a hard link: .* `--hard-dereference`"),
        (tarfile.CHRTYPE, "a device: .* without it"),
        (tarfile.FIFOTYPE, "a pipe: .* without it"),
    ],
)
def test_links_and_devices_are_refused_with_the_remedy(tmp_path: Path, kind: bytes, remedy: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("a.txt")
        info.type = kind
        info.linkname = "/etc/hostname"
        archive.addfile(info)
    with pytest.raises(DataError, match=f"regular files only, and member 'a.txt' is {remedy}"):
        ShardIndex.open([tmp_path / "a.tar"])


def test_all_damaged_shards_are_named_at_once(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "s")
    for name in ("000000.tar", "000002.tar"):
        (tmp_path / "s" / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 3 shards") as caught:
        ShardIndex.open([tmp_path / "s"])
    assert "000000.tar" in str(caught.value)
    assert "000002.tar" in str(caught.value)


def test_patterns(folder: Path) -> None:
    names = [str(folder / f"{i:06d}.tar") for i in range(3)]

    def opened(*patterns: str | Path) -> list[str]:
        return [str(path) for path in ShardIndex.open(patterns).shards]

    assert opened(folder) == opened(f"{folder}/{{000000..000002}}.tar") == opened(f"{folder}/*.tar") == names
    assert opened(f"{folder}/00000{{2,0}}.tar") == [names[2], names[0]]
    assert opened(names[1], folder / "000000.tar") == [names[1], names[0]]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{folder}/{{000001..000004}}.tar", r"000003\.tar \(from .*\n.*000004\.tar"),
        ("{folder}/*.tgz", r"no such shard.*\n.*\*\.tgz"),
        ("{folder}/{{0..1.tar", "balanced braces"),
        ("pipe:cat x.tar", "data.allow_pipe: true"),
        ("{folder}/0000*.tar", "given twice"),
    ],
)
def test_patterns_that_cannot_be_meant(folder: Path, pattern: str, message: str) -> None:
    patterns = [pattern.format(folder=folder)] + ([str(folder / "000001.tar")] if "*.tar" in pattern else [])
    with pytest.raises(DataError, match=message):
        ShardIndex.open(patterns)


def test_no_shards_and_a_single_string() -> None:
    with pytest.raises(DataError, match="no shards"):
        ShardIndex.open([])
    with pytest.raises(ValueError, match="wanted a list"):
        ShardIndex.open("a.tar")


def test_digest_follows_the_data_and_not_the_place(folder: Path, tmp_path: Path) -> None:
    digest = ShardIndex.open([folder]).digest
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    assert ShardIndex.open([moved]).digest == digest
    assert ShardIndex.open([f"{folder}/00000{{1,0,2}}.tar"]).digest != digest
    (moved / "000002.tar").rename(moved / "000003.tar")
    assert ShardIndex.open([moved]).digest != digest
    write(moved / "000003.tar", [*pairs(18, 4), {"__key__": "0022", "txt": b"other"}])
    (moved / "000003.tar").rename(moved / "000002.tar")
    assert ShardIndex.open([moved]).digest != digest


def test_sidecar_gives_the_same_index_without_a_walk(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shard(pairs(0, 5))
    walked = ShardIndex.open([path])
    assert write_sidecar(path) == sidecar_path(path)
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []

    def never(path: Path) -> None:
        raise AssertionError("walked")

    monkeypatch.setattr(shard_sidecar, "scan", never)
    cached = ShardIndex.open([path])
    assert cached.digest == walked.digest
    assert [raw.fields for raw in cached] == [raw.fields for raw in walked]


@pytest.mark.parametrize("how", ["stale", "truncated", "foreign", "objects", "outside", "version"])
def test_sidecar_that_does_not_fit_is_not_used(shard: Shard, how: str, caplog: pytest.LogCaptureFixture) -> None:
    path = shard(pairs(0, 5))
    sidecar = write_sidecar(path)
    with np.load(sidecar) as file:
        arrays = dict(file)
    if how == "stale":
        shard(pairs(0, 6))
    elif how == "truncated":
        sidecar.write_bytes(sidecar.read_bytes()[:-200])
    elif how == "foreign":
        sidecar.write_bytes(b"something else")
    elif how == "objects":
        np.savez(sidecar, **{**arrays, "offset": np.array([print], dtype=object)})
    elif how == "outside":
        np.savez(sidecar, **{**arrays, "offset": arrays["offset"] + 10**9})
    else:
        np.savez(sidecar, **{**arrays, "version": np.int64(99)})
    index = ShardIndex.open([path])
    assert len(index) == (6 if how == "stale" else 5)
    assert index.read(4).fields["txt"] == b"scene 4 of many"
    assert f"ignoring {sidecar}" in caplog.text


def test_a_copy_keeps_its_checksums(shard: Shard, caplog: pytest.LogCaptureFixture) -> None:
    """`cp` and `rsync` give another modification time: one flipped bit is found all the same."""
    path = shard(pairs(0, 5))
    write_sidecar(path)
    os.utime(path, ns=(1, 1))
    index = ShardIndex.open([path])
    assert index.read(4).fields["txt"] == b"scene 4 of many"
    data = bytearray(path.read_bytes())
    place = data.index(b"scene 3 of many")
    data[place] ^= 1
    path.write_bytes(data)
    index = ShardIndex.open([path])
    assert index.read(2).fields["txt"] == b"scene 2 of many"
    with pytest.raises(DecodeError, match=r"differ from their checksum \(damage, or a shard that was written anew"):
        index.read(3)
    assert "ignoring" not in caplog.text


def test_a_shard_of_the_same_size_with_other_members_is_told(shard: Shard, caplog: pytest.LogCaptureFixture) -> None:
    path = shard(pairs(0, 5))
    sidecar = write_sidecar(path)
    shard(pairs(1, 5))
    os.utime(path, ns=(1, 1))
    assert len(ShardIndex.open([path])) == 5
    assert f"ignoring {sidecar}, so members are read without checksums: it has no member" in caplog.text
    assert "`mmssl shards index --force`" in caplog.text


def test_a_sidecar_that_disagrees_stays_unless_forced(shard: Shard, caplog: pytest.LogCaptureFixture) -> None:
    path = shard(pairs(0, 5))
    before = write_sidecar(path).read_bytes()
    data = bytearray(path.read_bytes())
    data[data.index(b"scene 3 of many")] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        DataError, match=r"disagrees with its sidecar: \S+\.txt differs from its checksum; fetch the shard again"
    ):
        write_sidecar(path)
    assert sidecar_path(path).read_bytes() == before
    write_sidecar(path, force=True)
    assert sidecar_path(path).read_bytes() != before
    replaced = rf"{re.escape(str(path))} disagrees with its sidecar: \S+\.txt differs from its checksum; .*was replaced"
    assert [bool(re.fullmatch(replaced, record.message)) for record in caplog.records] == [True]
    caplog.clear()
    write_sidecar(path, force=True)  # agrees now: nothing to say
    write_sidecar(path)  # it is renewed without --force
    assert caplog.records == []


def test_sidecar_that_cannot_be_written(shard: Shard) -> None:
    path = shard(pairs(0, 2))
    sidecar_path(path).mkdir()  # stands in for a folder without permission, which root has everywhere
    with pytest.raises(DataError, match="cannot write"):
        write_sidecar(path)
    assert sorted(p.name for p in path.parent.iterdir()) == ["000000.tar", "000000.tar.index.npz"]
    assert len(ShardIndex.open([path])) == 2


def test_open_files_are_few_and_never_pickled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_module.LocalReader, "MAX_OPEN", 2)
    index = ShardIndex.open([folder])
    before = len(os.listdir("/proc/self/fd"))
    first = [raw.fields for raw in index]
    assert len(os.listdir("/proc/self/fd")) == before + 2
    copy = pickle.loads(pickle.dumps(index))
    assert len(os.listdir("/proc/self/fd")) == before + 2
    assert [raw.fields for raw in copy] == first


def test_trouble_with_the_device_is_retried_and_then_fatal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = ShardIndex.open([folder])
    monkeypatch.setattr(local_module.LocalReader, "PAUSES", (0.0, 0.0))
    real = local_module._Handle.read
    failures = [OSError(5, "Input/output error")] * 2

    def flaky(self: local_module._Handle, offset: int, size: int) -> bytes:
        if failures:
            raise failures.pop()
        return real(self, offset, size)

    monkeypatch.setattr(local_module._Handle, "read", flaky)
    assert index.read(3).fields["txt"] == b"scene 3 of many"
    failures += [OSError(5, "Input/output error")] * 3
    with pytest.raises(DataError, match=r"000000\.tar.*an input/output error of the disk"):
        index.read(3)


def test_a_shard_that_changed_or_vanished_is_noticed(shard: Shard) -> None:
    path = shard(pairs(0, 3))
    index, other = ShardIndex.open([path]), ShardIndex.open([path])
    shard(pairs(0, 30))
    with pytest.raises(DataError, match="has changed"):
        index.read(0)
    path.unlink()
    with pytest.raises(DataError, match="cannot read"):
        other.read(0)


def test_truncation_behind_our_back_is_an_error(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shard(pairs(0, 3))
    index = ShardIndex.open([path])
    monkeypatch.setattr(local_module.LocalReader, "PAUSES", ())
    index.read(0)
    os.truncate(path, 600)
    with pytest.raises(DataError, match="the file ends"):
        index.read(2)


def test_checksums_of_old_writers_sum_signed_bytes(tmp_path: Path) -> None:
    path = add(tmp_path / "a.tar", [("ä.txt", b"A")])
    block = bytearray(path.read_bytes())
    block[148:156] = b" " * 8
    signed = sum(byte - 256 if byte > 127 else byte for byte in block[:512])
    block[148:156] = f"{signed:06o}\0 ".encode()
    path.write_bytes(block)
    assert [raw.key for raw in ShardIndex.open([path])] == ["ä"]


@pytest.mark.parametrize(("salvage", "remedy"), [(False, "set `data.on_error: substitute`"), (True, "take them out")])
def test_a_shard_without_any_sample_is_refused_with_what_would_help(tmp_path: Path, salvage: bool, remedy: str) -> None:
    (tmp_path / "0.tar").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match="1 of 1 shards cannot be used") as error:
        ShardIndex.open([tmp_path / "0.tar"], salvage=salvage)
    assert remedy in str(error.value)
    assert ("on_error" in str(error.value)) != salvage
