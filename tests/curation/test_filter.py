"""Filtering: new shards pass the audit, hold the same bytes, and the ledger accounts for every other sample."""

from __future__ import annotations

import json
import logging
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmssl.core.errors import DataError, RecipeError
from mmssl.curation.check import check_shards
from mmssl.curation.filter import LEDGER, FilterReport, filter_shards
from mmssl.curation.filter_choice import FilterConfig
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.sidecar import write_sidecar
from mmssl.data.shards.writer import Manifest, read_manifest, sha256_of, write_shard
from pipelines import cli
from pipelines.command import guarded
from tests.curation.test_check import sample, shard
from tests.curation.test_pack import picture
from tests.data.make import encode, noise


def members(*shards: Path) -> dict[tuple[str, str], bytes]:
    found = {}
    for path in shards:
        index = ShardIndex.open([path])
        index.verify = False
        found |= {(raw.key, extension): data for raw in index for extension, data in raw.fields.items()}
    return found


def ledger(folder: Path) -> list[tuple[str, str]]:
    return [(line["key"], line["reason"]) for line in map(json.loads, (folder / LEDGER).read_text().splitlines())]


def left(report: FilterReport) -> list[tuple[str, str]]:
    return [(one.key, one.reason) for one in report.left]


def with_json(number: int, text: str | None, **changes: bytes | None) -> dict[str, Any]:
    return sample(number, json=None if text is None else text.encode(), **changes)


def test_damaged_samples_are_left_out_and_all_others_are_the_same_bytes(tmp_path: Path) -> None:
    good = [sample(number) for number in range(8)]
    bad = [
        sample(8, jpg=picture(8, (20, 10))[:200]),
        sample(9, txt=b"  "),
        sample(10, cls=b"three"),
        sample(11, pkl=b"code"),
        sample(12, cls=None),
    ]
    first = shard(tmp_path / "in", good[:4] + bad)
    second = shard(tmp_path / "in", good[4:], "000001.tar")
    with second.open("r+b") as file:  # one byte of a caption, which only the sidecar tells
        write_sidecar(second)
        place = second.read_bytes().index(b"caption number 5")
        file.seek(place)
        file.write(b"C")
    report = filter_shards([tmp_path / "in"], tmp_path / "out")
    assert (report.samples, report.kept, report.shards) == (13, 7, 2)
    assert ledger(tmp_path / "out") == left(report)
    assert left(report) == [
        ("s008", "undecodable"),
        ("s009", "missing"),
        ("s010", "undecodable"),
        ("s011", "refused"),
        ("s012", "missing"),
        ("s005", "checksum"),
    ]
    new = sorted((tmp_path / "out").glob("*.tar"))
    kept = {
        name: data
        for name, data in members(first, second).items()
        if name[0] in {f"s{i:03d}" for i in (0, 1, 2, 3, 4, 6, 7)}
    }
    assert members(*new) == kept
    audit = check_shards(new)
    assert audit.ok
    assert not audit.unverified
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert manifest.complete
    assert [(one.path, one.start, one.stop, one.samples) for one in manifest.shards] == [
        ("000000.tar", 0, 9, 4),
        ("000001.tar", 9, 13, 3),
    ]
    assert all(manifest.intact(one) for one in manifest.shards)
    lines = (tmp_path / "out" / LEDGER).read_text().splitlines()
    assert json.loads(lines[4]) == {
        "key": "s012",
        "shard": str(first),
        "reason": "missing",
        "field": "cls",
        "detail": "got .jpg, .txt, wanted .cls",
    }


def test_equal_calls_write_equal_files_and_only_with_overwrite(tmp_path: Path) -> None:
    shard(tmp_path / "in", [sample(number) for number in range(6)])
    config = FilterConfig(min_words=3)
    for out in ("a", "b"):
        filter_shards([tmp_path / "in"], tmp_path / out, config, threads=2)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["000000.tar", "000000.tar.index.npz", LEDGER, "manifest.json"]
    same = [name for name in names if not name.endswith("npz")]
    assert all(sha256_of(tmp_path / "a" / name) == sha256_of(tmp_path / "b" / name) for name in same)
    with pytest.raises(DataError, match=r"holds finished shards: .*--overwrite"):
        filter_shards([tmp_path / "in"], tmp_path / "a", config)
    filter_shards([tmp_path / "in"], tmp_path / "a", FilterConfig(max_words=3), overwrite=True)
    assert sha256_of(tmp_path / "a/000000.tar") == sha256_of(tmp_path / "b/000000.tar")


def test_shards_are_never_written_over_those_that_are_read(tmp_path: Path) -> None:
    path = shard(tmp_path, [sample(0)])
    with pytest.raises(DataError, match=r"holds .*000000\.tar, which is read: choose another folder"):
        filter_shards([path], tmp_path, overwrite=True)


@pytest.mark.parametrize(
    ("where", "reasons"),
    [
        ("json.width >= 200", {"s001": "where", "s003": "no_value", "s004": "no_value", "s005": "no_value"}),
        (
            "json.width >= 200 and json.by.name == 'Ann B'",
            {"s001": "where", "s002": "where", "s003": "no_value", "s004": "no_value", "s005": "no_value"},
        ),
        ("json.width != 100", {"s001": "where", "s003": "no_value", "s004": "no_value", "s005": "no_value"}),
    ],
)  # fmt: skip
def test_conditions_on_the_metadata(tmp_path: Path, where: str, reasons: dict[str, str]) -> None:
    texts = [
        '{"width": 200, "by": {"name": "Ann B"}}',
        '{"width": 100, "by": {"name": "Ann B"}}',
        '{"width": "300", "by": {"name": "C"}}',
        '{"by": {"name": "Ann B"}}',
        "[1]",
        None,
    ]
    shard(tmp_path / "in", [with_json(number, text) for number, text in enumerate(texts)])
    report = filter_shards([tmp_path / "in"], tmp_path / "out", FilterConfig(where=where, required=("jpg",)))
    assert dict(left(report)) == reasons


def test_conditions_are_about_the_metadata_only(tmp_path: Path) -> None:
    shard(tmp_path / "in", [sample(0)])
    with pytest.raises(
        RecipeError, match=r"got the name 'width', wanted a key of the sample's .json, as in json\.width"
    ):
        filter_shards([tmp_path / "in"], tmp_path / "out", FilterConfig(where="width > 3"))


def test_sizes_and_lengths(tmp_path: Path) -> None:
    samples = [
        sample(0),
        sample(1, jpg=picture(1, (200, 9))),
        sample(2, txt=b"two words"),
        sample(3, txt=b"a caption of six words exactly\na caption of seven words is longer"),
        sample(4, txt=b"three words here"),
    ]
    shard(tmp_path / "in", samples)
    config = FilterConfig(min_side=10, min_words=3, max_words=6)
    report = filter_shards([tmp_path / "in"], tmp_path / "out", config)
    assert left(report) == [("s001", "small"), ("s002", "short"), ("s003", "long")]
    assert "7 words, wanted at most 6" in report.left[2].detail
    tokens = filter_shards([tmp_path / "in"], tmp_path / "tokens", FilterConfig(max_tokens=5))
    assert [key for key, _ in left(tokens)] == ["s003"], "two or three words, start and end"


def test_the_first_of_repeated_samples_stays(tmp_path: Path) -> None:
    image = Image.fromarray(noise(1, 96, 96))
    first, near = encode(image), encode(image.resize((64, 64)), quality=80)
    other = encode(noise(2, 96, 96))
    flat = [encode(np.full((16, 16, 3), grey, np.uint8)) for grey in (10, 200)]
    pictures = [first, other, near, first, *flat]
    shard(tmp_path / "in", [sample(number, jpg=data) for number, data in enumerate(pictures[:3])])
    shard(tmp_path / "in", [sample(number + 3, jpg=data) for number, data in enumerate(pictures[3:])], "000001.tar")
    exact = filter_shards([tmp_path / "in"], tmp_path / "exact", FilterConfig(duplicates="exact"))
    assert left(exact) == [("s003", "repeated")]
    assert exact.left[0].detail == f"equal to s000 of {tmp_path}/in/000000.tar"
    alike = filter_shards([tmp_path / "in"], tmp_path / "alike", FilterConfig(duplicates="perceptual"))
    assert left(alike) == [("s002", "similar"), ("s003", "repeated")]


def test_a_sample_that_another_criterion_leaves_out_hides_no_repeat(tmp_path: Path) -> None:
    data = picture(1, (20, 10))
    shard(tmp_path / "in", [sample(0, jpg=data, txt=b"short"), sample(1, jpg=data)])
    report = filter_shards([tmp_path / "in"], tmp_path / "out", FilterConfig(duplicates="exact", min_words=2))
    assert left(report) == [("s000", "short")]


@pytest.mark.parametrize("sidecar", [True, False])
def test_damaged_shards_are_refused_or_repaired(
    tmp_path: Path, sidecar: bool, caplog: pytest.LogCaptureFixture
) -> None:
    whole = shard(tmp_path / "in", [sample(number) for number in range(6)])
    before = members(whole)
    if sidecar:
        write_sidecar(whole)
    shard(tmp_path / "in", [sample(6)], "000001.tar")
    (tmp_path / "in/000002.tar").write_bytes(b"no tar file" * 100)
    with tarfile.open(whole) as tar:
        at = {member.name: member.offset for member in tar}
    with whole.open("r+b") as file:
        file.seek(at["s002.cls"])
        file.write(b"\xaa" * (at["s003.cls"] - at["s002.cls"]))
    with pytest.raises(
        DataError, match=r"^2 damaged shards:\n.*000000\.tar, byte .*\n.*2\.tar is not a tar.*\n.*--repair"
    ):
        filter_shards([tmp_path / "in"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with caplog.at_level(logging.ERROR):
        report = filter_shards([tmp_path / "in"], tmp_path / "out", FilterConfig(repair=True))
    kept = members(*sorted((tmp_path / "out").glob("*.tar")))
    assert {key for key, _ in kept} == {"s000", "s001", "s003", "s004", "s005", "s006"}
    assert all(before[name] == data for name, data in kept.items() if name in before)
    assert check_shards([tmp_path / "out"]).ok
    lost = [("", "damaged"), ("s002", "lost"), ("", "damaged")]
    assert left(report) == [one for one in lost if sidecar or one[0] == ""]
    assert (report.samples, report.kept) == (6 + sidecar, 6)
    assert "unreadable  2 parts" in report.table()


def test_a_sidecar_saves_what_lies_behind_a_damaged_header(tmp_path: Path) -> None:
    path = shard(tmp_path / "in", [sample(number) for number in range(4)])
    write_sidecar(path)
    stamp = path.stat()
    with tarfile.open(path) as tar:
        start = {member.name: member.offset for member in tar}["s001.jpg"]
    with path.open("r+b") as file:
        file.seek(start + 20)
        file.write(b"\xff")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    report = filter_shards([path], tmp_path / "out", FilterConfig(repair=True))
    assert (report.kept, report.left) == (4, [])
    assert check_shards([tmp_path / "out"]).ok


def test_dry_run_prints_the_table_and_writes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shard(tmp_path / "in", [sample(0), sample(1, txt=b"one"), sample(2, txt=b"two"), sample(3, jpg=b"no")])
    out = tmp_path / "out"
    command = ["shards", "filter", str(tmp_path / "in"), "--out", str(out), "--min-words", "2"]
    assert guarded(cli.full(), [*command, "--dry-run", "--json", str(tmp_path / "found.json")]) == 0
    dry = capfd.readouterr().out
    assert dry.splitlines() == [
        "samples            4",
        "kept               1 in 1 shards",
        "left out           3",
        "  short text       2",
        "  undecodable jpg  1",
    ]  # fmt: skip
    assert not out.exists()
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["samples"], found["kept"], found["counts"]) == (4, 1, {"short text": 2, "undecodable jpg": 1})
    assert [line["key"] for line in found["left"]] == ["s001", "s002", "s003"]
    assert guarded(cli.full(), command) == 0
    assert capfd.readouterr().out == dry
    assert guarded(cli.full(), [*command, "--overwrite", "--min-words", "9"]) == 3
    assert "no sample would be left" in capfd.readouterr().err
    assert (out / "000000.tar").exists()
    assert guarded(cli.full(), [*command, "--distance", "3"]) == 2
    assert "--distance: got 3 without --duplicates perceptual" in capfd.readouterr().err


def test_class_names_go_with_the_shards_that_share_them(tmp_path: Path) -> None:
    for folder, names in (("a", "cat\ndog\n"), ("b", "cat\ndog\n"), ("c", "dog\ncat\n")):
        shard(tmp_path / folder, [sample(number) for number in range(2)])
        (tmp_path / folder / "classnames.txt").write_text(names)
    filter_shards([tmp_path / "a", tmp_path / "b"], tmp_path / "same")
    assert (tmp_path / "same/classnames.txt").read_text() == "cat\ndog\n"
    filter_shards([tmp_path / "a", tmp_path / "c"], tmp_path / "differ")
    assert not (tmp_path / "differ/classnames.txt").exists()


def test_members_that_no_shard_can_name_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in/0.tar", "w") as tar:
        for name in ("a.jpg", "a._x"):
            path = tmp_path / "data"
            path.write_bytes(picture(1, (20, 10)))
            tar.add(path, name)
    with pytest.raises(DataError, match=r"sample 'a': got a member \._x, which"):
        filter_shards([tmp_path / "in"], tmp_path / "out")


def test_the_manifest_says_of_texts_what_all_sources_say(tmp_path: Path) -> None:
    for name, form in (("a", "lines"), ("b", "lines"), ("c", "whole")):
        record = write_shard(tmp_path / name, "0.tar", 0, 4, [sample(number) for number in range(4)])
        Manifest(tmp_path / name, {}, (record,), formats={"txt": form}).write()
    shard(tmp_path / "d", [sample(number) for number in range(4)])

    def said(*names: str) -> object:
        out = tmp_path / "".join(("out", *names))
        filter_shards([tmp_path / name for name in names], out)
        manifest = read_manifest(out)
        return manifest.formats if manifest is not None else None

    assert said("a", "b") == {"txt": "lines"}
    assert said("d") == {}
    for other, form in (("c", "'whole'"), ("d", "said by no manifest")):
        with pytest.raises(
            DataError, match=rf"the format of \.txt is 'lines' in .*a/0\.tar and {form} in .*{other}/0+\.tar, and"
        ):
            said("a", other)
