"""`mmssl shards pack`: its flags reach the packing, and mistakes in them are said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines import cli
from pipelines.command import guarded
from tests.curation.test_pack import picture


def packed(folder: Path, *flags: str, out: str = "out") -> int:
    return guarded(cli.full(), ["shards", "pack", str(folder / "t.csv"), str(folder / out), *flags])


def table(folder: Path, text: str = "path\tsplit\tn\tword\n0.jpg\ttrain\t0\ta cat\n1.jpg\ttest\t1\ta dog\n") -> None:
    for number in range(2):
        (folder / f"{number}.jpg").write_bytes(picture(number))
    (folder / "t.csv").write_text(text)


def test_flags_reach_the_settings(tmp_path: Path) -> None:
    table(tmp_path)
    (tmp_path / "names.json").write_text('["cat", "dog"]')
    flags = (
        "--delimiter",
        "tab",
        "--where",
        "n in [0, 1]",
        "--split",
        "test",
        "--group-by",
        "media",
        "--keys",
        "files",
    )
    columns = ("--column", "label=n", "--classnames", str(tmp_path / "names.json"), "--metadata", "--no-verify")
    assert packed(tmp_path, *flags, *columns, "--format", "csv") == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    wanted = {
        "delimiter": "\t", "where": "n in [0, 1]", "split": "test", "group_by": "media", "keys": "files",
        "class_names": ["cat", "dog"], "metadata": True, "verify": False,
    }  # fmt: skip
    assert {name: manifest["settings"][name] for name in wanted} == wanted
    assert manifest["samples"] == 1
    assert (tmp_path / "out/classnames.txt").read_text() == "cat\ndog\n"


def test_numbers_and_names_of_classes_in_one_pass(tmp_path: Path) -> None:
    table(tmp_path)
    assert packed(tmp_path, "--column", "label=n", "--column", "class=word") == 0
    assert (tmp_path / "out/classnames.txt").read_text() == "a cat\na dog\n"


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--classnames", "cat"), 2, "--classnames: got 'cat', which is no file; wanted a file of class names"),
        (("--where", "n = 1"), 2, "got = 1, wanted == for equal"),
        (("--where", "m == 1"), 3, "has no column 'm'"),
        (("--format", "cocoa"), 3, "got the format 'cocoa', did you mean 'coco'?"),
        (("--group-by", "medium"), 2, "did you mean 'media'?"),
        (("--keys", "file"), 2, "did you mean 'files'?"),
        (("--delimiter", "::"), 2, "delimiter"),
    ],
)
def test_mistakes_in_flags_are_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], flags: tuple[str, ...], code: int, said: str
) -> None:
    table(tmp_path)
    assert packed(tmp_path, *flags) == code
    assert said in " ".join(capfd.readouterr().err.split())
    assert not (tmp_path / "out").exists()
