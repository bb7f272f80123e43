"""Packing sounds and videos: by folders of classes and by tables, with a column for each modality."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from mmssl.core.errors import DataError
from mmssl.curation.check import check_shards
from mmssl.curation.pack import Columns, PackConfig, pack
from mmssl.curation.pack_formats import BadRow, check_media
from mmssl.data.media.encode import encode_clip
from pipelines import cli
from pipelines.command import guarded
from tests.curation.test_pack import picture, samples
from tests.data.modalities.test_audio import encode

PLAIN = PackConfig(shuffle=None)
SKIP = PackConfig(shuffle=None, on_error="skip")


@functools.cache
def media() -> dict[str, bytes]:
    """A short file of every sort."""
    tone = 0.3 * np.sin(np.arange(8_000) * 0.2, dtype=np.float32)[:, None]
    frames = np.zeros((4, 32, 32, 3), dtype=np.uint8)
    videos = {
        name: encode_clip(name, frames, tone[:4_000], fps=8, rate=8_000) for name in ("mp4", "webm", "mkv", "mov")
    }
    sounds = {
        "wav": encode(tone, "WAV"),
        "flac": encode(tone, "FLAC"),
        "ogg": encode(tone, "OGG", "VORBIS"),
        "opus": encode(tone, "OGG", "OPUS"),
        "mp3": encode(tone, "MP3", "MPEG_LAYER_III"),
        "m4a": encode_clip("m4a", None, tone, rate=8_000),
    }
    return {"jpg": picture(0), "png": picture(0, kind="PNG"), **sounds, **videos}


def write(folder: Path, **lines: str) -> None:
    """A file of every sort, `a.<extension>`, and tables with these names."""
    for name, data in media().items():
        (folder / f"a.{name}").write_bytes(data)
    for name, text in lines.items():
        (folder / f"{name}.csv").write_text(text, "utf-8")


def test_every_sort_is_packed_from_folders_and_passes_the_audit(tmp_path: Path) -> None:
    for number, (name, data) in enumerate(media().items()):
        folder = tmp_path / "source" / ("one", "two")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.{name}").write_bytes(data)
    manifest = pack(tmp_path / "source", tmp_path / "out", PLAIN)
    found = {name: data for fields in samples(manifest).values() for name, data in fields.items() if name in media()}
    assert found == media()
    report = check_shards([tmp_path / "out"], required=("cls",))
    assert (report.ok, report.faults) == (True, ())
    assert report.modalities["audio"].figures["seconds"].count == 10
    assert report.modalities["video"].members == 4


@pytest.mark.parametrize("name", [name for name in media() if name != "jpg"])
def test_the_sort_of_bytes_without_a_name_is_found(name: str) -> None:
    assert check_media("row", None, media()[name]) == (name, media()[name])


@pytest.mark.parametrize(
    ("name", "content"),
    [("mp4", "jpg"), ("mp4", "wav"), ("webm", "mp3"), ("wav", "png"), ("mp3", "jpg"), ("jpg", "mp4"), ("jpg", "m4a")],
)
def test_a_name_that_the_bytes_belie_is_refused(name: str, content: str) -> None:
    with pytest.raises(
        BadRow, match=f"undecodable: the file begins with .*, like a {content} file, wanted a {name} file"
    ):
        check_media("row", name, media()[content])


def test_names_of_the_same_sort_are_taken(tmp_path: Path) -> None:
    for name, content in (("mp4", "mov"), ("mkv", "webm"), ("ogg", "opus"), ("wav", "flac"), ("m4a", "mp4")):
        assert check_media("row", name, media()[content]) == (name, media()[content])
    for name in ("mp3", "mp4"):
        with pytest.raises(BadRow, match="undecodable"):
            check_media("row", name, b"<html>not found</html>")


def test_a_table_with_a_column_for_each_modality(tmp_path: Path) -> None:
    rows = ["a.jpg,a.wav,a.webm,all three", "a.png,,a.mp4,mute", ",a.opus, ,heard alone"]
    write(tmp_path, t="\n".join(["image,audio,video,caption", *rows]))
    found = samples(pack(tmp_path / "t.csv", tmp_path / "out", PLAIN))
    assert [sorted(found[key]) for key in "012"] == [
        ["jpg", "txt", "wav", "webm"],
        ["mp4", "png", "txt"],
        ["opus", "txt"],
    ]
    assert found["1"]["mp4"] == media()["mp4"]


def test_a_row_without_any_medium_or_with_another_is_named(tmp_path: Path) -> None:
    rows = ["a.jpg,a.wav,fine", ",,nothing", "a.jpg,a.png,a picture for a sound", "a.mp4,,a video for a picture"]
    write(tmp_path, t="\n".join(["image,audio,caption", *rows]))
    manifest = pack(tmp_path / "t.csv", tmp_path / "out", SKIP)
    skipped = {row["where"].split(" of ")[0]: (row["reason"], row["detail"]) for row in manifest.shards[0].skipped}
    assert skipped["line 3"] == ("missing_file", "got empty cells in 'image', 'audio', wanted a file in at least one")
    assert skipped["line 4"][0] == skipped["line 5"][0] == "unsupported"
    assert skipped["line 4"][1].startswith("got a .png file, wanted a sound: wav, flac")
    assert skipped["line 5"][1].startswith("got a .mp4 file, wanted a picture: jpg")


def test_columns_that_are_named(tmp_path: Path) -> None:
    write(tmp_path, t="photo,recording,image,title\na.jpg,a.mp4,ignored,hello\n")
    columns = Columns(image="photo", audio="recording", captions=("title",))
    found = samples(pack(tmp_path / "t.csv", tmp_path / "out", PackConfig(columns=columns)))
    assert sorted(found["0"]) == ["jpg", "mp4", "txt"]
    for columns, message in (
        (Columns(image="foto"), "has no column 'foto', did you mean 'photo'"),
        (Columns(image="photo", audio="photo"), "column 'photo' of .* is named for two media"),
        (Columns(files=("photo", "image")), "unsupported: .*ignored ends in ''"),
    ):
        with pytest.raises(DataError, match=message):
            pack(tmp_path / "t.csv", tmp_path / "bad", PackConfig(columns=columns))


def test_columns_on_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def command(out: str, *columns: str) -> int:
        named = [f"--column={column}" for column in columns]
        return guarded(cli.full(), ["shards", "pack", str(tmp_path / "t.csv"), str(tmp_path / out), *named])

    write(tmp_path, t="photo,recording,title,more\na.jpg,a.flac,hello,again\n")
    assert command("out", "image=photo", "audio=recording", "caption=title", "caption=more") == 0
    settings = json.loads((tmp_path / "out/manifest.json").read_text())["settings"]
    assert settings["columns"]["captions"] == ["title", "more"]
    capfd.readouterr()
    for wrong, said in (("image", "MEANING=NAME"), ("imgae=photo", "did you mean 'image'"), ("label=", "MEANING=NAME")):
        assert command("bad", wrong) == 2
        assert said in capfd.readouterr().err
