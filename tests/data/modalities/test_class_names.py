"""Class names: every usual file is read alike, or refused at its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmssl.core.errors import DataError
from mmssl.data.modalities.class_names import check_class_names, class_name_difference, read_class_names

NAMES = ("tench", "great white, a shark", "cock's comb")


def read(folder: Path, text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    (folder / "n").write_text(text, "utf-8")
    return read_class_names(folder / "n")


@pytest.mark.parametrize(
    "text",
    [
        "tench\n great white, a shark \ncock's comb\n\n",
        "\ufefftench\r\ngreat white, a shark\r\ncock's comb\r\n",
        '["tench", "great white, a shark", "cock\'s comb"]',
        '{"0": "tench",\n "2": "cock\'s comb", "1": "great white, a shark"}',
        "{0: 'tench',\n 1: 'great white, a shark',\n 2: \"cock's comb\"}",
        "0: 'tench',\n1: 'great white, a shark',\n2: \"cock's comb\",\n",
        "0: tench\n1: great white, a shark\n2: cock's comb\n",
    ],
)
def test_every_usual_file_is_read_alike(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text)[0] == NAMES


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"cat",\n"dog",\n', 'n, line 1: got "cat",, which looks like code, wanted one name on each line'),
        ("cat\n]\n", "n, line 2: got ], which looks like code"),
        ('["cat", 3]', "got 3 for class 1, wanted one name"),
        ('{"0": ["n01440764", "tench"]}', "got .'n01440764', 'tench'. for class 0, wanted one name"),
        ('{"tench": 0}', "got the key 'tench', wanted a class number"),
        ('{"0": "tench", "2": "shark"}', "got no name for class 1, wanted numbers from 0 to 1"),
        ("0: 'tench',\n0: 'shark'", "got class 0 twice"),
        ("0: tench\n0: shark", "got class 0 twice"),
        ('["cat",', "got neither JSON nor a list of names"),
        ("0,cat\n1,dog\n", r"n: got lines like '1,dog', a table of numbers and names. Wanted one name on each line"),
        ("cat;0\ndog;1\n", "got lines like 'dog;1', a table of numbers and names"),
        ("label,name\n1\tcat\n0\tdog\n", "a table of numbers and names"),
        ("[__import__('os')]", "got neither JSON nor a list of names"),
    ],
)
def test_other_files_are_refused_at_their_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_class_names(*read(tmp_path, text))


@pytest.mark.parametrize("names", [("studio, 54", "opera, old"), ("2,4-D", "2,4-DB"), ("7up", "7, up")])
def test_numbers_beside_commas_may_be_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert read(tmp_path, "\n".join(names))[0] == names


def test_a_number_twice_in_a_json_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got class 0 twice, wanted each number once"):
        read(tmp_path, '{"0": "tench", "0": "shark"}')


def test_what_is_no_file_is_named() -> None:
    with pytest.raises(
        ValueError, match="got 'cat', which is no file; wanted a file of class names: one name on each line"
    ):
        read_class_names("cat")


def test_places_are_those_of_the_file(tmp_path: Path) -> None:
    assert read(tmp_path, "a\nb\n")[1] == (f"{tmp_path / 'n'}, line 1", f"{tmp_path / 'n'}, line 2")
    assert read(tmp_path, '["a"]')[1] == (f"{tmp_path / 'n'}, class 0",)


def test_names_that_differ_are_told() -> None:
    assert class_name_difference(("Sea_Lion", "cat"), ("sea lion", "cat"), "given", "stored") == ""
    assert class_name_difference(("dog", "kitten"), ("dog", "cat"), "given", "stored") == (
        "1 of 2 class names differ: class 1 is 'kitten' in given and 'cat' in stored"
    )
    assert (
        class_name_difference(("dog",), ("dog", "cat"), "given", "stored")
        == "given: got 1 class names, and stored has 2"
    )
    with pytest.raises(
        DataError, match="class 0 is 'cat' in given and 'dog' in stored: the same names in another order"
    ):
        class_name_difference(("cat", "dog"), ("dog", "cat"), "given", "stored")
