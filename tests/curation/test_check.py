"""Auditing: each planted defect is found and named, all of them in one pass."""

from __future__ import annotations

import json
import os
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from mmssl.core.errors import DataError
from mmssl.curation.check import check_shards
from mmssl.curation.check_report import CheckReport
from mmssl.curation.figures import Duplicates
from mmssl.data.media.encode import encode_clip
from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.modalities.text import TextConfig
from mmssl.data.shards.remote import CacheConfig
from mmssl.data.shards.sidecar import write_sidecar
from mmssl.data.shards.writer import Manifest, write_shard
from mmssl.datasets.digit_render import to_wav
from mmssl.datasets.digit_scenes import write
from pipelines import cli
from pipelines.command import guarded
from tests.curation.test_pack import picture
from tests.data.modalities.test_audio import encode as encode_sound
from tests.data.servers import serve


def sample(number: int, **changes: bytes | None) -> dict[str, str | bytes]:
    """A good sample, but for the changes; None takes a member out."""
    fields = {"jpg": picture(number, (20, 10)), "txt": f"caption number {number}".encode(), "cls": b"3"}
    fields |= {name: data for name, data in changes.items() if data is not None}
    kept = {name: data for name, data in fields.items() if name not in changes or changes[name] is not None}
    return {"__key__": f"s{number:03d}", **kept}


def shard(folder: Path, samples: list[dict[str, str | bytes]], name: str = "000000.tar") -> Path:
    write_shard(folder, name, 0, len(samples), samples)
    return folder / name


def captions(report: CheckReport) -> int:
    return report.modalities["text"].figures["words"].count


def found(report: CheckReport, reason: str) -> list[tuple[str, str]]:
    return sorted((fault.key, fault.field) for fault in report.faults if fault.reason == reason)


def test_good_shards_pass(tmp_path: Path) -> None:
    manifest = write(tmp_path, train=20, validation=4, test=0, shards=2)
    report = check_shards([tmp_path / "train", tmp_path / "validation"])
    assert report.ok
    assert report.warnings == ()
    assert (report.shards, report.samples, report.examined) == (4, 24, 24)
    assert report.bytes == manifest.bytes
    assert {name: one.samples for name, one in report.fields.items()} == {
        "cls": 12,
        "jpg": 24,
        "json": 24,
        "txt": 24,
        "wav": 24,
    }
    assert report.fields["wav"].decoded == 24
    audio = report.modalities["audio"]
    assert (audio.figures["seconds"].minimum, audio.figures["seconds"].maximum) == (1, 1)
    assert (audio.flags, audio.lacking, "video" in report.modalities) == ({}, 0, False)
    assert report.fields["jpg"].decoded == 24
    assert not report.fields["cls"].expected
    assert report.fields["txt"].expected
    width = report.modalities["image"].figures["width"]
    assert (width.minimum, width.maximum) == (64, 64)
    assert "no faults" in report.table()


def test_every_planted_defect_is_found_in_one_pass(tmp_path: Path) -> None:
    whole = picture(50, (20, 10))
    samples = [sample(number) for number in range(20)]
    samples += [
        sample(20, jpg=whole[: len(whole) // 2]),
        sample(21, jpg=b"<html>404</html>"),
        sample(22, jpg=None),
        sample(23, txt=None),
        sample(24, txt=b"  \n"),
        sample(25, txt=b"caf\xe9"),
        sample(26, cls=b"cat"),
        sample(27, json=b"{broken"),
        sample(28, jpg=samples[3]["jpg"]),  # type: ignore[arg-type]
        sample(29, txt=b"caption number 3"),
        sample(30, txt=b"word " * 100),
        sample(31, jpg=b""),
    ]
    path = shard(tmp_path, samples)
    report = check_shards([path], workers=4)
    assert not report.ok
    assert found(report, "undecodable") == [
        ("s020", "jpg"),
        ("s021", "jpg"),
        ("s025", "txt"),
        ("s026", "cls"),
        ("s027", "json"),
        ("s031", "jpg"),
    ]
    assert found(report, "missing") == [("s022", "image"), ("s023", "txt"), ("s024", "txt")]  # s024 has a blank caption
    assert report.fault_counts == {
        "undecodable jpg": 3,
        "undecodable txt": 1,
        "undecodable cls": 1,
        "undecodable json": 1,
        "missing image": 1,
        "missing txt": 2,
    }
    image, text = report.modalities["image"], report.modalities["text"]
    assert image.repeated == Duplicates(1, 1, (("an image", "s003", "s028"),))
    assert text.repeated == Duplicates(1, 1, (("'caption number 3'", "s003", "s029"),))
    assert (report.truncated, captions(report)) == (1, 29)
    assert text.figures["words"].maximum == 100
    assert report.modalities["label"].counted == {"class": {3: 31}}
    for part in (
        "1 shards for 4 workers",
        "1 images repeat earlier ones",
        "1 captions are longer than 77 CLIP tokens",
    ):
        assert sum(part in warning for warning in report.warnings) == 1
    # Every fault says where, to the byte.
    (fault,) = [fault for fault in report.faults if fault.key == "s020"]
    with tarfile.open(path) as tar:
        assert fault.origin.offset == tar.getmember("s020.cls").offset
    assert (fault.origin.shard, fault.origin.ordinal) == (str(path), 20)
    assert "s020" in report.table()
    assert "9 faults" in report.table()


def test_captions_of_exactly_the_limit_are_not_cut(tmp_path: Path) -> None:
    fits, cut = b"a " * 75, b"a " * 76
    report = check_shards([shard(tmp_path, [sample(0, txt=fits), sample(1, txt=cut)])])
    assert (captions(report), report.truncated) == (2, 1)
    assert check_shards([tmp_path], context_length=78).truncated == 0


@pytest.mark.parametrize("key", ["0", "longer"])
def test_repeated_keys_and_a_caption_said_twice(tmp_path: Path, key: str) -> None:
    one = sample(0, txt=b"same\nsame") | {"__key__": key}
    other = sample(1, txt=b"same") | {"__key__": key}
    paths = [shard(tmp_path, [one], "000000.tar"), shard(tmp_path, [other], "000001.tar")]
    report = check_shards(paths)
    assert report.ok
    repeated = report.modalities["text"].repeated
    assert repeated is not None
    assert repeated.extra == 1  # within one sample it is no duplicate
    assert [warning for warning in report.warnings if "keys" in warning] == [
        "1 keys occur more than once: loaders that merge by key may mix their samples"
    ]


def test_damaged_archives_do_not_stop_the_others(tmp_path: Path) -> None:
    good = shard(tmp_path, [sample(number) for number in range(4)], "000000.tar")
    cut = shard(tmp_path, [sample(number) for number in range(10, 16)], "000001.tar")
    flipped = shard(tmp_path, [sample(number) for number in range(20, 26)], "000002.tar")
    (tmp_path / "000003.tar").write_bytes(b"<html>not found</html>")
    (tmp_path / "000004.tar").write_bytes(b"")
    with tarfile.open(cut) as tar:
        half = tar.getmember("s013.jpg").offset + 700
    cut.write_bytes(cut.read_bytes()[:half])
    with tarfile.open(flipped) as tar:
        header = tar.getmember("s022.cls").offset
    data = bytearray(flipped.read_bytes())
    data[header + 3] ^= 1
    flipped.write_bytes(bytes(data))
    for threads in (1, 3):
        report = check_shards([tmp_path], threads=threads)
        damaged = [fault for fault in report.faults if fault.reason == "damaged"]
        assert [Path(fault.origin.shard).name for fault in damaged] == [f"{n:06d}.tar" for n in (1, 2, 3, 4)]
        assert report.shard_samples == (4, 4, 6, 0, 0)
        assert damaged[1].origin.offset == header
        assert found(report, "missing") == [("s013", "image"), ("s013", "txt"), ("s022", "cls")]
    assert good.name not in json.dumps(json.loads(report.to_json())["faults"])


def test_members_that_are_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "twice.tar"
    with tarfile.open(path, "w") as tar:
        source = shard(tmp_path / "x", [sample(0)])
        for _ in range(2):
            with tarfile.open(source) as other:
                for member in other:
                    tar.addfile(member, other.extractfile(member))
        for ignored in ("README", "photos/._0.jpg", "photos/.DS_Store", "__MACOSX/photos/0.jpg", "__meta__/0.jpg"):
            tar.addfile(tarfile.TarInfo(ignored))
    report = check_shards([path])
    assert found(report, "duplicate") == [("s000", "cls"), ("s000", "jpg"), ("s000", "txt")]
    assert report.samples == 1
    assert report.warnings[-1] == "4 members are ignored: hidden, in `__MACOSX`, or without an extension"


def test_what_must_be_there_can_be_said(tmp_path: Path) -> None:
    samples = [sample(number, cls=b"1" if number < 5 else None) for number in range(10)]
    path = shard(tmp_path, samples)
    assert check_shards([path]).ok  # half of the samples have a label: it may be absent
    late = [(f"s{number:03d}", "cls") for number in range(5, 10)]
    assert found(check_shards([path], required=["cls", "jpg"]), "missing") == late
    modalities = {"kind": LabelConfig().build("kind"), "picture": ImageConfig(size=8).build("picture")}
    report = check_shards([path], modalities)
    assert found(report, "missing") == [(key, "kind") for key, _ in late]
    assert report.fields["txt"].decoded == 0
    assert report.modalities.keys() == {"kind", "picture"}


def test_modalities_decide_what_decodes(tmp_path: Path) -> None:
    modalities: Mapping[str, object] = {
        "picture": ImageConfig(size=8, max_pixels=100).build("picture"),
        "text": TextConfig(captions="list").build("text"),
    }
    path = shard(tmp_path, [sample(0, json=b'["one", "two"]'), sample(1, json=b'{"one": 2}')])
    report = check_shards([path], modalities)  # type: ignore[arg-type]
    assert found(report, "too_large") == [("s000", "jpg"), ("s001", "jpg")]
    assert found(report, "undecodable") == [("s001", "json")]
    assert captions(report) == 2


def test_limit_reads_only_the_first_samples_and_counts_all(tmp_path: Path) -> None:
    samples = [sample(number) for number in range(5)] + [sample(5, jpg=b"bad", txt=None)]
    report = check_shards([shard(tmp_path, samples)], limit=5)
    assert (report.samples, report.examined, report.fields["jpg"].decoded) == (6, 5, 5)
    assert report.fault_counts == {"missing txt": 1}
    assert report.fields["jpg"].samples == 6


@pytest.mark.parametrize(
    ("limit", "shares"), [(7, [2, 2, 3]), (2, [0, 1, 1]), (3, [1, 1, 1]), (1, [0, 0, 1]), (100, [4, 4, 4])]
)
def test_limit_is_of_all_samples_and_spread_evenly(tmp_path: Path, limit: int, shares: list[int]) -> None:
    bad = [shard(tmp_path, [sample(i, jpg=b"bad") for i in range(4)], f"{number}.tar") for number in range(3)]
    report = check_shards(bad, limit=limit, threads=2)
    assert (report.samples, report.examined) == (12, sum(shares))
    counted = Counter(fault.origin.shard for fault in report.faults)
    assert [counted[str(path)] for path in bad] == shares


def test_json_is_complete_and_finite(tmp_path: Path) -> None:
    path = shard(tmp_path, [sample(number, jpg=None, txt=None) for number in range(3)])
    document = json.loads(check_shards([path]).to_json(), parse_constant=lambda name: pytest.fail(name))
    assert document["ok"] is True
    assert document["modalities"]["label"]["counted"] == {"class": {"3": 3}}
    assert document["modalities"].keys() == {"label"}
    with pytest.raises(DataError, match="no such shard"):
        check_shards([tmp_path / "nothing.tar"])


def test_sounds_and_videos_are_decoded_and_measured(tmp_path: Path) -> None:
    tone = 0.5 * np.sin(np.arange(16_000) * 0.1)[:, None].astype(np.float32)
    frames = np.zeros((15, 32, 48, 3), dtype=np.uint8)
    video = encode_clip("mp4", frames, tone, fps=15, rate=16_000)
    records: list[dict[str, str | bytes]] = [
        {"__key__": "a", "mp4": video, "wav": to_wav(tone, 16_000)},
        {"__key__": "b", "mp4": encode_clip("mp4", frames, None, fps=15), "wav": to_wav(0.0009 * tone, 16_000)},
        {"__key__": "c", "mp4": video[:-200], "wav": to_wav(np.clip(4 * tone, -1, 1), 16_000)},
        {"__key__": "d", "mp4": encode_clip("mp4", None, tone, rate=16_000), "wav": b"RIFF"},
    ]
    report = check_shards([shard(tmp_path, records)])
    assert report.fault_counts == {"undecodable mp4": 1, "missing mp4": 1, "undecodable wav": 1}
    assert (report.fields["mp4"].decoded, report.fields["wav"].decoded) == (2, 3)
    audio, video_figures = report.modalities["audio"], report.modalities["video"].figures
    assert (audio.flags, audio.lacking) == ({"clipped": 1, "silent": 1}, 1)
    assert audio.figures["seconds"].count == 5  # three wavs, and those in the files a and d
    assert (video_figures["seconds"].count, video_figures["frames a second"].mean) == (2, 15)
    assert any("1 sounds are silent" in warning for warning in report.warnings)
    assert all(word in report.table() for word in ("frames a second", "without audio", "audio clipped"))
    asked = check_shards(
        [tmp_path], {"audio": AudioConfig(rate=8_000, seconds=1.0, extensions=("mp4",)).build("audio")}
    )
    assert asked.fault_counts == {"undecodable mp4": 1, "missing mp4": 1}  # who asks for sounds needs them


def test_loud_floats_and_sounds_without_length_are_counted(tmp_path: Path) -> None:
    tone = np.sin(np.arange(8_000) * 0.1)[:, None]
    loud, plain, wrong = (encode_sound(peak * tone, "WAV", "FLOAT", 8_000) for peak in (4.0, 1.0, 16_000.0))
    place = plain.index(b"data") + 4
    streamed = plain[:place] + b"\xff\xff\xff\xff" + plain[place + 4 :]
    records = [{"__key__": key, "wav": data} for key, data in zip("abcd", (loud, plain, wrong, streamed), strict=True)]
    report = check_shards([shard(tmp_path, records)])
    assert report.fault_counts == {"range wav": 1}
    assert report.modalities["audio"].flags == {"beyond full scale": 1, "clipped": 1, "no length": 1}
    for text in ("1 sounds exceed full scale by 1 dB", "1 sounds have no length in their header"):
        assert sum(text in warning for warning in report.warnings) == 1
    assert "audio beyond full scale" in report.table()


def test_remote_shards_are_fetched_and_named_by_their_address(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = shard(tmp_path, [sample(number) for number in range(4)], "0.tar")
    bad = shard(tmp_path, [sample(4), sample(5, jpg=b"bad"), sample(6)], "1.tar")
    with tarfile.open(bad) as tar:
        end = min(member.offset for member in tar if member.name.startswith("s006")) + 100
    kept = tmp_path / "cache"
    with serve() as server:
        server.files |= {"/0.tar": good.read_bytes(), "/1.tar": bad.read_bytes()[:end], "/2.tar": b"<html>"}
        remote = CacheConfig(folder=kept).build()
        report = check_shards([f"{server.url}/{{0..2}}.tar?token=hush"], remote=remote)
        assert (report.shards, report.shard_samples) == (3, (4, 2, 0))
        assert report.bytes == sum(map(len, server.files.values()))
        assert found(report, "undecodable") == [("s005", "jpg")]
        damaged = [fault for fault in report.faults if fault.reason == "damaged"]
        assert {fault.origin.shard for fault in report.faults} == {f"{server.url}/{i}.tar" for i in (1, 2)}
        assert len(damaged) == 2
        assert str(kept) not in report.to_json()
        assert "hush" not in report.to_json()
        server.log.clear()
        arguments = ["shards", "check", f"{server.url}/{{0..1}}.tar?token=hush", "--cache", str(kept)]
        assert guarded(cli.full(), arguments) == 3
        beside = {"/manifest.json", "/dataset_type.txt"}  # which are not there; what the cache has is not fetched again
        assert server.gets().keys() == beside
        assert f"{server.url}/1.tar" in capsys.readouterr().out
        with pytest.raises(DataError, match=r"/9\.tar.*not found"):
            check_shards([f"{server.url}/9.tar"], remote=remote)
    with pytest.raises(DataError, match=r"data\.allow_pipe: true"):
        check_shards([f"pipe:cat {good}"], remote=remote)


def test_lines_that_a_run_would_take_as_one_caption(tmp_path: Path) -> None:
    path = shard(tmp_path, [sample(0), sample(1, txt=b"a cat\na black cat\n"), sample(2, txt=b"a dog\n")])
    report = check_shards([path])
    assert captions(report) == 4
    assert [warning.split(":")[0] for warning in report.warnings] == [
        "1 samples have a .txt of several lines, and no manifest says what they are"
    ]
    form: Literal["lines", "whole"]
    for form in ("lines", "whole"):  # a recipe says what they are
        assert check_shards([path], modalities={"text": TextConfig(captions=form).build("text")}).warnings == ()


def test_sounds_of_several_formats_are_one_field(tmp_path: Path) -> None:
    """One sample in eight has another format, and one has no sound at all: that one alone lacks something."""
    sound = to_wav(np.full((800, 1), 0.1, np.float32))
    samples = [sample(number, wav=sound) for number in range(7)] + [sample(7, flac=sound), sample(8)]
    report = check_shards([shard(tmp_path, samples)])
    assert report.fault_counts == {"missing audio": 1}
    assert [(fault.key, fault.detail.split(", wanted ")[1].split(":")[0]) for fault in report.faults] == [
        ("s008", ".wav or .flac or .ogg or .opus or .mp3 or .m4a")
    ]


def test_members_are_compared_with_the_checksums_of_the_sidecar(tmp_path: Path) -> None:
    """One flipped bit of a caption decodes all the same; of a copy, whose time differs, too."""
    first, second = (shard(tmp_path, [sample(n) for n in range(3)], f"00000{k}.tar") for k in range(2))
    assert check_shards([tmp_path]).unverified == (str(first), str(second))
    write_sidecar(first)
    data = bytearray(first.read_bytes())
    data[data.index(b"caption number 1")] ^= 1
    first.write_bytes(data)
    os.utime(first, ns=(1, 1))
    report = check_shards([tmp_path])
    assert dict(report.fault_counts) == {"checksum txt": 1}
    (fault,) = report.faults
    assert (fault.key, fault.origin.shard) == ("s001", str(first))
    assert report.unverified == (str(second),)
    assert (
        "compared in 1 of 2 shards; without a sidecar of theirs (`mmssl shards index`): " + str(second)
        in report.table()
    )


def test_needed_modalities_are_missed_by_name_with_the_members_that_are_there(tmp_path: Path) -> None:
    samples = [sample(number, txt=None) for number in range(3)] + [sample(number) for number in range(3, 10)]
    path = shard(tmp_path, samples)
    report = check_shards([path])
    assert report.ok  # nothing says that captions are needed
    assert report.warnings == (
        "7 of 10 samples have 'text': a run that needs it refuses the others; check with --needs text, or with the recipe",
    )
    report = check_shards([path], needs=["image", "text"])
    assert found(report, "missing") == [("s000", "text"), ("s001", "text"), ("s002", "text")]
    assert report.faults[0].detail.startswith(
        "got .cls, .jpg, wanted .txt: if a member holds it, name it in `modalities.text."
    )
    assert check_shards([path], needs=["image"]).ok


def test_members_of_other_names_are_told_with_the_key(tmp_path: Path) -> None:
    other = [{"__key__": f"{number}", "input.jpg": picture(number), "outputs.txt": b"a cat"} for number in range(4)]
    path = shard(tmp_path, other)
    report = check_shards([path])
    assert [warning.split(": ")[0] for warning in report.warnings] == [".input.jpg", ".outputs.txt"]
    report = check_shards([path], needs=["image"])
    assert report.fault_counts == {"missing image": 4}
    assert report.faults[0].detail.endswith(": set `modalities.image.extensions: [input.jpg]`")


def test_optional_modalities_may_be_absent_but_not_damaged(tmp_path: Path) -> None:
    modalities = {"picture": ImageConfig(size=8).build("picture"), "text": TextConfig().build("text")}
    path = shard(tmp_path, [sample(0, txt=None), sample(1, txt=b" "), sample(2), sample(3, txt=b"caf\xe9")])
    report = check_shards([path], modalities, needs=["picture"])
    assert report.fault_counts == {"undecodable txt": 1}
    assert check_shards([path], modalities).fault_counts == {"undecodable txt": 1, "missing txt": 1, "missing text": 1}


def test_texts_are_read_as_the_manifest_of_their_shard_says(tmp_path: Path) -> None:
    paths = [shard(tmp_path / name, [sample(0, txt=b"a cat\na dog")]) for name in ("said", "unsaid")]
    record = write_shard(tmp_path / "said", "000000.tar", 0, 1, [sample(0, txt=b"a cat\na dog")])
    Manifest(tmp_path / "said", {}, (record,), formats={"txt": "lines"}).write()
    modalities = {"text": TextConfig().build("text")}
    assert [captions(check_shards([path], modalities)) for path in paths] == [2, 1]
    assert [len(check_shards([path]).warnings) for path in paths] == [0, 1]


def test_a_sidecar_of_another_shard_is_a_fault(tmp_path: Path) -> None:
    first, other = (shard(tmp_path, [sample(start + n) for n in range(3)], f"{start}.tar") for start in (0, 3))
    write_sidecar(other).rename(tmp_path / "0.tar.index.npz")
    other.unlink()
    report = check_shards([first])
    assert report.fault_counts == {"stale sidecar": 1}
    assert report.unverified == (str(first),)
    assert "lists 9 members that are not there, such as s003.cls" in report.faults[0].detail
    write_sidecar(first, force=True)
    assert check_shards([first]).ok


def test_a_shard_that_was_cut_says_what_its_sidecar_lists(tmp_path: Path) -> None:
    cut = shard(tmp_path, [sample(n) for n in range(3)])
    write_sidecar(cut)
    cut.write_bytes(cut.read_bytes()[:2048])
    report = check_shards([cut])
    assert set(report.fault_counts) >= {"stale sidecar", "damaged tar"}
    assert "this one has 2048" in next(fault.detail for fault in report.faults if fault.reason == "stale")
