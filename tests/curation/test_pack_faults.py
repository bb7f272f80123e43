"""Packing what is damaged: every bad row is named, raised or skipped and reported, and nothing else is lost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmssl.core.errors import DataError
from mmssl.curation.pack import Columns, PackConfig, open_source, pack
from mmssl.curation.pack_columns import SourceTable
from mmssl.curation.pack_formats import BadRow
from mmssl.curation.pack_tables import TableSource
from mmssl.data.shards.writer import read_manifest
from tests.curation.test_pack import class_folder, picture, samples, table

SKIP = PackConfig(on_error="skip", shuffle=None)


def bad_table(root: Path) -> Path:
    rows = [
        ("img/0.jpg", "fine"),
        ("img/gone.jpg", "no file"),
        ("img/2.jpg", "  "),
        ("img/3.jpg", "fine too"),
        ("img/4.jpg", "no bytes"),
        ("img/5.jpg", "a page"),
        ("notes.docx", "what"),
        ("img/7.jpg", "last, good"[:4]),
        ("", "no path"),
    ]
    path = table(root, rows)
    (root / "img" / "4.jpg").write_bytes(b"")
    (root / "img" / "5.jpg").write_bytes(b"<html>not found</html>")
    with path.open("a") as file:
        file.write("img/0.jpg,one,too many\n")
    return path


REASONS = {
    3: "missing_file",
    4: "empty_caption",
    6: "empty_file",
    7: "undecodable",
    8: "unsupported",
    10: "missing_file",
    11: "malformed_row",
}


def test_skipped_rows_are_reported_one_by_one(tmp_path: Path) -> None:
    path = bad_table(tmp_path)
    manifest = pack(path, tmp_path / "out", SKIP)
    assert manifest.samples == 3
    assert sorted(fields["txt"] for fields in samples(manifest).values()) == [b"fine", b"fine too", b"last"]
    reported = [row for shard in manifest.shards for row in shard.skipped]
    assert {row["where"].split(",")[0]: row["reason"] for row in reported} == {
        f"line {line} of {path}": reason for line, reason in REASONS.items()
    }
    assert manifest.skipped == {
        "missing_file": 2,
        "empty_caption": 1,
        "empty_file": 1,
        "undecodable": 1,
        "unsupported": 1,
        "malformed_row": 1,
    }
    assert read_manifest(tmp_path / "out") == manifest


def test_pictures_that_shards_do_not_hold_are_not_packed(tmp_path: Path) -> None:
    path = table(tmp_path, [("img/0.jpg", "fine"), ("img/1.bmp", "a bitmap")])
    (tmp_path / "img" / "1.bmp").write_bytes(picture(1, kind="BMP"))
    with pytest.raises(DataError, match=r"line 3 of .*: unsupported: a \.bmp picture, wanted one of jpg.*--max-side"):
        pack(path, tmp_path / "out", PackConfig(shuffle=None))
    manifest = pack(path, tmp_path / "out", SKIP)
    assert [set(fields) - {"__key__"} for fields in samples(manifest).values()] == [{"jpg", "txt"}]
    assert manifest.skipped == {"unsupported": 1}


def test_no_file_of_a_folder_is_left_out_without_a_word(tmp_path: Path) -> None:
    folder = class_folder(tmp_path / "pets", 2)
    whole = pack(folder, tmp_path / "whole").samples
    (folder / "loose.jpg").write_bytes(picture(1))
    (next(path for path in folder.iterdir() if path.is_dir()) / "b.bmp").write_bytes(picture(2, kind="BMP"))
    with pytest.raises(DataError, match=r"loose\.jpg: no_class: the file lies beside the class folders"):
        pack(folder, tmp_path / "out", PackConfig(max_side=64))
    manifest = pack(folder, tmp_path / "out", SKIP)
    assert manifest.samples == whole
    assert manifest.skipped == {"no_class": 1, "unsupported": 1}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_skipping_is_stable_over_calls_and_cuts(tmp_path: Path, size: int) -> None:
    config = SKIP.model_copy(update={"shard_samples": size})
    first = pack(bad_table(tmp_path), tmp_path / "out", config)
    times = [path.stat().st_mtime_ns for path in first.paths]
    second = pack(tmp_path / "captions.csv", tmp_path / "out", config)
    assert second == first
    assert [path.stat().st_mtime_ns for path in second.paths] == times
    assert (first.shards[0].start, first.shards[-1].stop) == (0, 10)
    assert sum(first.skipped.values()) == 7


def test_the_first_bad_row_is_raised_with_its_line(tmp_path: Path) -> None:
    path = bad_table(tmp_path)
    with pytest.raises(DataError, match=r"line 3 of .*captions\.csv.*missing_file: .*gone\.jpg.*--on-error skip"):
        pack(path, tmp_path / "out", PackConfig(shuffle=None))


def test_after_a_bad_row_finished_shards_are_kept(tmp_path: Path) -> None:
    path = bad_table(tmp_path)
    one = {"shard_samples": 1}
    with pytest.raises(DataError, match="line 3"):
        pack(path, tmp_path / "out", PackConfig(shuffle=None, **one))
    begun = read_manifest(tmp_path / "out")
    assert begun is not None
    assert [shard.samples for shard in begun.shards] == [1]
    time = begun.paths[0].stat().st_mtime_ns
    manifest = pack(path, tmp_path / "out", SKIP.model_copy(update=one))
    assert manifest.samples == 3
    assert manifest.paths[0].stat().st_mtime_ns == time
    with pytest.raises(DataError, match="line 3"):  # kept shards do not hide rows that were skipped for them
        pack(path, tmp_path / "out", PackConfig(shuffle=None, **one))


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    path = table(tmp_path, [("gone.jpg", "x"), ("gone2.jpg", "y")])
    with pytest.raises(DataError, match=r"none of the 2 rows can be used; line 2 of .*missing_file"):
        pack(path, tmp_path / "out", SKIP)


@pytest.mark.parametrize("template", ["a photo", "{} and {}"])
def test_template_without_one_placeholder(tmp_path: Path, template: str) -> None:
    with pytest.raises(DataError, match=r"template 2 is .* wanted text with one \{\} for the class name"):
        pack(class_folder(tmp_path / "pets"), tmp_path / "out", PackConfig(templates=("a {}", template)))
    assert not (tmp_path / "out").exists()


def test_templates_without_effect_are_refused(tmp_path: Path) -> None:
    config = PackConfig(templates=("a {}",))
    with pytest.raises(DataError, match="templates would have no effect"):
        pack(table(tmp_path, [("img/0.jpg", "one")]), tmp_path / "out", config)
    (tmp_path / "n.csv").write_text("path,label\nimg/0.jpg,3\n")
    with pytest.raises(DataError, match="numbers without names"):
        pack(tmp_path / "n.csv", tmp_path / "out", config)
    (tmp_path / "p.csv").write_text("path\nimg/0.jpg\n")
    with pytest.raises(DataError, match="it has no labels"):
        pack(tmp_path / "p.csv", tmp_path / "out", config)


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    path = table(tmp_path, [("img/0.jpg", "one")])
    with pytest.raises(DataError, match=r"no column 'captoin', did you mean 'caption'\?.*\['path', 'caption'\]"):
        pack(path, tmp_path / "out", PackConfig(columns=Columns(captions=("captoin",))))
    (tmp_path / "q.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"columns \['a', 'b'\]: name the one with paths"):
        pack(tmp_path / "q.csv", tmp_path / "out")


def test_labels_by_number_and_name(tmp_path: Path) -> None:
    table(tmp_path, [("img/0.jpg", "x")] * 3)
    (tmp_path / "l.csv").write_text("path,label\nimg/0.jpg,b\nimg/1.jpg,7\nimg/2.jpg,\n")
    config = SKIP.model_copy(update={"class_names": ("a", "b")})
    manifest = pack(tmp_path / "l.csv", tmp_path / "out", config)
    assert manifest.skipped == {"bad_label": 2}
    (fields,) = samples(manifest).values()
    assert (fields["cls"], fields["txt"]) == (b"1", b"a photo of a b")


def test_keys_that_collide_or_vanish(tmp_path: Path) -> None:
    table(tmp_path, [("img/0.jpg", "x")] * 4)
    (tmp_path / "k.csv").write_text("path,key\nimg/0.jpg,a.b\nimg/1.jpg,a/b\nimg/2.jpg,..\nimg/3.jpg,ok\n")
    manifest = pack(tmp_path / "k.csv", tmp_path / "out", SKIP)
    assert sorted(samples(manifest)) == ["a_b", "ok"]
    assert manifest.skipped == {"duplicate_key": 1, "bad_key": 1}
    with pytest.raises(DataError, match=r"line 3 of .*duplicate_key.*, which line 2 of .* has too"):
        pack(tmp_path / "k.csv", tmp_path / "other", PackConfig(shuffle=None))


def test_pictures_that_cannot_be_re_encoded(tmp_path: Path) -> None:
    source = class_folder(tmp_path / "pets")
    (source / "cat" / "deeper" / "0.jpg").write_bytes(picture(0)[:60])
    manifest = pack(source, tmp_path / "out", SKIP.model_copy(update={"max_side": 8}))
    assert manifest.samples == 11
    assert manifest.skipped == {"undecodable": 1}


@pytest.mark.parametrize("content", [b"", b"path,path\n1,2\n", b'path,caption\n"open', b"path\n\xff\xfe\n"])
def test_tables_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"t\.csv"):
        pack(tmp_path / "t.csv", tmp_path / "out")


def test_optional_packages_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="needs pyarrow: install mmssl with its extra `parquet`"):
        open_source(tmp_path / "t.parquet")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="needs the package `datasets`"):
        open_source(tmp_path / "hf")


def cells(tmp_path: Path, rows: list[dict[str, Any]], **columns: Any) -> TableSource:
    """A table of typed values, as parquet has them, beside pictures."""
    values = [{"image": picture(number), **row} for number, row in enumerate(rows)]
    names = tuple(values[0])
    made = SourceTable(
        "parquet", tmp_path / "t.parquet", tmp_path, names, len(rows), lambda row: values[row],
        lambda name: [row[name] for row in values], lambda row: f"row {row}", "", {},
    )  # fmt: skip
    return TableSource(made, PackConfig(columns=Columns(**columns)))


@pytest.mark.parametrize("cell", [["a cat", "two cats"], ("a cat", "two cats"), np.array(["a cat", "two cats"])])
def test_a_list_in_a_cell_is_several_captions(tmp_path: Path, cell: Any) -> None:
    assert cells(tmp_path, [{"caption": cell}]).item(0).captions == ("a cat", "two cats")


@pytest.mark.parametrize("cell", [{"text": "a cat"}, b"a cat", float("nan"), ["a cat", None, b"x"], [["a cat"]]])
def test_what_is_no_caption_is_refused_by_name(tmp_path: Path, cell: Any) -> None:
    with pytest.raises(BadRow, match=r"row 0.*bad_caption.* in 'caption', wanted a text or a list of texts"):
        cells(tmp_path, [{"caption": cell}]).item(0)


@pytest.mark.parametrize("cell", [None, "", "  ", [], [None, " "]])
def test_a_cell_without_text_is_an_empty_caption(tmp_path: Path, cell: Any) -> None:
    with pytest.raises(BadRow, match="no text in 'caption'"):
        cells(tmp_path, [{"caption": cell}]).item(0)


def test_class_numbers_may_be_written_as_floats(tmp_path: Path) -> None:
    source = cells(tmp_path, [{"label": value} for value in (0.0, 1.0, 11.0, "3.0", 2)])
    assert source.class_names == ()
    assert [source.item(row).label for row in range(5)] == [0, 1, 11, 3, 2]


@pytest.mark.parametrize("odd", [-1, "-1", "unknown", float("nan"), 0.5])
def test_one_odd_value_does_not_turn_numbers_into_names(tmp_path: Path, odd: Any) -> None:
    source = cells(tmp_path, [{"label": value} for value in (0, 1, 2, odd, 10)])
    assert source.class_names == ()
    with pytest.raises(BadRow, match=r"bad_label.*wanted an integer of at least 0"):
        source.item(3)
    assert [source.item(row).label for row in (0, 1, 2, 4)] == [0, 1, 2, 10]


def test_labels_that_are_names_or_yes_and_no(tmp_path: Path) -> None:
    source = cells(tmp_path, [{"label": value} for value in ("dog", "cat", "7up")])
    assert source.class_names == ("7up", "cat", "dog")
    assert [source.item(row).label for row in range(3)] == [2, 1, 0]
    source = cells(tmp_path, [{"label": value} for value in (True, False, True)])
    assert source.class_names == ("False", "True")
    assert [source.item(row).label for row in range(3)] == [1, 0, 1]


def test_a_text_beside_a_file_is_its_caption(tmp_path: Path) -> None:
    """The folder that img2dataset writes: its folders are no classes."""
    part = tmp_path / "in" / "00000"
    part.mkdir(parents=True)
    for number, end in enumerate((".txt", ".json", ".txt", "")):
        (part / f"{number}.jpg").write_bytes(picture(number))
        content = {".txt": f"real caption {number}\n", ".json": f'{{"caption": "real caption {number}", "width": 3}}'}
        if end:
            (part / f"{number}{end}").write_text(content[end])
    (part / "2.json").write_text('{"url": "http://host"}')  # beside a text, which counts
    with pytest.raises(
        DataError, match=r"3\.jpg: empty_caption: other files have captions beside them, and there is no 3\.txt"
    ):
        pack(tmp_path / "in", tmp_path / "out", PackConfig(shuffle=None))
    manifest = pack(tmp_path / "in", tmp_path / "out", SKIP)
    assert manifest.skipped == {"empty_caption": 1}
    found = samples(manifest)
    assert [found[key]["txt"].decode() for key in sorted(found)] == [f"real caption {n}" for n in range(3)]
    assert not any("cls" in fields for fields in found.values())
    assert not (tmp_path / "out" / "classnames.txt").exists()


def test_hidden_system_and_empty_folders_are_no_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = class_folder(tmp_path / "pets", 2)
    for name in ("__MACOSX", ".thumbnails", "empty", "cat/.ipynb_checkpoints", "cat/@eaDir"):
        (folder / name).mkdir()
        if name != "empty":
            (folder / name / "copy.jpg").write_bytes(picture(0))
    (folder / "cat" / "._0.jpg").write_bytes(b"a resource fork")
    (folder / "dog" / "1.psd").write_bytes(b"8BPS")
    manifest = pack(folder, tmp_path / "out", PackConfig(shuffle=None))
    assert (tmp_path / "out" / "classnames.txt").read_text().splitlines() == ["cat", "dog", "sea lion"]
    assert manifest.samples == 6
    assert manifest.skipped == {}
    assert "files of other formats are not packed: 3 .db, 1 .psd; wanted" in caplog.text


def test_series_in_csv_are_packed_once_they_are_converted_as_the_message_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("rest", "walk"):
        (tmp_path / "series" / name).mkdir(parents=True)
        (tmp_path / "series" / name / "1.csv").write_text("1,2\n3,4\n5,6\n")
    with pytest.raises(
        DataError, match=r"no class folders with media files: .* npy, npz\).* Series in \.csv .* numpy\.save"
    ):
        pack(tmp_path / "series", tmp_path / "out")
    for path in sorted((tmp_path / "series").rglob("*.csv")):
        np.save(path.with_suffix(".npy"), np.loadtxt(path, delimiter=","))
    assert pack(tmp_path / "series", tmp_path / "out").samples == 2
    assert "2 .csv; wanted" in caplog.text
    assert "Series in .csv are packed as .npy" in caplog.text


def test_one_csv_beside_pictures_is_taken_for_a_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = class_folder(tmp_path / "pets", 2)
    (folder / "labels.csv").write_text("file,label\n")
    pack(folder, tmp_path / "out")
    assert "1 .csv" in caplog.text
    assert "Series" not in caplog.text
