"""Damaged shards: what is left is delivered whole, what is lost is reported, whatever happened to the bytes."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mmssl.core.errors import DataError
from mmssl.core.sample import Fault
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.modality import DecodeError
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.sidecar import sidecar_path, write_sidecar
from mmssl.data.shards.tar import Lost, walk
from mmssl.data.stream.batches import TrainStream
from mmssl.data.stream.config import DataConfig
from tests.data.make import pairs
from tests.data.shards.test_index import add, damage, headers

Shard = Callable[..., Path]
Content = dict[str, dict[str, bytes]]


def opened(path: Path) -> tuple[Content, ShardIndex, set[str]]:
    """Samples that read well, the index, and the keys of those that do not."""
    index = ShardIndex.open([path], salvage=True)
    good: Content = {}
    bad: set[str] = set()
    for ordinal in range(len(index)):
        try:
            good[index.key(ordinal)] = index.read(ordinal).fields
        except DecodeError:
            bad.add(index.key(ordinal))
    return good, index, bad


def index_of(path: Path, key: str, extension: str) -> int:
    """Where the data of a member begin."""
    return next(offset for name, offset, _ in walk(path) if name == f"{key}.{extension}")


@pytest.mark.parametrize(
    ("how", "whole"),
    [
        ("checksum", 10),  # of a record of times, see below
        ("zeroed header", 10),
        ("hole", 10),
        ("size", 10),
        ("cut in data", 5),
        ("cut in header", 5),
        ("cut between members", 5),
    ],
)
def test_what_is_left_is_delivered_and_the_rest_is_named(shard: Shard, how: str, whole: int) -> None:
    path = shard(pairs(0, 10))
    before, *_ = opened(path)
    path.write_bytes(damage(path.read_bytes(), how))
    with pytest.raises(DataError):
        ShardIndex.open([path])
    after, index, _ = opened(path)
    assert sum(before[key] == fields for key, fields in after.items()) == whole
    (fault,) = index.lost
    assert (fault.reason, fault.field, fault.origin.shard) == ("damaged", "tar", str(path))
    assert fault.origin.offset == headers_before(fault, how, path)
    assert "bytes are skipped" in fault.detail
    assert index.gone >= (1 if how.startswith("cut") or how == "hole" else 0)


def headers_before(fault: Fault, how: str, path: Path) -> int:
    """Where the damage was done: header 15 of 30."""
    whole = path.parent / "whole.tar"
    from tests.data.make import write

    return headers(write(whole, pairs(0, 10)).read_bytes())[15]


def test_the_first_header_may_be_the_damaged_one(shard: Shard) -> None:
    path = shard(pairs(0, 6))
    data = bytearray(path.read_bytes())
    data[3] ^= 4
    path.write_bytes(data)
    good, index, _ = opened(path)
    assert sorted(good) == [f"{i:04d}" for i in range(6)]
    assert sorted(good["0000"]) == [
        "cls",
        "jpg",
        "txt",
    ]  # it was a record of times: WebDataset writes one for each member
    assert [fault.origin.offset for fault in index.lost] == [0]


def test_the_old_index_names_what_is_gone_and_what_has_changed(shard: Shard) -> None:
    path = shard(pairs(0, 10))
    write_sidecar(path)
    places = headers(path.read_bytes())
    data = bytearray(path.read_bytes()[: places[21]])  # seven samples, cut between members
    data[index_of(path, "0001", "txt")] ^= 1
    path.write_bytes(data)
    good, index, bad = opened(path)
    lost = [(fault.reason, fault.key, fault.field) for fault in index.lost]
    assert lost == [("damaged", "", "tar"), *(("lost", f"{i:04d}", "tar") for i in (7, 8, 9))]
    assert index.gone == 3
    assert (sorted(good), bad) == ([f"{i:04d}" for i in (0, 2, 3, 4, 5, 6)], {"0001"})


def test_names_that_stood_in_a_lost_record_are_not_guessed(tmp_path: Path) -> None:
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        names = ["folder/" + "k" * 200 + f"{i}" for i in range(4)]
        path = add(tmp_path / f"{form}.tar", [(f"{name}.txt", b"x") for name in names], form)
        blocks = bytearray(path.read_bytes())
        record = next(at for at in range(512, len(blocks), 512) if blocks[at + 156 : at + 157] in (b"L", b"x"))
        blocks[record + 10] ^= 1
        path.write_bytes(blocks)
        good, index, _ = opened(path)
        assert sorted(good) == [names[0], *names[2:]]
        assert len(index.lost) == 1 or sum(fault.reason == "damaged" for fault in index.lost) >= 1


def test_members_behind_bytes_that_were_cut_out_are_found(shard: Shard) -> None:
    path = shard(pairs(0, 10))
    data = path.read_bytes()
    start = index_of(path, "0003", "jpg")  # it loses its first block
    before, *_ = opened(path)
    path.write_bytes(data[:start] + data[start + 512 :])
    after, index, _ = opened(path)
    assert {key for key in before if after.get(key) == before[key]} == set(before) - {"0003"}
    assert len(index.lost) == 1


def test_a_file_that_is_no_archive_stays_an_error(tmp_path: Path) -> None:
    for content in (b"", b"<html>not found</html>" * 1000, b"\x1f\x8b\x08" + bytes(5000), bytes(10240)):
        path = tmp_path / "a.tar"
        path.write_bytes(content)
        with pytest.raises(DataError):
            ShardIndex.open([path], salvage=True)


def test_checksums_find_what_decoders_do_not(shard: Shard) -> None:
    path = shard(pairs(0, 10))
    write_sidecar(path)
    index = ShardIndex.open([path])
    place = index.members(4)[2]
    assert place[0] == "txt"
    times = os.stat(path)
    data = bytearray(path.read_bytes())
    data[place[1]] ^= 32  # another letter
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # rot does not touch the clock
    index = ShardIndex.open([path])
    with pytest.raises(DecodeError) as caught:
        index.read(4)
    assert (caught.value.reason, caught.value.field) == ("checksum", "txt")
    assert f"byte {place[1]}" in caught.value.detail
    index.verify = False
    assert index.read(4).fields["txt"] == b"Scene 4 of many"
    sidecar_path(path).unlink()
    assert ShardIndex.open([path]).read(4).fields["txt"] == b"Scene 4 of many"


LABELS = {"label": LabelConfig().build("label")}
NEEDS = {"label": {"value": 1}}


def test_a_run_on_damaged_shards_says_so_once(shard: Shard) -> None:
    path = shard(pairs(0, 40))
    data = bytearray(path.read_bytes())
    data[index_of(path, "0010", "cls") - 512] ^= 1
    path.write_bytes(data)

    def build(share: float, on_error: str = "substitute") -> TrainStream:
        text = f'{{"shards": ["{path}"], "workers": 0, "on_error": "{on_error}", "max_failures": {share}}}'
        return DataConfig.model_validate_json(text).build(LABELS, NEEDS, batch_size=4, seed=0)

    with pytest.raises(DataError, match="checksum of the header"):
        build(0.5, "raise")
    with pytest.raises(DataError, match=r"lost about 1 of 41 samples.*share of 0\.02 "):
        build(0.02)
    stream = build(0.5)
    reasons = [[fault.reason for fault in next(stream).faults] for _ in range(10)]
    assert reasons[0][0] == "damaged"
    assert sum(each.count("damaged") for each in reasons) == 1
    assert sum(each.count("missing") for each in reasons) == 1  # the sample whose label is lost
    state = stream.state_dict()
    again = build(0.5)
    again.load_state_dict(state)
    assert "damaged" not in [fault.reason for fault in next(again).faults]


def tiny(rng: np.random.Generator) -> tuple[bytes, Content]:
    """A shard of a few samples with members of odd sizes, sometimes with long names."""
    buffer = io.BytesIO()
    content: Content = {}
    form = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)[int(rng.integers(3))]
    long = "" if form == tarfile.USTAR_FORMAT or rng.random() < 0.7 else "n" * 120
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for number in range(int(rng.integers(3, 9))):
            for extension in ("bin", "txt"):
                data = rng.integers(0, 256, int(rng.integers(1, 1800)), dtype=np.uint8).tobytes()
                info = tarfile.TarInfo(f"{long}{number}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
                content.setdefault(f"{long}{number}", {})[extension] = data
    return buffer.getvalue(), content


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three accidents."""
    for _ in range(int(rng.integers(1, 4))):
        kind = int(rng.integers(6))
        start, size = int(rng.integers(len(data))), int(rng.integers(1, 3000))
        if kind == 0:
            data = data[:start] + bytes([data[start] ^ (1 << int(rng.integers(8)))]) + data[start + 1 :]
        elif kind == 1:
            data = data[: max(1, start)]
        elif kind == 2:
            data = data[:start] + bytes(len(data[start : start + size])) + data[start + size :]
        elif kind == 3:  # two blocks change places
            a, b = sorted(int(i) * 512 for i in rng.integers(max(1, len(data) // 512), size=2))
            if a < b:
                one, other = data[a : a + 512], data[b : b + 512]
                data = data[:a] + other + data[a + 512 : b] + one + data[b + 512 :]
        elif kind == 4:  # a span is there twice
            start, size = start // 512 * 512, size // 512 * 512
            data = data[: start + size] + data[start:]
        else:  # blocks are missing
            start, size = start // 512 * 512, size // 512 * 512
            data = data[:start] + data[start + size :] or data
    return data


@pytest.mark.parametrize("indexed", [True, False])
def test_no_accident_is_silent(tmp_path: Path, indexed: bool) -> None:
    """With a sidecar every delivered byte is right, and every sample is delivered or reported by name. Without one, whenever a
    sample is missing a span is reported."""
    rng = np.random.default_rng(3)
    path, delivered, lost = tmp_path / "a.tar", 0, 0
    refused: list[str] = []
    for _ in range(250):
        data, content = tiny(rng)
        path.write_bytes(data)
        sidecar_path(path).unlink(missing_ok=True)
        if indexed:
            write_sidecar(path)
        times = os.stat(path)
        changed = mutate(data, rng)
        path.write_bytes(changed)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        try:
            good, index, bad = opened(path)
        except DataError as error:
            refused.append(str(error))  # nothing at all is left of it
            continue
        whole = {key for key, fields in content.items() if good.get(key) == fields}
        reported = bad | {fault.key for fault in index.lost if fault.key}
        if indexed:
            assert set(content) == whole | reported, (set(content) - whole - reported, index.lost)
            assert not {key for key in good if key in content and key not in whole and key not in reported}
        elif set(content) - set(good) - bad:
            assert index.lost, "samples are gone, and nothing is said"
        delivered, lost = delivered + len(whole), lost + len(content) - len(whole)
    assert all(str(path) in message for message in refused)
    assert len(refused) < 25
    assert delivered > 500
    assert lost > 120


def test_samples_that_were_not_touched_are_delivered_without_an_index(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    path = tmp_path / "a.tar"
    for _ in range(200):
        data, content = tiny(rng)
        places: dict[str, list[tuple[int, int]]] = {}
        path.write_bytes(data)
        for name, offset, size in walk(path):
            places.setdefault(name.rpartition(".")[0], []).append((offset - 512, offset + size))
        start = int(rng.integers(len(data) - 512))
        stop = start + int(rng.integers(1, 1500))
        path.write_bytes(data[:start] + bytes(len(data[start:stop])) + data[stop:])
        touched = {key for key, spans in places.items() if any(a < stop and start < b for a, b in spans)}
        # A record with the name stands before the header: the nearest sample behind the damage may lose it.
        near = {key for key, spans in places.items() if any(start < a < stop + 2048 for a, _ in spans)}
        spared = set(content) - touched - (near if any(len(key) > 100 for key in content) else set())
        try:
            good, *_ = opened(path)
        except DataError:
            assert not spared
            continue
        assert spared <= {key for key, fields in content.items() if good.get(key) == fields}


def test_what_was_lost_is_told_in_order_and_without_overlap(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    path = tmp_path / "a.tar"
    for _ in range(100):
        data, _ = tiny(rng)
        path.write_bytes(mutate(data, rng))
        lost: list[Lost] = []
        try:
            members = list(walk(path, lost))
        except DataError:
            continue
        size = path.stat().st_size
        assert all(0 <= span.offset <= span.stop <= size for span in lost)
        assert all(one.stop <= other.offset for one, other in pairwise(lost))
        assert all(member.offset + member.size <= size for member in members)
        for span in lost:
            assert not any(span.offset <= member.offset - 512 < span.stop for member in members)
