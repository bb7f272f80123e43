"""Shards of written and spoken digits: what training sees and hears is in no test, and one speaker is heard in none of it."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmssl.data.shards.index import ShardIndex
from mmssl.datasets.digit_render import CLASS_NAMES, to_wav
from tests.tools.conftest import RunTool

SPEAKERS = ("george", "theo")
NUMBERS = {"george": 8, "theo": 2}  # recordings of each digit
LABELS = np.arange(350) % 10


def inputs(folder: Path) -> list[str]:
    """Pictures whose first two pixels are their number, and recordings whose length is their own."""
    pictures = np.random.default_rng(0).integers(0, 256, (350, 28, 28), dtype=np.uint8)
    pictures[:, 0, 0], pictures[:, 0, 1] = np.arange(350) // 256, np.arange(350) % 256
    (folder / "pictures").write_bytes(
        gzip.compress(bytes((0, 0, 8, 3)) + np.array(pictures.shape, ">i4").tobytes() + pictures.tobytes())
    )
    (folder / "labels").write_bytes(
        bytes((0, 0, 8, 1)) + np.array([350], ">i4").tobytes() + LABELS.astype(np.uint8).tobytes()
    )
    with tarfile.open(folder / "speech.tar", "w") as tar:
        for speaker in SPEAKERS:
            for digit in range(10):
                for number in range(NUMBERS[speaker]):
                    data = to_wav(np.zeros((100 + digit, 1), dtype=np.float32), 8000)
                    member = tarfile.TarInfo(f"recordings/{digit}_{speaker}_{number}.wav")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return [
        "--images",
        str(folder / "pictures"),
        "--labels",
        str(folder / "labels"),
        "--speech",
        str(folder / "speech.tar"),
    ]


def read(folder: Path) -> list[dict[str, Any]]:
    index = ShardIndex.open([str(folder)])
    return [dict(index.read(i).fields) for i in range(len(index))]


def test_splits_are_disjoint_and_one_speaker_is_held_out(run_tool: RunTool, tmp_path: Path) -> None:
    given = inputs(tmp_path)
    for name in ("one", "other"):
        run_tool("pack_spoken_digits", *given, "--out", tmp_path / name)
    rows = {split: read(tmp_path / "one" / split) for split in ("train", "test_seen_speakers", "test")}
    told = {split: [json.loads(row["json"]) for row in part] for split, part in rows.items()}
    scans = [source["scan"] for part in told.values() for source in part]
    assert len(set(scans)) == len(scans)  # each scan once, in one split
    names = {split: {source["recording"] for source in part} for split, part in told.items()}
    assert not names["train"] & (names["test"] | names["test_seen_speakers"])
    assert {source["speaker"] for source in told["test"]} == {"theo"}
    assert {source["speaker"] for split in ("train", "test_seen_speakers") for source in told[split]} == {"george"}
    assert len(told["train"]) == 280
    assert len(told["test"]) == 20
    assert len(told["test_seen_speakers"]) == 50
    for split, part in rows.items():
        for row, source in zip(part, told[split], strict=True):
            digit = int(row["cls"])
            assert digit == source["digit"] == LABELS[source["scan"]] == int(source["recording"][0])
            pixels = np.asarray(Image.open(io.BytesIO(row["png"])))
            assert int(pixels[0, 0]) * 256 + int(pixels[0, 1]) == source["scan"]
            assert len(row["wav"]) == 44 + 2 * (100 + digit)
            assert CLASS_NAMES[digit] in row["txt"].decode()
    again = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.tar"))
    assert len(again) == 12
    assert all((tmp_path / "one" / path).read_bytes() == (tmp_path / "other" / path).read_bytes() for path in again)


def test_what_cannot_be_packed_is_said(run_tool: RunTool, tmp_path: Path) -> None:
    given, out = inputs(tmp_path), ("--out", tmp_path / "out")
    with pytest.raises(SystemExit, match=r"the speaker 'nobody' of \['george', 'theo'\]"):
        run_tool("pack_spoken_digits", *given, *out, "--held-out", "nobody")
    with pytest.raises(SystemExit, match="wanted an idx file of bytes with 1 dimensions"):
        run_tool("pack_spoken_digits", *given[:3], tmp_path / "pictures", *given[4:], *out)
    assert not (tmp_path / "out").exists()


def test_mismatched_digits_have_the_sounds_of_the_test_and_scans_of_other_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "tools")
    learning_data = importlib.import_module("learning_data")
    inputs(tmp_path)
    for name, wanted in (("pictures", learning_data.SCANS[0]), ("labels", learning_data.SCANS[1])):
        (tmp_path / name).rename(tmp_path / f"mnist-{wanted}")
    (tmp_path / "speech.tar").rename(tmp_path / learning_data.SPEECH)
    learning_data.pack("digits", tmp_path, tmp_path / "out", 0, 0)
    test, mismatched = (read(tmp_path / "out" / name) for name in ("test", "mismatched"))
    assert len(test) == len(mismatched) == 50, "recordings 0 to 4 of the one speaker who is not held out"
    for right, wrong in zip(test, mismatched, strict=True):
        assert right["wav"] == wrong["wav"]
        assert right["cls"] == wrong["cls"]
        assert LABELS[json.loads(right["json"])["scan"]] == int(right["cls"])
        assert LABELS[json.loads(wrong["json"])["scan"]] != int(wrong["cls"])
