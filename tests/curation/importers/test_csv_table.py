"""Tables in text: any delimiter, and a row that cannot be read is named and costs no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmssl.core.errors import DataError
from mmssl.curation.importers.csv_table import read_csv
from mmssl.curation.pack import PackConfig, pack
from mmssl.curation.pack_formats import BadRow
from tests.curation.test_pack import picture, samples

SKIP = PackConfig(on_error="skip", shuffle=None)


def written(folder: Path, text: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def rows(path: Path) -> list[dict[str, str] | str]:
    """The rows of a table; in place of a bad one its message."""
    table = read_csv(path)
    found: list[dict[str, str] | str] = []
    for number in range(table.length):
        try:
            found.append(dict(table.row(number)))
        except BadRow as error:
            found.append(str(error).replace(str(path), "t"))
    return found


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", ", ", "| "])
def test_the_delimiter_is_that_of_the_header(tmp_path: Path, delimiter: str) -> None:
    lines = [("path", "caption"), ("0.jpg", "a,b;c|d\te".replace(delimiter.strip() or "\t", " "))]
    path = written(tmp_path, "".join(delimiter.join(line) + "\n" for line in lines))
    table = read_csv(path)
    assert table.columns == ("path", "caption")
    assert table.row(0)["caption"].strip() == lines[1][1]


def test_a_header_without_delimiter_is_one_column(tmp_path: Path) -> None:
    assert rows(written(tmp_path, "path\n0.jpg\n")) == [{"path": "0.jpg"}]


def test_tabs_of_a_tsv_come_before_commas_in_its_header(tmp_path: Path) -> None:
    assert read_csv(written(tmp_path, "path\ttitle, in short, and so on\n", "t.tsv")).columns == (
        "path",
        "title, in short, and so on",
    )


def test_a_delimiter_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(picture(0))
    path = written(tmp_path, "path:caption\n0.jpg:a, b\n")
    found = samples(pack(path, tmp_path / "out", PackConfig(delimiter=":")))
    assert found["0"]["txt"] == b"a, b"


def test_a_misplaced_quote_names_its_line_and_costs_no_other_row(tmp_path: Path) -> None:
    text = 'path,caption\n0.jpg,x\n0.jpg,"a cat" on a mat\n0.jpg,"two\nlines"\n1.jpg,y\n'
    good, bad, two, last = rows(written(tmp_path, text))
    assert (good, two, last) == (
        {"path": "0.jpg", "caption": "x"},
        {"path": "0.jpg", "caption": "two\nlines"},
        {"path": "1.jpg", "caption": "y"},
    )
    assert isinstance(bad, str)
    assert bad.startswith("line 3 of t: malformed_row: ',' expected after '\"'")


@pytest.mark.parametrize("rest", ["1.jpg,y\n2.jpg,z\n", '1.jpg,y\n2.jpg,"z"\n'])
def test_a_quote_that_is_never_closed_costs_its_line_alone(tmp_path: Path, rest: str) -> None:
    bad, one, two = rows(written(tmp_path, f'path,caption\n0.jpg,"open\n{rest}'))
    assert isinstance(bad, str)
    assert bad.startswith("line 2 of t: malformed_row")
    assert (one, two) == ({"path": "1.jpg", "caption": "y"}, {"path": "2.jpg", "caption": "z"})


SWALLOWED = 'p0.jpg,0\np1.jpg,"12 inch\np2.jpg,2\np3.jpg,size 5"\np4.jpg,4\n'


@pytest.mark.parametrize("more", ["", 'p5.jpg,"two\nlines, and more"\n'])
def test_a_quote_that_swallows_rows_costs_its_line_alone(tmp_path: Path, more: str) -> None:
    found = rows(written(tmp_path, f"path,caption\n{SWALLOWED}{more}"))
    wanted = [("p0.jpg", "0"), None, ("p2.jpg", "2"), ("p3.jpg", 'size 5"'), ("p4.jpg", "4")]
    wanted += [("p5.jpg", "two\nlines, and more")] * bool(more)
    assert [tuple(row.values()) if isinstance(row, dict) else None for row in found] == wanted
    assert found[1] == (
        "line 3 of t: malformed_row: a quote makes one value of lines 3 to 5, which are rows: "
        "wanted quotes around a whole value, and each quote inside it twice"
    )


def test_rows_without_file_names_are_swallowed_unless_texts_of_several_lines_are_usual(tmp_path: Path) -> None:
    text = 'id,caption\n1,"12 inch\n2,two\n3,size 5"\n'
    one, two, three = rows(written(tmp_path, text))
    assert isinstance(one, str)
    assert (two, three) == ({"id": "2", "caption": "two"}, {"id": "3", "caption": 'size 5"'})
    usual = rows(written(tmp_path, text + '4,"first\nsecond"\n'))
    assert usual == [{"id": "1", "caption": "12 inch\n2,two\n3,size 5"}, {"id": "4", "caption": "first\nsecond"}]


@pytest.mark.parametrize(
    "text",
    [
        'path,caption\n0.jpg,"a cat,\na dog, and more"\n',
        'path,caption\n0.jpg,"a cat\na.jpg, b, c"\n',
        'path\n"0.jpg\n1.jpg"\n',
    ],
)
def test_texts_of_several_lines_are_values(tmp_path: Path, text: str) -> None:
    (row,) = rows(written(tmp_path, text))
    assert isinstance(row, dict)


def test_bytes_that_are_no_utf_8_cost_their_line_alone(tmp_path: Path) -> None:
    bad, good = rows(written(tmp_path, b"path,caption\n0.jpg,caf\xe9\n1.jpg,caf\xc3\xa9\n"))
    assert bad == "line 2 of t: malformed_row: got b'caf\\xe9', wanted UTF-8 text"
    assert good == {"path": "1.jpg", "caption": "café"}


def test_utf_16_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t\.csv is UTF-16 text, wanted UTF-8"):
        read_csv(written(tmp_path, "path\n".encode("utf-16")))


def test_rows_behind_blank_and_long_lines_keep_their_numbers(tmp_path: Path) -> None:
    table = read_csv(written(tmp_path, 'path,caption\n\n0.jpg,"a\nb"\n\n1.jpg,c\n'))
    assert [table.where(row).split(" of ")[0] for row in range(2)] == ["line 3", "line 6"]


def test_rows_that_cannot_be_read_have_no_values(tmp_path: Path) -> None:
    table = read_csv(written(tmp_path, 'path,caption\n0.jpg,x,y\n0.jpg,"a" b\n1.jpg,z\n'))
    assert list(table.column("caption")) == [None, None, "z"]


def test_such_rows_are_skipped_when_packing(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.jpg").write_bytes(picture(number))
    path = written(tmp_path, 'path,caption\n0.jpg,x\n0.jpg,"a cat" on a mat\n1.jpg,y\n')
    with pytest.raises(DataError, match=r"line 3 of .*t\.csv: malformed_row"):
        pack(path, tmp_path / "out", PackConfig(shuffle=None))
    manifest = pack(path, tmp_path / "out", SKIP)
    assert (manifest.samples, manifest.skipped) == (2, {"malformed_row": 1})


def test_a_header_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 1 of .*t\.csv"):
        read_csv(written(tmp_path, 'path,"cap"tion\n'))
