"""Keys: letters of every script, at most so many bytes, and distinct."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from mmssl.curation.pack import PackConfig, pack
from mmssl.curation.pack_keys import MAX_KEY, safe_key
from mmssl.curation.pack_report import packing_summary, skipped_table
from tests.curation.test_pack import picture, samples


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("../etc/pass.wd", "etc_pass_wd"),
        ("a -- b__c", "a_--_b__c"),
        ("猫の写真", "猫の写真"),
        ("हिन्दी चित्र", "हिन्दी_चित्र"),
        ("cafe\u0301", "café"),
        ("..", ""),
        (None, ""),
        (12, "12"),
    ],
)
def test_letters_of_every_script_are_kept(value: object, key: str) -> None:
    assert safe_key(value) == unicodedata.normalize("NFC", key)


def test_long_keys_are_cut_between_letters() -> None:
    key = safe_key("ab" + "猫" * 40)
    assert key == "ab" + "猫" * 26
    assert len(key.encode()) == MAX_KEY


def test_such_keys_are_read_back(tmp_path: Path) -> None:
    names = ("猫" * 26, "кот", "gato")
    for name in names:
        (tmp_path / f"{name}.jpg").write_bytes(picture(len(name)))
    (tmp_path / "t.csv").write_text("path,caption\n" + "".join(f"{name}.jpg,x\n" for name in names))
    manifest = pack(tmp_path / "t.csv", tmp_path / "out", PackConfig(keys="files"))
    assert sorted(samples(manifest)) == sorted(names)


def test_an_unusable_row_does_not_take_a_key(tmp_path: Path) -> None:
    for folder, data in (("a", picture(0)[:200]), ("b", picture(1)), ("c", picture(2))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jpg").write_bytes(data)
    (tmp_path / "t.csv").write_text("path,caption\n" + "".join(f"{one}/x.jpg,{one}\n" for one in "abc"))
    for seed in (None, 0, 1):  # in every order: the first usable row of the table
        config = PackConfig(keys="files", on_error="skip", shuffle=seed)
        manifest = pack(tmp_path / "t.csv", tmp_path / f"out{seed}", config)
        assert {key: fields["txt"] for key, fields in samples(manifest).items()} == {"x": b"b"}
        assert manifest.skipped == {"undecodable": 1, "duplicate_key": 1}
    assert "c/x.jpg" not in skipped_table(manifest)
    assert "line 4 of" in skipped_table(manifest)
    assert "got key 'x', which line 3 of" in skipped_table(manifest)


def test_keys_that_are_spelt_otherwise_are_told(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(picture(0))
    (tmp_path / "t.csv").write_text("path,key,caption\n0.jpg,v1.0/x,a\n0.jpg,plain,b\n")
    manifest = pack(tmp_path / "t.csv", tmp_path / "out")
    assert sorted(samples(manifest)) == ["plain", "v1_0_x"]
    assert (
        "\n1 keys are not spelt as their names, such as 'v1.0/x' -> 'v1_0_x'\n2 samples"
        in f"\n{packing_summary(manifest)}"
    )
