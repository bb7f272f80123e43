from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from mmssl.core.errors import DataError
from mmssl.data.shards.cache import Cache


def bytes_of(data: bytes) -> Callable[[BinaryIO], None]:
    def fill(sink: BinaryIO) -> None:
        sink.write(data)

    return fill


def refuse(sink: BinaryIO) -> None:
    raise AssertionError("it is there already")


def put(cache: Cache, key: str, data: bytes) -> None:
    cache.open(key, bytes_of(data), len(data)).close()


def get(cache: Cache, key: str) -> bytes | None:
    file = cache.open_cached(key)
    if file is None:
        return None
    with file:
        return file.read()


def age(cache: Cache, key: str, seconds: float) -> None:
    status = cache.path(key).stat()
    os.utime(cache.path(key), (status.st_atime - seconds, status.st_mtime - seconds))


def test_an_entry_is_made_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)
    put(cache, "a", b"one")
    with cache.open("a", refuse, 3) as file:
        assert file.read() == b"one"
    with cache.open("b", bytes_of(b"unknown size")) as file:
        assert file.read() == b"unknown size"
    assert cache.used() == 15
    assert (tmp_path / "used").read_text() == "15"


def test_what_was_not_used_for_longest_goes(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)
    for i, key in enumerate("abcd"):
        put(cache, key, bytes(20))
        age(cache, key, 100 - i)
    assert get(cache, "a") is not None  # used now
    put(cache, "e", bytes(60))
    assert [key for key in "abcde" if get(cache, key) is not None] == ["a", "d", "e"]
    assert cache.used() <= 100


def test_what_is_open_stays(tmp_path: Path) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += 10

    cache = Cache(tmp_path, 50, sleep, lambda: now[0])
    put(cache, "a", b"a" * 30)
    age(cache, "a", 1000)
    with cache.open("a", refuse) as file:
        put(cache, "b", bytes(15))
        with pytest.raises(DataError, match="full of files in use"):
            put(cache, "c", bytes(30))
        assert file.read() == b"a" * 30
        assert now[0] > 60
    put(cache, "c", bytes(30))
    assert get(cache, "a") is None
    assert not list(tmp_path.rglob(".part-*"))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"101 bytes do not fit into the cache of 100 bytes.*max_bytes"):
        put(Cache(tmp_path, 100), "a", bytes(101))
    with pytest.raises(DataError, match="got 3 bytes for the cache, wanted 4"):
        Cache(tmp_path, 100).open("a", bytes_of(b"abc"), 4)
    assert Cache(tmp_path, 100).used() == 0


def test_failures_leave_nothing(tmp_path: Path) -> None:
    def fail(sink: BinaryIO) -> None:
        sink.write(b"half")
        raise KeyError("storage")

    with pytest.raises(KeyError):
        Cache(tmp_path, 100).open("a", fail, 8)
    assert Cache(tmp_path, 100).used() == 0
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        put(Cache(tmp_path / "file" / "below", 100), "a", b"x")


def test_a_file_of_another_size_is_made_anew(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)
    put(cache, "a", b"whole")
    cache.path("a").write_bytes(b"cut")
    with cache.open("a", bytes_of(b"whole"), 5) as file:
        assert file.read() == b"whole"


def test_what_a_killed_process_left_goes_first_when_it_is_old(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)
    put(cache, "a", bytes(40))
    for name, old in (("young", 10), ("old", 7200)):
        part = cache.path("a").with_name(f".part-{name}")
        part.write_bytes(bytes(25))
        os.utime(part, (part.stat().st_mtime - old,) * 2)
    (tmp_path / "used").unlink()  # and the note is lost
    put(cache, "b", bytes(30))
    assert {path.name for path in tmp_path.rglob(".part-*")} == {".part-young"}
    assert get(cache, "a") is not None


def _take_turns(folder: Path, start: threading.Event, made: Path) -> None:
    cache = Cache(folder, 400)
    start.wait()

    for i in range(60):
        number = (7 * i + os.getpid()) % 12

        def fill(sink: BinaryIO, number: int = number) -> None:
            with made.open("a") as log:
                log.write(f"{number}\n")
            sink.write(bytes([number]) * 100)

        with cache.open(f"{number}", fill, 100) as file:
            assert file.read() == bytes([number]) * 100
        assert cache.used() <= 400


def test_many_processes_share_a_small_cache(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Event()
    arguments = (tmp_path / "cache", start, tmp_path / "made")
    processes = [context.Process(target=_take_turns, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 4
    assert 12 <= len((tmp_path / "made").read_text().split()) <= 240


def test_one_fetches_and_the_others_wait(tmp_path: Path) -> None:
    made: list[int] = []
    inside, go = threading.Event(), threading.Event()

    def fill(sink: BinaryIO) -> None:
        made.append(1)
        inside.set()
        go.wait(5)
        sink.write(b"x")

    threads = [threading.Thread(target=lambda: Cache(tmp_path, 9).open("a", fill, 1).close()) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert inside.wait(5)
    go.set()
    for thread in threads:
        thread.join(5)
    assert made == [1]
