"""Folders: what is no folder of classes is refused with what to pack, unless the format was named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmssl.core.errors import DataError
from mmssl.curation.pack import PackConfig, open_source, pack
from mmssl.curation.pack_report import packing_summary
from tests.curation.importers.test_known import put
from tests.curation.test_pack import picture, samples
from tests.curation.test_pack_media import media

COCO = {"images": [{"file_name": "0.jpg", "id": 0}], "annotations": [{"image_id": 0, "caption": "A kitchen."}]}
Files = dict[str, bytes | str | dict[str, Any]]
FOLDER = PackConfig(format="folder", shuffle=None)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("annotations/captions_val2017.json", COCO, "coco"),
        ("a/b/captions_val2017.json", COCO, "coco"),
        ("clotho_captions_development.csv", "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n", "clotho"),
        ("test.csv", "audiocap_id,youtube_id,start_time,caption\n", "audiocaps"),
        ("meta/esc50.csv", "filename,fold,target,category,esc10\n", "esc50"),
        ("Flickr8k.token.txt", "1_a.jpg#0\tA child .\n", "flickr"),
        ("results_20130124.token", "1.jpg#0\tA child .\n", "flickr"),
        ("dataset.json", {"images": [{"filename": "0.jpg", "split": "val", "sentences": [{"raw": "x"}]}]}, "karpathy"),
    ],
)
def test_the_folder_of_a_known_data_set_is_no_folder_of_classes(
    tmp_path: Path, name: str, content: Any, kind: str
) -> None:
    folder = put(tmp_path / "set", {name: content, "val2017/0.jpg": picture(0)})
    said = f"{folder} holds {name}, which has the format {kind}: pack {folder / name}, or insist on the folder as it is"
    with pytest.raises(DataError) as refused:
        pack(folder, tmp_path / "out")
    assert str(refused.value) == f"{said} with --format folder"
    assert open_source(folder, FOLDER).class_names == ("val2017",)


def test_other_tables_in_a_folder_of_classes_are_no_data_set(tmp_path: Path) -> None:
    files: Files = {
        "cat/0.jpg": picture(0),
        "t.csv": "path,caption\n",
        "bad.json": '{"images": [',
        "a.json": "[1]",
        "t.txt": "",
    }
    deep: Files = {"cat/a/b/coco.json": COCO, ".hidden/coco.json": COCO, "__MACOSX/coco.json": COCO}
    assert open_source(put(tmp_path / "set", {**files, **deep})).class_names == ("cat",)


def test_splits_are_no_classes(tmp_path: Path) -> None:
    names = [f"{split}/{name}/0.jpg" for split in ("train", "val") for name in ("cat", "dog")]
    folder = put(tmp_path / "imagenet", {name: picture(0) for name in names})
    with pytest.raises(DataError) as refused:
        pack(folder, tmp_path / "out")
    assert str(refused.value) == (
        f"{folder} has folders of folders with media, such as train/cat: wanted one folder a class. "
        f"Pack {folder}/train if its folders are the classes, or insist on train, val as classes with --format folder"
    )
    assert open_source(folder / "train").class_names == ("cat", "dog")
    assert open_source(folder, FOLDER).class_names == ("train", "val")


@pytest.mark.parametrize("more", ["cat/0.jpg", "dog/husky/0.jpg", "dog/0.jpg"])
def test_folders_in_the_folder_of_a_class_belong_to_it(tmp_path: Path, more: str) -> None:
    names = ("cat/tabby/0.jpg", "cat/siamese/0.jpg", more)
    source = open_source(put(tmp_path / "animals", {name: picture(0) for name in names}))
    assert source.class_names == tuple(sorted({name.split("/")[0] for name in names}))
    assert len(source) == 3


def test_each_line_of_a_text_is_a_caption(tmp_path: Path) -> None:
    texts: Files = {
        "0.txt": "a cat\n\n  two  cats \r\n",
        "1.txt": "a \u2028 dog",
        "2.json": {"caption": "one\ncaption"},
    }
    folder = put(tmp_path / "in", {**texts, **{f"{number}.jpg": picture(number) for number in range(3)}})
    manifest = pack(folder, tmp_path / "out", PackConfig(shuffle=None))
    assert [fields["txt"] for fields in samples(manifest).values()] == [b"a cat\ntwo cats", b"a dog", b"one caption"]
    assert manifest.formats == {"txt": "lines"}


def test_files_of_one_name_and_other_modalities_are_one_sample(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wav, files = media()["wav"], {"x.txt": "a bark", "y.txt": "a dog", "z.txt": "rain"}
    folder = put(tmp_path / "in", {**files, "x.wav": wav, "x.jpg": picture(0), "y.jpg": picture(1), "z.wav": wav})
    found = samples(pack(folder, tmp_path / "out", PackConfig(shuffle=None, keys="files")))
    assert {key: dict(fields) for key, fields in found.items()} == {
        "x": {"jpg": picture(0), "wav": wav, "txt": b"a bark"},
        "y": {"jpg": picture(1), "txt": b"a dog"},
        "z": {"wav": wav, "txt": b"rain"},
    }
    assert f"{folder}: 1 samples are several files of one name each, such as x.jpg and x.wav" in caplog.text


def test_files_of_one_name_in_folders_of_classes(tmp_path: Path) -> None:
    png, wav = picture(1, kind="PNG"), media()["wav"]
    put(tmp_path / "in", {"cat/0.flac": media()["flac"], "cat/0.jpg": picture(0), "dog/0.wav": wav})
    put(tmp_path / "in", {"dog/1.jpg": picture(1), "dog/1.png": png})  # two pictures: each file alone
    found = samples(pack(tmp_path / "in", tmp_path / "out", PackConfig(shuffle=None))).values()
    texts = [(*sorted(fields.keys() - {"txt", "cls"}), fields["cls"], fields["txt"]) for fields in found]
    assert texts == [
        ("flac", "jpg", b"0", b"a photo of a cat"),
        ("wav", b"1", b"a sound of a dog"),
        ("jpg", b"1", b"a photo of a dog"),
        ("png", b"1", b"a photo of a dog"),
    ]
    put(tmp_path / "in", {"dog/1.wav": wav})  # which picture belongs to it?
    with pytest.raises(DataError, match=r"1\.wav: ambiguous: 1\.jpg and 1\.png are of one modality: rename or remove"):
        pack(tmp_path / "in", tmp_path / "other")


def test_what_lacks_its_file_is_named(tmp_path: Path) -> None:
    folder = put(tmp_path / "in", {"a.jpg": picture(0), "a.txt": "a cat", "b.txt": "a dog", "c.txt": "a cow"})
    put(folder, {"a.json": {"id": 1}, "00000_stats.json": {}})
    (folder / "link.jpg").symlink_to("moved/link.jpg")
    (folder / "link.txt").write_text("a link")
    with pytest.raises(
        DataError, match=r"link\.jpg: missing_file: .*link\.jpg, a link to moved/link\.jpg: it does not exist"
    ):
        pack(folder, tmp_path / "out")
    manifest = pack(folder, tmp_path / "out", PackConfig(on_error="skip"))
    assert manifest.skipped == {"missing_file": 1}
    assert (
        "\n2 texts have no picture, sound or video of their name beside them, such as b.txt\n1 samples"
        in packing_summary(manifest)
    )
