"""Patterns of shards: what they name, and what is refused before anything is opened."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from mmssl.core.errors import DataError
from mmssl.data.shards.paths import expand


def link(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


NO_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "loop": (link("0.tar"), "a symbolic link to 0.tar: its symbolic links lead in a circle"),
    "dangling": (link("gone"), "a symbolic link to gone: it does not exist"),
    "pipe": (os.mkfifo, "a named pipe"),
    "linked_pipe": (lambda path: (os.mkfifo("p"), path.symlink_to("p")), "a named pipe"),
    "folder": (lambda path: (path.mkdir(), (path / "1.tar").touch()), "a folder"),
    "socket": (listen, "a socket"),
    "device": (link("/dev/zero"), "a device"),
}


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("pattern", ["0.tar", ".", "*", "*.tar", "{0,1}.tar"])
def test_what_is_no_regular_file_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, pattern: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("1.tar").touch()
    make, words = NO_FILES[kind]
    make(Path("0.tar"))
    if (kind, pattern) in (("folder", "0.tar"), ("folder", "{0,1}.tar")):
        assert Path("0.tar/1.tar") in expand([pattern]), "a folder that is named means the shards in it"
        return
    with pytest.raises(DataError) as refused:
        expand([pattern])
    assert f"0.tar: {words}\n" in str(refused.value)
    assert "1.tar:" not in str(refused.value)


def test_a_link_to_a_shard_is_one_and_folders_beside_shards_are_none(tmp_path: Path) -> None:
    (tmp_path / "0.tar").touch()
    (tmp_path / "1.tar").symlink_to("0.tar")
    (tmp_path / "others").mkdir()
    assert expand([tmp_path / "1.tar"]) == [tmp_path / "1.tar"]
    assert expand([f"{tmp_path}/[0o]*"]) == [tmp_path / "0.tar"]
    with pytest.raises(DataError, match=r"1\.tar is given twice"):
        expand([tmp_path])


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("0.tar/below", "0.tar/below: a part of its path is no folder"),
        ("x" * 300 + ".tar", "its name is too long"),
        ("a\0b.tar", "its name has a NUL byte"),
        ("empty", "empty: a folder without .tar files\nCheck"),
        ("splits", "splits: a folder without .tar files; give splits/test or splits/train, which has some\nCheck"),
        ("gone.tar", "no such shard"),
    ],
)
def test_paths_that_name_nothing_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("0.tar").touch()
    Path("empty").mkdir()
    for split in ("train", "test", "none"):
        Path("splits", split).mkdir(parents=True)
    Path("splits/train/0.tar").touch()
    Path("splits/test/0.tar").touch()
    with pytest.raises(DataError) as refused:
        expand([pattern])
    assert words in str(refused.value)
    assert "Errno" not in str(refused.value)
