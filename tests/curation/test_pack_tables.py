"""Tables: rows are chosen and grouped, templates join columns, labels have names, and nothing is left out without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmssl.core.errors import DataError, RecipeError
from mmssl.curation.pack import Columns, PackConfig, open_source, pack
from mmssl.curation.pack_formats import BadRow
from mmssl.data.shards.writer import Manifest
from tests.curation.test_pack import picture, samples

CLIPS = """path,fold,target,category,caption
0.jpg,1,0,dog,a dog
1.jpg,5,1,cat,a cat
0.jpg,2,0,dog,the same dog
2.jpg,3,2,hen,a hen
"""


def packed(folder: Path, text: str = CLIPS, on_error: str = "raise", **settings: Any) -> Manifest:
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(picture(number))
    (folder / "t.csv").write_text(text)
    columns = Columns(**settings.pop("columns", {}))
    config = PackConfig(shuffle=None, columns=columns, on_error=on_error, **settings)
    return pack(folder / "t.csv", folder / "out", config, overwrite=True)


def texts(manifest: Manifest) -> list[str]:
    return [fields["txt"].decode() for _, fields in sorted(samples(manifest).items())]


def test_rows_are_chosen_by_conditions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert texts(packed(tmp_path, where="fold != 5 and category in [dog, cat]")) == ["a dog", "the same dog"]
    assert "2 of 4 rows are chosen by the conditions" in caplog.text


def test_conditions_that_nothing_fits_or_that_name_no_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t\.csv has no rows that fit 'fold > 9': fold is '1', '5', '2', '3'$"):
        packed(tmp_path, where="fold > 9")
    text = "path,flag\n" + "".join(f"{n % 3}.jpg,{value}\n" for n, value in enumerate("abcdefga"))
    with pytest.raises(DataError, match=r"flag is 'a', 'b', 'c', 'd', 'e', \.\.\.$"):
        packed(tmp_path, text, where="flag == True")
    with pytest.raises(DataError, match=r"no column 'flod', did you mean 'fold'"):
        packed(tmp_path, where="flod > 9")
    with pytest.raises(RecipeError, match=r"got = 5"):
        packed(tmp_path, where="fold = 5")


def test_a_row_that_cannot_answer_is_named(tmp_path: Path) -> None:
    text = CLIPS.replace("2.jpg,3", "2.jpg,x") + "1.jpg\n"
    with pytest.raises(DataError, match=r"line 5 of .*: no_answer: fold is 'x', wanted a number to compare with 5"):
        packed(tmp_path, text, where="fold != 5")
    manifest = packed(tmp_path, text, where="fold != 5", on_error="skip")
    assert manifest.skipped == {"no_answer": 1, "malformed_row": 1}
    assert texts(manifest) == ["a dog", "the same dog"]


def test_a_split_is_named_by_its_column(tmp_path: Path) -> None:
    text = "path,caption,split\n0.jpg,a,train\n1.jpg,b,test\n"
    assert texts(packed(tmp_path, text, split="test")) == ["b"]
    with pytest.raises(DataError, match=r"has the splits \['test', 'train'\], got split='val'"):
        packed(tmp_path, text, split="val")


def test_one_sample_for_each_medium_with_all_its_captions_in_order(tmp_path: Path) -> None:
    manifest = packed(tmp_path, group_by="media")
    assert texts(manifest) == ["a dog\nthe same dog", "a cat", "a hen"]
    assert [fields["jpg"] for _, fields in sorted(samples(manifest).items())] == [picture(n) for n in range(3)]


def test_groups_need_one_label_and_rows_without_media_are_named(tmp_path: Path) -> None:
    text = CLIPS.replace("0.jpg,2,0", "0.jpg,2,1") + " ,1,1,cat,nothing\n,1,1,cat,nothing\n"
    manifest = packed(tmp_path, text, group_by="media", columns={"label": "target"}, on_error="skip")
    assert manifest.skipped == {"bad_label": 1, "missing_file": 2}
    with pytest.raises(DataError, match=r"line 2 of .*bad_label: got the labels \[0, 1\] in the 2 rows of one medium"):
        packed(tmp_path, text, group_by="media", columns={"label": "target"})


def test_numbers_and_names_of_classes_in_one_pass(tmp_path: Path) -> None:
    columns = {"label": "target", "class_name": "category", "captions": ()}
    manifest = packed(tmp_path, columns=columns, where="fold != 5")
    assert (tmp_path / "out/classnames.txt").read_text().split() == ["dog", "cat", "hen"]  # of the whole table
    assert [fields["cls"] for _, fields in sorted(samples(manifest).items())] == [b"0", b"0", b"2"]
    assert texts(manifest)[2] == "a photo of a hen"


@pytest.mark.parametrize(
    "named", [{"class_name": "label"}, {"label": "label"}, {"label": "label", "class_name": "label"}]
)
def test_a_column_of_names_that_is_called_label_is_one_column(tmp_path: Path, named: dict[str, str]) -> None:
    """It is found by its name, too."""
    manifest = packed(tmp_path, CLIPS.replace("category", "label"), columns={**named, "captions": ()})
    assert (tmp_path / "out/classnames.txt").read_text().split() == ["cat", "dog", "hen"]
    assert {fields["cls"] for fields in samples(manifest).values()} == {b"0", b"1", b"2"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("1,cat", "1,dog", r"line 3 of .*: got class 1 with the name 'dog', and line 2 of .* disagrees"),
        ("2,0,dog", "2,0,cow", r"line 4 of .*: got class 0 with the name 'cow', and line 2 of .* disagrees"),
    ],
)
def test_numbers_and_names_must_agree_one_to_one(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        packed(tmp_path, CLIPS.replace(old, new), columns={"label": "target", "class_name": "category"})


def test_a_part_of_the_classes_is_numbered_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text, columns = CLIPS.replace("2,hen", "7,hen"), {"label": "target", "class_name": "category", "captions": ()}
    manifest = packed(tmp_path, text, columns=columns)
    assert (tmp_path / "out/classnames.txt").read_text().split() == ["dog", "cat", "hen"]
    assert {fields["cls"] for fields in samples(manifest).values()} == {b"0", b"1", b"2"}
    assert "'target' has 3 of the numbers from 0 to 7: its classes are numbered from 0 to 2 instead" in caplog.text
    names = ("dog", "cat", "cow", "pig", "fox", "owl", "ant", "hen")
    manifest = packed(tmp_path, text, columns=columns, class_names=names)
    assert {fields["cls"] for fields in samples(manifest).values()} == {b"0", b"1", b"7"}


def test_given_names_are_compared_with_those_of_the_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns = {"label": "target", "class_name": "category"}
    packed(tmp_path, columns=columns, class_names=("dog", "kitten", "hen"))
    assert "1 of 3 class names differ: class 1 is 'kitten' in the given names and 'cat' in" in caplog.text
    with pytest.raises(DataError, match="the same names in another order"):
        packed(tmp_path, columns=columns, class_names=("cat", "dog", "hen"))


def test_templates_join_columns(tmp_path: Path) -> None:
    text = "id,kind,colour\n0,jpg,red\n1,jpg,blue\n2,,green\n"
    columns = {"image": "{id}.{kind}", "captions": ("a {colour} thing",), "key": "{colour}-{id}"}
    manifest = packed(tmp_path, text, columns=columns, on_error="skip")
    assert {key: fields["txt"] for key, fields in samples(manifest).items()} == {
        "red-0": b"a red thing",
        "blue-1": b"a blue thing",
    }
    assert manifest.skipped == {"missing_file": 1}  # an empty cell makes an empty path
    with pytest.raises(DataError, match=r"has no column 'idd', did you mean 'id'"):
        packed(tmp_path, text, columns={"image": "{idd}.jpg"})


def test_keys_from_the_names_of_files(tmp_path: Path) -> None:
    assert sorted(samples(packed(tmp_path, group_by="media", keys="files"))) == ["0", "1", "2"]
    with pytest.raises(DataError, match=r"line 4 of .*duplicate_key: got key '0', which line 2 of .* has too"):
        packed(tmp_path, keys="files")
    with pytest.raises(DataError, match="has the keys of 'category'"):
        packed(tmp_path, keys="files", columns={"key": "category"})


def test_keys_from_the_names_of_files_in_a_folder(tmp_path: Path) -> None:
    for name in ("cat/n01.jpg", "dog/n02.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        (tmp_path / "in" / name).write_bytes(picture(0))
    assert sorted(samples(pack(tmp_path / "in", tmp_path / "out", PackConfig(keys="files")))) == ["n01", "n02"]
    (tmp_path / "in/dog/n01.jpg").write_bytes(picture(0))
    with pytest.raises(DataError, match="duplicate_key"):
        pack(tmp_path / "in", tmp_path / "other", PackConfig(keys="files"))


def test_columns_that_are_not_packed_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    packed(tmp_path)
    assert "columns that are not packed: 'fold', 'target', 'category'; --metadata keeps them" in caplog.text


def test_other_columns_become_json(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = samples(packed(tmp_path, group_by="media", metadata=True))
    assert json.loads(found["0"]["json"]) == {"fold": ["1", "2"], "target": "0", "category": "dog"}
    assert json.loads(found["1"]["json"]) == {"fold": "5", "target": "1", "category": "cat"}
    assert "not packed" not in caplog.text


def test_the_json_beside_a_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number, text in enumerate(('{"caption": "one", "url": "u"}', "{")):
        (tmp_path / f"in/{number}.jpg").write_bytes(picture(number))
        (tmp_path / f"in/{number}.json").write_text(text)
        (tmp_path / f"in/{number}.txt").write_text("one")
    with pytest.raises(BadRow, match=r"bad_metadata: .*1\.json cannot be read"):
        open_source(tmp_path / "in", PackConfig(metadata=True)).item(1)
    assert (
        open_source(tmp_path / "in", PackConfig(metadata=True)).item(0).fields["json"]
        == b'{"caption": "one", "url": "u"}'
    )


def test_settings_without_effect_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in/cat").mkdir(parents=True)
    (tmp_path / "in/cat/0.jpg").write_bytes(picture(0))
    for settings, flag in (({"where": "a == 1"}, "--where"), ({"group_by": "media"}, "--group-by")):
        with pytest.raises(DataError, match=f"{flag}: no effect on .*in, a folder with a folder a class"):
            pack(tmp_path / "in", tmp_path / "out", PackConfig(**settings))
    with pytest.raises(DataError, match="--root: no effect"):
        pack(tmp_path / "in", tmp_path / "out", root=tmp_path)
    with pytest.raises(DataError, match="got the format 'cvs', did you mean 'csv'"):
        pack(tmp_path / "in", tmp_path / "out", PackConfig(format="cvs"))
