"""Keys: letters of every script, at most so many bytes, and distinct."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from mmssl.curation.pack import PackConfig, pack
from mmssl.curation.pack_keys import MAX_KEY, safe_key
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
