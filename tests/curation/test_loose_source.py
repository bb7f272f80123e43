"""Folders and tables that are read where they lie: what packing makes of them, without the shards."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from mmssl.curation.loose_source import LooseSource
from mmssl.curation.pack import PackConfig, pack
from mmssl.data.modalities.text import TextConfig
from mmssl.data.modality import DecodeError
from mmssl.data.samples import load
from mmssl.data.shards.index import ShardIndex
from mmssl.data.stream.formats import check_formats
from tests.evaluation.world import COLOURS, png


def folder_of_classes(path: Path) -> LooseSource:
    for number, name in enumerate(["cat", "dog", "dog"]):
        (path / "data" / name).mkdir(parents=True, exist_ok=True)
        (path / "data" / name / f"{number}.png").write_bytes(png(COLOURS["red"], number))
    return LooseSource(path / "data")


def folder_of_captions(path: Path) -> LooseSource:
    (path / "data/deep").mkdir(parents=True)
    for number, text in enumerate(["one", "two\nthree"]):
        (path / f"data/deep/{number}.png").write_bytes(png(COLOURS["blue"], number))
        (path / f"data/deep/{number}.txt").write_text(text)
    return LooseSource(path / "data")


def table(path: Path) -> LooseSource:
    for number in range(2):
        (path / f"{number}.png").write_bytes(png(COLOURS["green"], number))
    (path / "pairs.csv").write_text("photo,title,key\n0.png,a  cat,first\n1.png,a dog,second\n")
    columns = {"image": "photo", "captions": ["title"]}
    return LooseSource(path / "pairs.csv", PackConfig.model_validate_json(json.dumps({"columns": columns})))


MADE = {"classes": folder_of_classes, "captions": folder_of_captions, "table": table}
KEYS = {
    "classes": ["cat/0.png", "dog/1.png", "dog/2.png"],
    "captions": ["deep/0.png", "deep/1.png"],
    "table": ["first", "second"],
}


@pytest.mark.parametrize("kind", MADE)
def test_members_are_those_of_packed_shards(tmp_path: Path, kind: str) -> None:
    source = MADE[kind](tmp_path)
    loose = source.index()
    plain = source.config.model_copy(update={"shuffle": None, "templates": ()})
    pack(source.path, tmp_path / "shards", plain)
    packed = ShardIndex.open([str(tmp_path / "shards")])
    assert len(loose) == len(packed)
    for number in range(len(packed)):
        assert loose.read(number).fields == packed.read(number).fields
        assert loose.read(number, {"png"}).fields.keys() == {"png"}
    assert [loose.key(number) for number in range(len(loose))] == KEYS[kind]


@pytest.mark.parametrize("kind", MADE)
def test_it_goes_to_workers_and_comes_back_from_json(tmp_path: Path, kind: str) -> None:
    source = MADE[kind](tmp_path)
    index = source.index()
    for other in (
        pickle.loads(pickle.dumps(index)),
        LooseSource.of_json(json.loads(json.dumps(source.as_json()))).index(),
    ):
        assert other.read(1).fields == index.read(1).fields
        assert other.digest == index.digest
    assert index.identity(0)[1:] == (KEYS[kind][0], 0)


def test_a_row_that_cannot_be_used_is_a_fault_of_its_own(tmp_path: Path) -> None:
    index = table(tmp_path).index()
    (tmp_path / "1.png").write_bytes(b"no picture")
    assert index.read(0).fields["txt"] == b"a cat"
    with pytest.raises(DecodeError, match="the file begins with b'no picture'"):
        index.read(1)
    assert index.origin(1).shard == f"line 3 of {tmp_path / 'pairs.csv'}"


def test_the_digest_follows_the_rows(tmp_path: Path) -> None:
    before = folder_of_classes(tmp_path).index().digest
    (tmp_path / "data/dog/3.png").write_bytes(png(COLOURS["red"], 3))
    assert LooseSource(tmp_path / "data").index().digest != before


@pytest.mark.parametrize("captions", ["auto", "whole", "lines"])
def test_captions_of_rows_are_those_that_the_rows_give(tmp_path: Path, captions: Any) -> None:
    """Whatever a model was trained to read in files: `whole` was refused."""
    index, text = folder_of_captions(tmp_path).index(), TextConfig(captions=captions).build("text")
    check_formats(index, {"text": text})
    assert [load(index, number, {"text": text}).values["text"] for number in range(2)] == [("one",), ("two", "three")]


def test_captions_of_other_files_are_read_as_the_settings_say() -> None:
    text = TextConfig(captions="whole").build("text")
    assert text.decode(b"two\nthree", "txt") == ("two\nthree",)
    with pytest.raises(ValueError, match=r"captions: got 'whole', but the manifest .* says 'lines'"):
        text.reading({"txt": "lines"})
