"""Figures of shards: those that can be known beforehand."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmssl.core.errors import DataError
from mmssl.curation.stats import measure_shards
from mmssl.data.modalities.usual import usual_modalities
from mmssl.data.shards.writer import write_shard
from mmssl.datasets import moving_scenes
from pipelines import cli
from pipelines.command import guarded
from tests.data.servers import serve


def picture(red: int, green: int, blue: int, size: tuple[int, int]) -> bytes:
    """Left half of that colour, right half black."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, : size[0] // 2] = (red, green, blue)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def make(folder: Path, count: int = 8) -> Path:
    samples = [
        {
            "__key__": f"{number}",
            "png": picture(204, 102, 51 if number % 2 else 255, (8 + number, 4) if number % 2 else (8, 4)),
            "txt": b"a b c" if number % 2 else b"a",
            "cls": str(number % 3).encode(),
        }
        for number in range(count)
    ]
    write_shard(folder, "000000.tar", 0, 5, samples[:5])
    write_shard(folder, "000001.tar", 5, count, samples[5:])
    return folder


def test_known_figures(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = measure_shards([make(tmp_path)], progress=lambda done, total: calls.append((done, total)))
    assert (report.shards, report.samples, report.sampled, report.undecodable) == (2, 8, 8, 0)
    assert report.bytes == sum(path.stat().st_size for path in tmp_path.glob("*.tar"))
    assert calls == [(8, 8)]
    # Half of each picture is coloured: mean c / 2, mean square c^2 / 2. Odd widths round down: 4, 4, 5 of 9, 5 of 11 ...
    shares = np.array([0.5 if number % 2 == 0 else ((8 + number) // 2) / (8 + number) for number in range(8)])
    colours = np.array([[0.8, 0.4, 0.2 if number % 2 else 1.0] for number in range(8)])
    mean = (shares[:, None] * colours).mean(0)
    std = np.sqrt((shares[:, None] * colours**2).mean(0) - mean**2)
    image, text = report.modalities["image"], report.modalities["text"].figures
    np.testing.assert_allclose(image.mean or (), mean, atol=1e-6)
    np.testing.assert_allclose(image.std or (), std, atol=1e-6)
    assert (image.figures["width"].minimum, image.figures["width"].maximum, image.figures["height"].mean) == (8, 15, 4)
    assert (text["words"].count, text["words"].mean, text["words"].maximum) == (8, 2, 3)
    assert (text["tokens"].minimum, text["tokens"].maximum) == (3, 5)  # with start and end
    assert report.modalities["label"].counted == {"class": {0: 3, 1: 3, 2: 2}}
    assert report.fields["txt"].mean == 3
    assert report.fields["cls"].count == 8
    assert report.rate == pytest.approx(1 / (1 / report.read_rate + 1 / report.decode_rate))
    assert "samples/s on one thread" in report.table()
    assert json.loads(report.to_json())["samples"] == 8


def test_a_part_is_spread_over_all_shards(tmp_path: Path) -> None:
    report = measure_shards([make(tmp_path)], sample=2)
    assert report.sampled == 2
    assert report.modalities["label"].counted == {"class": {0: 1, 1: 1}}  # the first and the last of all
    assert report.fields["png"].count == 8


def test_what_cannot_be_decoded_is_counted(tmp_path: Path) -> None:
    samples = [{"__key__": "a", "jpg": b"nonsense", "txt": b"x"}, {"__key__": "b", "wav": b"?", "txt": b""}]
    write_shard(tmp_path, "000000.tar", 0, 2, samples)
    report = measure_shards([tmp_path])
    assert report.undecodable == 2
    assert report.modalities.keys() == {"text"}
    assert "2 members: see `mmssl shards check`" in report.table()


def test_a_modality_that_is_named_and_in_no_sample_is_told(tmp_path: Path) -> None:
    named = {kind: usual_modalities()[kind] for kind in ("image", "array")}
    report = measure_shards([make(tmp_path)], named)
    assert (set(report.modalities), set(report.lacking)) == ({"image"}, {"array"})
    assert "array in none" in report.table()
    assert "got .cls, .png, .txt, wanted .npy or .npz" in report.lacking["array"]
    assert "modalities.array.extensions" in report.lacking["array"]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wanted at least 1"):
        measure_shards([make(tmp_path)], sample=0)
    with pytest.raises(DataError, match="no such shard"):
        measure_shards([tmp_path / "gone.tar"])


def test_sounds_and_videos_are_measured(tmp_path: Path) -> None:
    moving_scenes.write(tmp_path, train=6, validation=0, test=0, shards=1, wav=True)
    report = measure_shards([tmp_path / "train"])
    assert report.undecodable == 0
    audio, video = report.modalities["audio"], report.modalities["video"].figures
    assert (audio.members, audio.counted) == (12, {"rate (Hz)": {16_000: 12}, "channels": {2: 12}})
    assert audio.figures["seconds"].median == pytest.approx(2, abs=0.01)
    assert -40 < (audio.figures["level (dB)"].mean or 0) < -10
    assert video["seconds"].mean == pytest.approx(2)
    assert video["frames a second"].mean == pytest.approx(15)
    assert (video["width"].mean, video["height"].mean) == (64, 64)
    assert all(words in report.table() for words in ("16000: 12", "video frames a second", "video width"))


def test_remote_shards_have_the_same_figures(tmp_path: Path) -> None:
    folder = make(tmp_path / "near")
    with serve() as server:
        server.files |= {f"/{path.name}": path.read_bytes() for path in folder.glob("*.tar")}
        out = tmp_path / "stats.json"
        options = ["--cache", str(tmp_path / "cache"), "--json", str(out)]
        assert guarded(cli.full(), ["shards", "stats", f"{server.url}/{{000000..000001}}.tar", *options]) == 0
    rates = {"read_rate", "decode_rate", "rate"}
    here, there = json.loads(measure_shards([folder]).to_json()), json.loads(out.read_text())
    assert {k: v for k, v in there.items() if k not in rates} == {k: v for k, v in here.items() if k not in rates}
    assert list((tmp_path / "cache").rglob("*"))


def test_series_of_a_recipe_are_read_with_its_axes_and_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """[channel, time] of nearly as many channels as times: no shape tells which is which."""
    series = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    file, out = io.BytesIO(), tmp_path / "stats.json"
    np.save(file, series)
    write_shard(
        tmp_path / "shards", "000000.tar", 0, 4, [{"__key__": str(i), "npy": file.getvalue()} for i in range(4)]
    )
    recipe = ["series/mae_small", f"data.shards=[{tmp_path / 'shards'}]", "modalities.series.axes=[channel, time]"]
    assert guarded(cli.full(), ["shards", "stats", *recipe, "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "source train\n" in shown
    assert "series seconds" in shown
    figures = json.loads(out.read_text())["sources"]["train"]["modalities"]["series"]
    assert figures["figures"]["seconds"]["mean"] == pytest.approx(6 / 100)
    np.testing.assert_allclose(figures["mean"], series.mean(1), atol=1e-6)
    for option in ("--front-end=mel", f"--cache={tmp_path}"):
        assert guarded(cli.full(), ["shards", "stats", *recipe, option]) == 2
        assert "no effect beside a recipe" in " ".join(capsys.readouterr().err.split())
