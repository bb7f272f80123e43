"""`mmssl shards check RECIPE` and a run agree: what the run refuses, the check reports."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmssl.data.shards.writer import Manifest, write_shard
from pipelines import cli
from pipelines.command import guarded
from tests.pipelines.conftest import World


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), (200, 10 * number, 30)).save(file, "jpeg")
    return file.getvalue()


def good(count: int) -> list[dict[str, Any]]:
    return [{"__key__": f"{i:04d}", "jpg": picture(i), "txt": f"number {i}".encode()} for i in range(count)]


def renamed(samples: list[dict[str, Any]], names: dict[str, str]) -> list[dict[str, Any]]:
    return [{names.get(name, name): value for name, value in sample.items()} for sample in samples]


def without(samples: list[dict[str, Any]], name: str, count: int) -> list[dict[str, Any]]:
    return [{k: v for k, v in one.items() if k != name or i >= count} for i, one in enumerate(samples)]


def lines(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**sample, "txt": b"one cat\ntwo cats"} for sample in samples]


REFUSED: dict[str, tuple[list[dict[str, Any]], str]] = {
    "other names": (
        renamed(good(16), {"jpg": "input.jpg", "txt": "outputs.txt"}),
        ": set `modalities.image.extensions: [input.jpg]`",
    ),
    "json in place of text": (renamed(good(16), {"txt": "json"}), "`modalities.text.extensions`"),
    "three of them without text": (without(good(16), "txt", 3), "fault: 3 x missing text"),
    "texts of several lines": (
        lines(good(16)),
        "modalities.text.captions: 16 of the first 16 texts have several lines",
    ),
    "a damaged picture": ([*good(15), {"__key__": "0015", "jpg": b"none", "txt": b"x"}], "fault: 1 x undecodable jpg"),
    "too few": (good(3), "the run refuses: data: "),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_run_refuses_is_reported(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str], what: str
) -> None:
    samples, sentence = REFUSED[what]
    write_shard(tmp_path, "000000.tar", 0, len(samples), samples)
    where = f"data.shards=[{json.dumps(str(tmp_path))}]"
    assert world.pretrain(where, f"output={tmp_path}", "duration=2 epochs", "evaluators={}") == 3
    capfd.readouterr()
    assert world.mmssl("shards", "check", world.recipe, where, "evaluators={}") == 3
    assert sentence in capfd.readouterr().out


def test_a_good_recipe_passes_with_its_settings(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_shard(tmp_path / "a", "0.tar", 0, 16, lines(renamed(good(16), {"jpg": "input.jpg"})))
    write_shard(tmp_path / "b", "0.tar", 0, 4, without(renamed(good(4), {"jpg": "input.jpg"}), "txt", 4))
    sources = {name: {"shards": [str(tmp_path / name)]} for name in "ab"}
    settings = (
        f"data={{sources: {json.dumps(sources)}, optional: [text]}}",
        "modalities.image.extensions=[input.jpg]",
        "modalities.text.captions=lines",
        "evaluators={}",
    )
    out = tmp_path / "found.json"
    assert world.mmssl("shards", "check", world.recipe, *settings, "--json", out) == 0
    said = capfd.readouterr().out
    assert "source a" in said
    assert "source b" in said
    found = json.loads(out.read_text())
    assert (found["ok"], found["refused"], list(found["sources"])) == (True, [], ["a", "b"])
    assert found["sources"]["a"]["modalities"]["text"]["figures"]["words"]["count"] == 32
    assert world.mmssl("shards", "check", world.recipe, *settings[1:], settings[0].replace("[text]", "[]")) == 3
    assert "fault: 4 x missing text" in capfd.readouterr().out


def test_evaluators_and_missing_sources_are_part_of_the_run(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert world.mmssl("shards", "check", world.recipe) == 0
    capfd.readouterr()
    lost = "evaluators={r: {kind: retrieval, shards: [nothing.tar], pair: [image, text]}}"
    assert world.mmssl("shards", "check", world.recipe, lost, 'data.shards=["nowhere.tar"]') == 3
    said = capfd.readouterr().out
    assert "the run refuses: evaluators.r: no such shard" in said
    assert "nowhere.tar" in said


def test_shards_of_evaluators_are_decoded(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_shard(tmp_path, "0.tar", 0, 8, [*good(7), {"__key__": "7", "jpg": b"none", "txt": b"x", "wav": b"unread"}])
    pair = f"kind: retrieval, shards: [{json.dumps(str(tmp_path))}], pair: [image, text]"
    assert world.mmssl("shards", "check", world.recipe, f"evaluators={{r: {{{pair}}}, s: {{{pair}}}}}") == 3
    said = capfd.readouterr().out
    assert f"evaluators.r: {tmp_path}\n" in said
    assert f"evaluators.s: {tmp_path}\n" in said
    assert said.count("fault: 1 x undecodable jpg") == 2
    assert "undecodable wav" not in said


def test_shards_alone_with_needs_and_manifest(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_shard(tmp_path, "0.tar", 0, 10, without(good(10), "txt", 3))
    assert world.mmssl("shards", "check", tmp_path) == 0
    assert world.mmssl("shards", "check", tmp_path, "--needs", "image,text") == 3
    assert "fault: 3 x missing text" in capfd.readouterr().out
    assert world.mmssl("shards", "check", tmp_path, "--needs", "image,txt") == 2
    assert "--needs: got 'txt'" in capfd.readouterr().err
    record = write_shard(tmp_path, "1.tar", 0, 10, good(10))
    Manifest(tmp_path, {}, (record,)).write()
    assert world.mmssl("shards", "check", tmp_path / "1.tar", "--against-manifest") == 0
    out = tmp_path / "found.json"
    assert world.mmssl("shards", "check", tmp_path, "--against-manifest", "--json", out) == 3
    assert json.loads(out.read_text())["fault_counts"] == {"extra tar": 1, "missing txt": 3}
    assert "fault: 1 x extra tar" in capfd.readouterr().out
    assert world.mmssl("shards", "check", world.recipe, "--needs", "image") == 2


@pytest.mark.parametrize("verb", ["check", "stats"])
def test_a_shipped_recipe_with_a_typing_mistake_is_proposed(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert guarded(cli.full(), ["shards", verb, "image_text/vit_b32"]) == 2
    assert "no shipped recipe, did you mean 'image_text/vit_b_32'?" in capfd.readouterr().err.replace("\n", " ")
    assert guarded(cli.full(), ["shards", verb, "shards/train"]) == 3
    assert "no such shard" in capfd.readouterr().err
