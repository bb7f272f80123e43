"""What a text file is, is said by the manifest of its shards or by the recipe; it is never guessed."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import pytest

from mmssl.core.errors import DataError
from mmssl.data.modalities.text import TextConfig
from mmssl.data.modality import Modality
from mmssl.data.samples import load
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.manifests import read_formats
from mmssl.data.shards.writer import Manifest, write_shard
from mmssl.data.stream.batches import EvalStream, TrainStream
from mmssl.data.stream.sources import Source

FIVE = b"one cat\ntwo cats\nthree cats\nfour cats\nfive cats"
ONE = b"a cat"
NEEDS = {"text": {"eval": 1}}


def text(captions: str = "auto") -> dict[str, Modality]:
    return {"text": TextConfig.model_validate({"captions": captions}).build("text")}


def shards(folder: Path, texts: list[bytes], formats: Mapping[str, str] | None, name: str = "000000.tar") -> ShardIndex:
    samples = [{"__key__": f"{number:04d}", "txt": data} for number, data in enumerate(texts)]
    record = write_shard(folder, name, 0, len(texts), samples)
    if formats is not None:
        Manifest(folder, {}, (record,), formats=formats).write()
    return ShardIndex.open([folder / name], source=folder.name)


def captions(index: ShardIndex, modalities: Mapping[str, Modality]) -> int:
    (batch,) = EvalStream(index, modalities, NEEDS, len(index), rank=0, world=1)
    return int(batch.lengths["text"].sum())


def test_a_run_reads_texts_as_their_manifest_says(tmp_path: Path) -> None:
    lines = shards(tmp_path / "lines", [FIVE] * 3, {"txt": "lines"})
    whole = shards(tmp_path / "whole", [FIVE] * 3, {"txt": "whole"})
    assert captions(lines, text()) == 15
    assert captions(whole, text()) == 3
    assert [tuple(load(one, 0, text()).values["text"]) for one in (lines, whole)] == [
        ("one cat", "two cats", "three cats", "four cats", "five cats"),
        (FIVE.decode(),),
    ]


def test_sources_of_a_mixture_are_read_each_in_its_way(tmp_path: Path) -> None:
    sources = [
        Source(shards(tmp_path / "lines", [FIVE] * 4, {"txt": "lines"}), 1.0),
        Source(shards(tmp_path / "whole", [ONE] * 4, {"txt": "whole"}), 1.0),
    ]
    stream = TrainStream(sources, text(), NEEDS, batch_size=8, seed=0, rank=0, world=1)
    batch = next(stream)
    found = dict(zip(batch.index.tolist(), batch.lengths["text"].tolist(), strict=True))
    assert {number < 4 for number in found} == {True, False}  # of both sources
    assert found == {number: 5 if number < 4 else 1 for number in found}
    stream.close()


@pytest.mark.parametrize(
    ("said", "setting", "items"), [("lines", "lines", 10), ("whole", "lines", 2), ("whole", "whole", 2)]
)
def test_settings_that_agree_with_the_manifest(tmp_path: Path, said: str, setting: str, items: int) -> None:
    texts = [FIVE if said == "lines" else ONE] * 2
    assert captions(shards(tmp_path / "a", texts, {"txt": said}), text(setting)) == items


@pytest.mark.parametrize(
    ("said", "setting", "message"),
    [
        (
            "lines",
            "whole",
            r"modalities.text.captions: got 'whole', .* says 'lines' of .txt \(one caption a line\): set it to auto",
        ),
        ("poems", "auto", r"modalities.text.captions: got 'auto', .* says 'poems' of .txt \(unknown here\)"),
    ],
)
def test_settings_that_contradict_the_manifest_are_refused(
    tmp_path: Path, said: str, setting: str, message: str
) -> None:
    index = shards(tmp_path / "a", [FIVE] * 2, {"txt": said})
    with pytest.raises(DataError, match=message) as caught:
        TrainStream(index, text(setting), NEEDS, batch_size=1, seed=0, rank=0, world=1)
    assert str(tmp_path / "a" / "000000.tar") in str(caught.value)
    with pytest.raises(DataError, match=message):
        EvalStream(index, text(setting), NEEDS, 1, rank=0, world=1)


@pytest.mark.parametrize("json_of", [None, {"shards": "of another program"}])
def test_texts_of_several_lines_without_a_manifest_are_refused(tmp_path: Path, json_of: object) -> None:
    index = shards(tmp_path / "a", [FIVE] * 3 + [ONE] * 3, None)
    if json_of is not None:
        (tmp_path / "a" / "manifest.json").write_text(json.dumps(json_of))
        index = ShardIndex.open([tmp_path / "a"])
    with pytest.raises(
        DataError, match=r"modalities.text.captions: 3 of the first 6 texts have several lines.* lines, or to whole"
    ):
        captions(index, text())
    assert captions(index, text("whole")) == 6
    assert captions(index, text("lines")) == 18


def test_a_rare_line_break_without_a_manifest_is_part_of_the_caption(tmp_path: Path) -> None:
    index = shards(tmp_path / "a", [ONE] * 19 + [b"a cat\non a mat"], None)
    assert captions(index, text()) == 20
    assert load(index, 19, text()).values["text"] == ("a cat\non a mat",)


def test_texts_of_each_folder_are_looked_at(tmp_path: Path) -> None:
    shards(tmp_path / "a", [ONE] * 50, None)
    shards(tmp_path / "b", [FIVE] * 2, None)
    shards(tmp_path / "c", [FIVE] * 2, {"txt": "lines"})
    with pytest.raises(DataError, match="2 of the first 2 texts") as caught:
        captions(ShardIndex.open([tmp_path / name for name in "cab"]), text())
    assert str(tmp_path / "b" / "000000.tar") in str(caught.value)


def test_one_manifest_may_stand_above_several_splits(tmp_path: Path) -> None:
    record = write_shard(tmp_path, "test/000000.tar", 0, 1, [{"__key__": "0", "txt": FIVE}])
    Manifest(tmp_path, {}, (record,), formats={"txt": "lines"}).write()
    shards(tmp_path / "test", [FIVE], None, "stranger.tar")
    paths = [tmp_path / "test" / name for name in ("000000.tar", "stranger.tar")]
    assert read_formats(paths) == ({"txt": "lines"}, {})


def test_looking_keeps_no_file_open(tmp_path: Path) -> None:
    index = shards(tmp_path / "a", [ONE] * 2, None)
    stream = TrainStream(index, text(), {"text": {"tokens": 1}}, batch_size=1, seed=0, rank=0, world=1)
    (tmp_path / "a" / "000000.tar").unlink()
    with pytest.raises(DataError, match="cannot read"):
        next(stream)


def test_workers_know_the_formats(tmp_path: Path) -> None:
    index = pickle.loads(pickle.dumps(shards(tmp_path / "a", [FIVE] * 4, {"txt": "lines"})))
    assert len(load(index, 0, text()).values["text"]) == 5
