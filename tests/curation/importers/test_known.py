"""Known data sets, each written as it is distributed, are recognised by their contents and packed whole."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmssl.core.errors import DataError
from mmssl.curation.importers.registry import FORMATS, KNOWN
from mmssl.curation.pack import PackConfig, pack
from mmssl.data.shards.writer import Manifest, read_manifest
from pipelines.pack import FORMATS as LISTED
from tests.curation.test_pack import picture, samples
from tests.curation.test_pack_media import media


def put(root: Path, files: Mapping[str, bytes | str | dict[str, Any]]) -> Path:
    """Write files below a folder: bytes, text, or JSON."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return root


def packed(source: Path, kind: str, root: Path | None = None, **settings: Any) -> list[dict[str, str]]:
    """The texts and classes of the samples, in the order of the source, and the extension of their medium."""
    out = source.parent / "packed"
    manifest: Manifest = pack(source, out, PackConfig(shuffle=None, **settings), root=root, overwrite=True)
    assert manifest.settings["source"]["kind"] == kind
    found = [dict(fields) for _, fields in sorted(samples(manifest).items())]
    texts = [{name: fields[name].decode() for name in fields.keys() & {"txt", "cls"}} for fields in found]
    return [
        {**text, "medium": next(iter(fields.keys() - {"txt", "cls", "json", "npy"}))}
        for text, fields in zip(texts, found, strict=True)
    ]


def test_coco_captions(tmp_path: Path) -> None:
    document = {
        "info": {"year": 2017},
        "images": [
            {"license": 4, "file_name": "000000397133.jpg", "height": 12, "width": 16, "id": 397133},
            {"license": 1, "file_name": "000000037777.jpg", "height": 12, "width": 16, "id": 37777},
        ],
        "licenses": [{"id": 1, "name": "x"}],
        "annotations": [
            {"image_id": 37777, "id": 1, "caption": "A kitchen."},
            {"image_id": 397133, "id": 2, "caption": "A man cooks.\n"},
            {"image_id": 37777, "id": 3, "caption": "A small kitchen."},
        ],
    }
    put(tmp_path, {"annotations/captions_val2017.json": document})
    put(tmp_path, {"val2017/000000397133.jpg": picture(0), "val2017/000000037777.jpg": picture(1)})
    source = tmp_path / "annotations/captions_val2017.json"
    wanted = [
        {"medium": "jpg", "txt": "A man cooks."},
        {"medium": "jpg", "txt": "A kitchen.\nA small kitchen."},
    ]
    assert packed(source, "coco") == wanted
    (tmp_path / "val2017").rename(tmp_path / "elsewhere")
    assert packed(source, "coco", tmp_path / "elsewhere", metadata=True) == wanted


def test_a_picture_without_captions_is_named(tmp_path: Path) -> None:
    document = {
        "images": [{"file_name": "0.jpg", "id": 7}, {"file_name": "1.jpg", "id": 8}],
        "annotations": [{"image_id": 8, "caption": "x"}],
    }
    put(tmp_path, {"captions.json": document, "0.jpg": picture(0), "1.jpg": picture(1)})
    with pytest.raises(DataError, match=r"picture 7 of .*captions\.json: empty_caption"):
        pack(tmp_path / "captions.json", tmp_path / "out", PackConfig(shuffle=None))


def test_captions_of_a_picture_that_is_not_listed_are_named(tmp_path: Path) -> None:
    document = {
        "images": [{"file_name": "1.jpg", "id": 8}],
        "annotations": [{"image_id": 8, "caption": "x"}, {"image_id": 9, "caption": "y"}],
    }
    put(tmp_path, {"captions.json": document, "1.jpg": picture(1)})
    with pytest.raises(DataError, match=r"picture 9 of .*captions\.json.*missing_file"):
        pack(tmp_path / "captions.json", tmp_path / "out", PackConfig(shuffle=None))


def test_karpathy_splits(tmp_path: Path) -> None:
    def image(name: str, split: str, *texts: str, **more: Any) -> dict[str, Any]:
        sentences = [{"tokens": text.split(), "raw": text, "imgid": 0, "sentid": 0} for text in texts]
        return {"sentids": [0], "imgid": 0, "sentences": sentences, "split": split, "filename": name, **more}

    images = [
        image("1.jpg", "train", "one"),
        image("2.jpg", "test", "two", "second of two"),
        image("3.jpg", "restval", "three", filepath="val2014", cocoid=3),
    ]
    put(tmp_path, {"dataset_coco.json": {"images": images, "dataset": "coco"}})
    put(tmp_path, {"1.jpg": picture(0), "2.jpg": picture(1), "val2014/3.jpg": picture(2)})
    source = tmp_path / "dataset_coco.json"
    assert packed(source, "karpathy", split="test") == [{"medium": "jpg", "txt": "two\nsecond of two"}]
    both = packed(source, "karpathy", where="split in [train, restval]")
    assert [one["txt"] for one in both] == ["one", "three"]
    with pytest.raises(DataError, match=r"has the splits \['restval', 'test', 'train'\]: name one \(--split restval\)"):
        pack(source, tmp_path / "out")


def test_flickr_tokens(tmp_path: Path) -> None:
    text = '1_a.jpg#0\tA child .\n1_a.jpg#1\tA "girl" in pink .\n2_b.jpg#0\t"Quoted" start .\n'
    put(tmp_path, {"Flickr8k.token.txt": text, "Flicker8k_Dataset/1_a.jpg": picture(0)})
    put(tmp_path, {"Flicker8k_Dataset/2_b.jpg": picture(1)})
    assert [one["txt"] for one in packed(tmp_path / "Flickr8k.token.txt", "flickr")] == [
        'A child .\nA "girl" in pink .',
        '"Quoted" start .',
    ]


def test_flickr_results(tmp_path: Path) -> None:
    text = (
        'image_name| comment_number| comment\n1.jpg| 0| Two men , "young" .\n1.jpg| 1| Men|women .\n2.jpg| 0| A dog .\n'
    )
    put(tmp_path, {"results.csv": text.replace("Men|women", "Men; women"), "flickr30k_images/1.jpg": picture(0)})
    put(tmp_path, {"flickr30k_images/2.jpg": picture(1)})
    assert [one["txt"] for one in packed(tmp_path / "results.csv", "flickr")] == [
        'Two men , "young" .\nMen; women .',
        "A dog .",
    ]
    broken = put(tmp_path, {"results.csv": text.replace("1.jpg| 0|", "1.jpg| 0 ")}) / "results.csv"
    with pytest.raises(DataError, match=r"line 2 of .*results\.csv: malformed_row: got 2 values, wanted 3"):
        pack(broken, tmp_path / "out", PackConfig(shuffle=None))


def test_audiocaps(tmp_path: Path) -> None:
    text = 'audiocap_id,youtube_id,start_time,caption\n1,abc,30,A man talks\n2,-de,0,"Rain, then wind"\n3,abc,30,Talk\n'
    put(tmp_path, {"test.csv": text, "wavs/Yabc.wav": media()["wav"], "wavs/-de_0.flac": media()["flac"]})
    assert packed(tmp_path / "test.csv", "audiocaps") == [
        {"medium": "wav", "txt": "A man talks\nTalk"},
        {"medium": "flac", "txt": "Rain, then wind"},
    ]
    assert len(packed(tmp_path / "test.csv", "audiocaps", group_by="rows")) == 3
    put(tmp_path, {"wavs/abc.mp4": media()["mp4"], "other/abc.wav": media()["wav"]})
    with pytest.raises(DataError, match=r"has other/abc\.wav and wavs/abc\.mp4 for 'abc': name a folder with one"):
        pack(tmp_path / "test.csv", tmp_path / "out")
    with pytest.raises(DataError, match=r"missing_file: .*abc\.wav"):
        pack(tmp_path / "test.csv", tmp_path / "out", PackConfig(shuffle=None), root=tmp_path / "none")


def test_clotho(tmp_path: Path) -> None:
    captions = ",".join(f"text {number}" for number in range(1, 6))
    header = "file_name," + ",".join(f"caption_{number}" for number in range(1, 6))
    put(tmp_path, {"clotho_captions_development.csv": f"{header}\nBirds (1).wav,{captions}\n"})
    put(tmp_path, {"development/Birds (1).wav": media()["wav"]})
    (one,) = packed(tmp_path / "clotho_captions_development.csv", "clotho")
    assert one["txt"].split("\n") == [f"text {number}" for number in range(1, 6)]


def test_esc50_by_folds(tmp_path: Path) -> None:
    text = """filename,fold,target,category,esc10,src_file,take
1-100032-A-0.wav,1,0,dog,True,100032,A
5-100038-A-1.wav,5,1,rooster,False,100038,A
"""
    put(tmp_path, {"meta/esc50.csv": text})
    put(tmp_path, {f"audio/{name}.wav": media()["wav"] for name in ("1-100032-A-0", "5-100038-A-1")})
    test = packed(tmp_path / "meta/esc50.csv", "esc50", where="fold == 5")
    assert test == [{"medium": "wav", "txt": "a sound of a rooster", "cls": "1"}]
    assert (tmp_path / "meta/packed/classnames.txt").read_text().split() == ["dog", "rooster"]
    put(tmp_path, {"meta/esc50.csv": text.replace("1,rooster", "36,vacuum")})  # a part of the classes
    assert [sound["cls"] for sound in packed(tmp_path / "meta/esc50.csv", "esc50")] == ["0", "1"]
    assert (tmp_path / "meta/packed/classnames.txt").read_text().split() == ["dog", "vacuum"]


def several(out: Path) -> tuple[list[list[str]], str]:
    """Names of the classes of each packed sample, in the order of the keys, and the type of the set."""
    names = (out / "classnames.txt").read_text().splitlines()
    manifest = read_manifest(out)
    assert manifest is not None
    found = [np.load(io.BytesIO(fields["npy"])) for _, fields in sorted(samples(manifest).items())]
    assert all(vector.dtype == np.uint8 and len(vector) == len(names) for vector in found)
    return [[names[i] for i in vector.nonzero()[0]] for vector in found], (out / "dataset_type.txt").read_text()


FSD50K = """fname,labels,mids,split
64760,"Electric_guitar,Guitar,Music","/m/02sgy,/m/0342h,/m/04rlf",train
16399,"Music","/m/04rlf",val
10,"Bark,Dog","/m/05tny_,/m/0bt9lr",train
"""


def test_fsd50k(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, {"FSD50K.ground_truth/dev.csv": FSD50K})
    put(tmp_path, {f"FSD50K.dev_audio/{name}.wav": media()["wav"] for name in (64760, 16399, 10)})
    source = tmp_path / "FSD50K.ground_truth/dev.csv"
    assert packed(source, "fsd50k", split="train") == [{"medium": "wav"}] * 2  # and no caption from one of the classes
    train = [["Electric guitar", "Guitar", "Music"], ["Bark", "Dog"]]
    assert several(source.parent / "packed") == (train, "multilabel")
    assert "columns that are not packed: 'fname', 'mids', 'split';" in caplog.text, "labels are"
    names = ["Bark", "Dog", "Electric guitar", "Guitar", "Music"]
    assert (source.parent / "packed/classnames.txt").read_text().splitlines() == names
    with pytest.raises(DataError, match=r"has the splits \['train', 'val'\]: name one"):
        pack(source, tmp_path / "out")
    put(tmp_path, {"FSD50K.ground_truth/eval.csv": 'fname,labels,mids\n7,"Dog,Bark","/m/0bt9lr,/m/05tny_"\n'})
    put(tmp_path, {"FSD50K.eval_audio/7.wav": media()["wav"]})
    put(
        tmp_path,
        {"FSD50K.ground_truth/vocabulary.csv": "1,Dog,/m/0bt9lr\n0,Bark,/m/05tny_\n2,Electric_guitar,/m/02sgy\n"},
    )
    assert packed(source.with_name("eval.csv"), "fsd50k") == [{"medium": "wav"}]
    assert several(source.parent / "packed") == ([["Bark", "Dog"]], "multilabel")
    assert (source.parent / "packed/classnames.txt").read_text().splitlines() == ["Bark", "Dog", "Electric guitar"]
    with pytest.raises(DataError, match=r"line 2 of .*dev\.csv.*bad_label: got 'Guitar' in 'classes', wanted one of 3"):
        pack(source, tmp_path / "out", PackConfig(split="train", shuffle=None))
    put(tmp_path, {"FSD50K.ground_truth/vocabulary.csv": "1,Dog,/m/0bt9lr\n1,Bark,/m/05tny_\n"})
    with pytest.raises(DataError, match=r"vocabulary\.csv has no class 0 with a name: wanted the numbers 0 to 1"):
        pack(source, tmp_path / "out", PackConfig(split="train"))


AUDIOSET = """# Segments csv created Sun Mar  5 10:54:25 2017
# num_ytids=3, num_segs=3, num_unique_labels=3, num_positive_labels=4
# YTID, start_seconds, end_seconds, positive_labels
--4gqARaEJE, 0.000, 10.000, "/m/0bt9lr,/m/09x0r"
--BfvyPmVMo, 20.000, 30.000, "/m/04rlf"
-0DLPzsiXXE, 30.000, 40.000, "/m/04rlf"
"""
AUDIOSET_CLASSES = 'index,mid,display_name\n2,/m/04rlf,Music\n0,/m/09x0r,"Male speech, man speaking"\n1,/m/0bt9lr,Dog\n'


def test_audioset(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = put(tmp_path, {"eval_segments.csv": AUDIOSET}) / "eval_segments.csv"
    with pytest.raises(
        DataError, match=r"has no class_labels_indices\.csv, which names the classes of eval_segments\.csv"
    ):
        pack(source, tmp_path / "out")
    put(tmp_path, {"class_labels_indices.csv": AUDIOSET_CLASSES, "sounds/Y--4gqARaEJE.wav": media()["wav"]})
    put(tmp_path, {"sounds/--BfvyPmVMo_20.flac": media()["flac"], "sounds/-0DLPzsiXXE_30000_40000.mp4": media()["mp4"]})
    assert [one["medium"] for one in packed(source, "audioset")] == ["wav", "flac", "mp4"]
    assert (tmp_path / "packed/classnames.txt").read_text() == "Male speech, man speaking\nDog\nMusic\n"
    assert "columns that are not packed: 'YTID', 'start_seconds', 'end_seconds';" in caplog.text, "labels are"
    wanted = [["Male speech, man speaking", "Dog"], ["Music"], ["Music"]]
    assert several(tmp_path / "packed") == (wanted, "multilabel")
    put(tmp_path, {"eval_segments.csv": "\n".join(AUDIOSET.splitlines()[3:])})  # without the lines above
    assert len(packed(source, "audioset")) == 3
    put(tmp_path, {"eval_segments.csv": AUDIOSET.replace("/m/0bt9lr,", "/m/unknown,")})
    with pytest.raises(DataError, match=r"line 4 of .*eval_segments\.csv.*bad_label: got '/m/unknown'"):
        pack(source, tmp_path / "out", PackConfig(shuffle=None))


def test_vggsound(tmp_path: Path) -> None:
    text = '---g-f_I2yQ,1,people marching,test\n---U8lzusKE,50,"cattle, bovinae cowbell",train\n'
    put(tmp_path, {"vggsound.csv": text, "video/---g-f_I2yQ_000001.mp4": media()["mp4"]})
    put(tmp_path, {"video/---U8lzusKE_000050.mp4": media()["mp4"]})
    test = packed(tmp_path / "vggsound.csv", "vggsound", split="test")
    assert test == [{"medium": "mp4", "txt": "a video of a people marching", "cls": "1"}]
    names = (tmp_path / "packed/classnames.txt").read_text().splitlines()
    assert names == ["cattle, bovinae cowbell", "people marching"]


def test_msrvtt(tmp_path: Path) -> None:
    document: dict[str, Any] = {
        "info": {},
        "videos": [
            {"category": 9, "url": "u", "video_id": "video0", "start time": 1.5, "split": "train", "id": 0},
            {"category": 1, "url": "u", "video_id": "video1", "start time": 0.0, "split": "train", "id": 1},
        ],
        "sentences": [
            {"caption": "a car", "video_id": "video0", "sen_id": 0},
            {"caption": "a song", "video_id": "video1", "sen_id": 1},
            {"caption": "a red car", "video_id": "video0", "sen_id": 2},
        ],
    }
    put(tmp_path, {"train_val_videodatainfo.json": document})
    put(tmp_path, {f"TrainValVideo/video{number}.mp4": media()["mp4"] for number in range(2)})
    found = packed(tmp_path / "train_val_videodatainfo.json", "msrvtt")
    assert found == [{"medium": "mp4", "txt": "a car\na red car"}, {"medium": "mp4", "txt": "a song"}]
    document["videos"].pop()
    put(tmp_path, {"train_val_videodatainfo.json": document})
    with pytest.raises(DataError, match=r"video1 of .*videodatainfo\.json.*: missing_file: got None"):
        packed(tmp_path / "train_val_videodatainfo.json", "msrvtt")


def test_msrvtt_pairs_of_the_1k_test(tmp_path: Path) -> None:
    text = "key,vid_key,video_id,sentence\nret0,msr9770,video9770,a person, waiting\nret1,msr9771,video9771,a song\n"
    text = text.replace("a person, waiting", '"a person, waiting"')
    put(tmp_path, {"MSRVTT_JSFUSION_test.csv": text})
    put(tmp_path, {f"TestVideo/video{number}.mp4": media()["mp4"] for number in (9770, 9771)})
    source = tmp_path / "MSRVTT_JSFUSION_test.csv"
    assert packed(source, "msrvtt") == [
        {"medium": "mp4", "txt": "a person, waiting"},
        {"medium": "mp4", "txt": "a song"},
    ]
    manifest = read_manifest(tmp_path / "packed")
    assert manifest is not None
    assert sorted(samples(manifest)) == ["video9770", "video9771"]


def test_img2dataset(tmp_path: Path) -> None:
    stats = {"count": 1, "successes": 1}
    put(tmp_path / "files", {"00000_stats.json": stats, "00000.parquet": b"PAR1", "00000/000000000.jpg": picture(0)})
    put(tmp_path / "files", {"00000/000000000.txt": "a real\ncaption\n", "00000/000000000.json": {"url": "u"}})
    assert packed(tmp_path / "files", "folder") == [{"medium": "jpg", "txt": "a real caption"}]
    put(tmp_path / "tars", {"00000_stats.json": stats, "00000.tar": b"\0" * 1024})
    for source in (tmp_path / "tars", tmp_path / "tars/00000.tar"):
        with pytest.raises(DataError, match=r"which are shards already: name it in `data\.shards`"):
            pack(source, tmp_path / "out")


def test_every_format_is_listed_and_refuses_other_files(tmp_path: Path) -> None:
    assert LISTED.split(", ") == list(FORMATS)
    put(tmp_path, {"t.csv": "path,caption\n0.jpg,x\n", "t.json": {"images": [{"id": 1, "file_name": "0.jpg"}]}})
    for form in KNOWN:
        with pytest.raises(DataError, match=rf"t\.csv is not of the format {form.name}: wanted "):
            pack(tmp_path / "t.csv", tmp_path / "out", PackConfig(format=form.name))
    with pytest.raises(DataError, match=r"cannot pack .*t\.json: wanted a folder, or a file of one of: coco, karpathy"):
        pack(tmp_path / "t.json", tmp_path / "out")


def test_a_json_file_that_is_none_is_named(tmp_path: Path) -> None:
    put(tmp_path, {"t.json": '{"images": ['})
    with pytest.raises(DataError, match=r"cannot read .*t\.json as JSON"):
        pack(tmp_path / "t.json", tmp_path / "out")


def test_columns_of_a_known_format_may_be_named_otherwise(tmp_path: Path) -> None:
    text = "filename,fold,target,category\n0.wav,1,0,dog\n"
    put(tmp_path, {"esc50.csv": text, "0.wav": media()["wav"]})
    (one,) = packed(tmp_path / "esc50.csv", "esc50", columns={"captions": ["a {category} barks"]})
    assert one == {"medium": "wav", "txt": "a dog barks", "cls": "0"}
    (one,) = packed(
        tmp_path / "esc50.csv", "csv", format="csv", columns={"audio": "filename", "captions": ["category"]}
    )
    assert one == {"medium": "wav", "txt": "dog"}
