"""Leakage: equal files, pictures saved again, and captions are found in training shards; what is new is not."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmssl.curation.leakage import find_leaks
from pipelines import cli
from pipelines.command import guarded
from tests.evaluation.world import write_shard


def picture(seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((64, 48), Image.Resampling.BICUBIC)


def saved(image: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


@pytest.fixture
def shards(tmp_path: Path) -> tuple[str, str]:
    """Of five test samples training has the first as it is, the second smaller and as JPEG, and the caption of the third."""
    test = [(f"test{i}", {"png": saved(picture(i)), "txt": f"caption {i}".encode()}) for i in range(4)]
    test.append(("test4", {"png": b"no picture", "txt": b"caption 4"}))
    train = [(f"train{i}", {"png": saved(picture(100 + i)), "txt": f"training {i}".encode()}) for i in range(5)]
    train[1][1]["png"] = test[0][1]["png"]
    train[2] = ("train2", {"jpg": saved(picture(1).resize((40, 30)), "JPEG"), "txt": b"other"})
    train[3][1]["txt"] = b"  Caption  2 "
    return tuple(str(write_shard(tmp_path / f"{n}/0.tar", s)) for n, s in (("train", train), ("test", test)))  # type: ignore


def test_what_training_has_of_the_test_set_is_found(shards: tuple[str, str]) -> None:
    seen: list[tuple[int, int]] = []
    report = find_leaks([shards[0]], [shards[1]], progress=lambda done, total: seen.append((done, total)))
    found = {(leak.kind, leak.field, leak.test.split()[0], leak.train.split()[0]) for leak in report.leaks}
    assert found == {
        ("equal", "png", "test0", "train1"),
        ("alike", "png", "test1", "train2"),
        ("caption", "txt", "test2", "train3"),
    }
    assert (report.test, report.train, report.unreadable) == (5, 5, 1)
    assert report.counts() == {"equal": 1, "alike": 1, "caption": 1}
    assert not report.ok
    assert seen[-1] == (10, 10)


def test_nothing_in_common_is_fine(shards: tuple[str, str], tmp_path: Path) -> None:
    other = str(write_shard(tmp_path / "other/0.tar", [("x", {"png": saved(picture(500)), "txt": b"caption 2"})]))
    report = find_leaks([other], [shards[1]])
    assert report.ok, "an equal caption alone is no proof"
    assert report.counts() == {"equal": 0, "alike": 0, "caption": 1}


def test_the_verb_says_which_and_exits_with_three(
    shards: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "leaks.json"
    assert guarded(cli.full(), ["shards", "check", shards[0], "--against", shards[1], "--json", str(out)]) == 3
    said = capsys.readouterr().out
    assert "5 test samples against 5 training samples" in said
    assert f".png of test0 of {shards[1]} is in train1 of {shards[0]}" in said
    assert len(json.loads(out.read_text())["leaks"]) == 3
