"""Storage that fails: one deadline for all readers, and none of them waits once the run is to stop."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest

from mmssl.core.errors import DataError, Stopped
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.shards import patience as patience_module
from mmssl.data.shards.cache import Cache
from mmssl.data.shards.patience import Absent, Outages, Patience, Refused, stop_waiting, wait_again
from mmssl.data.shards.remote import CacheConfig
from mmssl.data.stream.config import DataConfig
from mmssl.data.stream.workers import StartMethod
from tests.data.make import write
from tests.data.servers import serve

SHARD = "https://user:secret@host/a/7.tar?token=hush"


class Time:
    """Passes by waiting only; `events` are called when it comes to theirs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: dict[float, Callable[[], object]] = {}

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for when in [when for when in self.events if when <= self.now]:
            self.events.pop(when)()

    def clock(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def patience(time: Time) -> Patience:
    return Patience(pause=1, longest=8, deadline=20, timeout=2, sleep=time.sleep, clock=time.clock)


def fail() -> None:
    raise ConnectionError(f"no route to {SHARD}")


def test_a_stop_ends_the_pause_between_two_attempts(patience: Patience, time: Time) -> None:
    time.events[9.0] = patience.outages.stop  # within a pause of 8 seconds
    with pytest.raises(Stopped, match=r"host/a/7.tar, its size: the run was told to stop while waiting for it$"):
        patience(SHARD, "its size", fail)
    assert time.now <= 9.5
    with pytest.raises(Stopped):
        patience(SHARD, "its size", lambda: 7)
    assert time.now <= 9.5, "and nobody starts to wait"


def test_a_stop_ends_an_attempt_that_gets_no_answer(patience: Patience) -> None:
    asked, never = threading.Event(), threading.Event()

    def hang() -> None:
        asked.set()
        never.wait()

    threading.Thread(target=lambda: asked.wait() and patience.outages.stop()).start()
    with pytest.raises(Stopped):
        patience(SHARD, "its size", hang)
    never.set()


def test_the_deadline_is_that_of_the_server_and_not_of_a_reader(patience: Patience, time: Time) -> None:
    with pytest.raises(
        DataError,
        match=r"attempt 5 failed: ConnectionError: no route to https://host/a/7.tar; https://host has failed for 15 s",
    ):
        patience(SHARD, "byte 0 to 9", fail)
    time.now += 4
    with pytest.raises(DataError, match=r"8\.tar, byte 3 to 7: attempt 1 failed: .*has failed for 20 s"):
        patience(SHARD.replace("7", "8"), "byte 3 to 7", lambda: time.sleep(1) or fail())
    other, now = SHARD.replace("host", "elsewhere"), time.now
    with pytest.raises(DataError, match="attempt 5 failed"):
        patience(other, "byte 0 to 9", fail)
    assert time.now == now + 15


def test_an_answer_and_a_long_silence_end_an_outage(patience: Patience, time: Time) -> None:
    for end in (lambda: patience(SHARD, "its size", lambda: 7), lambda: time.sleep(60)):
        with pytest.raises(DataError, match="attempt 5 failed"):
            patience(SHARD, "its size", fail)
        end()
    answers = deque([fail, fail, lambda: 7])
    assert patience(SHARD, "its size", lambda: answers.popleft()()) == 7


def test_one_reader_tells_of_an_outage_with_server_shard_and_attempt(
    patience: Patience, time: Time, caplog: pytest.LogCaptureFixture
) -> None:
    def other() -> None:
        with pytest.raises(DataError):
            patience(SHARD.replace("7", "8"), "byte 3 to 7", fail)

    time.events[2.0] = other
    with caplog.at_level(logging.WARNING), pytest.raises(DataError):
        patience(SHARD, "byte 0 to 9", fail)
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == (
        "https://host/a/7.tar, byte 0 to 9: attempt 1 failed: ConnectionError: no route to https://host/a/7.tar; "
        "retrying for 20 s"
    )
    assert not any("8.tar" in line for line in said)


class ClientError(Exception):
    """As botocore's: the answer of the storage is in `response`."""

    def __init__(self, status: int) -> None:
        super().__init__(f"answered {status}")
        self.response = {"Error": {"Code": "x"}, "ResponseMetadata": {"HTTPStatusCode": status}}


class NoCredentialsError(Exception):
    """As botocore's."""


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ClientError(404), Absent, "not found"),
        (caused(FileNotFoundError("gone"), ClientError(404)), Absent, "not found"),
        (ClientError(403), Refused, "check the credentials"),
        (caused(OSError(22, "Invalid"), ClientError(301)), Refused, "check the credentials"),
        (NoCredentialsError("Unable to locate credentials"), Refused, "Unable to locate credentials; check the cred"),
        (ClientError(503), DataError, "attempt 5 failed"),
        (caused(TimeoutError("waited"), ClientError(400)), DataError, "attempt 5 failed"),
        (caused(FileNotFoundError("url"), ConnectionError("reset")), DataError, "attempt 5 failed"),
    ],
)
def test_answers_that_are_final_are_not_asked_for_again(
    patience: Patience, time: Time, error: Exception, kind: type[DataError], words: str
) -> None:
    def answer() -> None:
        raise error

    with pytest.raises(DataError, match=words) as caught:
        patience("s3://bucket/0.tar", "its size", answer)
    assert type(caught.value) is kind
    assert (time.now == 0) == (kind is not DataError)


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_learn_that_the_run_is_to_stop(tmp_path: Path, method: StartMethod) -> None:
    write(tmp_path / "0.tar", [{"__key__": f"{i:03d}", "cls": b"3"} for i in range(40)])
    asked = threading.Event()

    class Failing(deque[str]):
        def popleft(self) -> str:
            asked.set()
            return "503"

    with serve() as server:
        server.files["/0.tar"] = (tmp_path / "0.tar").read_bytes()
        cache = CacheConfig(folder=tmp_path / "cache", threads=2)
        data = DataConfig(shards=(f"{server.url}/0.tar",), workers=1, cache=cache, start_method=method)
        stream = data.build({"label": LabelConfig().build("label")}, {"label": {"value": 1}}, batch_size=2, seed=0)
        data_cache = next(index.reader.remote.cache for index in stream.rows.sources.indexes)
        for path in data_cache.folder.glob("??/*"):
            path.unlink()  # what was fetched for the index
        server.faults["/0.tar"] = Failing(["503"])
        threading.Thread(target=lambda: asked.wait() and stop_waiting()).start()
        try:  # a thread of the worker asks the server, or waits for the other that does
            with pytest.raises(Stopped, match=r"(/0\.tar, byte \d+ to \d+|/cache, .*): the run was told to stop"):
                next(stream)
        finally:
            stream.close()
            wait_again()


def test_all_readers_of_a_process_have_one_deadline(time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training stream and evaluators each make a client; a second one that fails does not wait anew."""
    monkeypatch.setattr(patience_module, "_of_process", None)  # other tests have used it with the clock of this machine
    clients = [CacheConfig(deadline=20).build().storage.patience for _ in range(8)]
    for number, client in enumerate(clients):
        with pytest.raises(DataError, match=r"http://down has failed for \d+ s"):
            replace(client, sleep=time.sleep, clock=time.clock)(f"http://down/{number}.tar", "its size", fail)
    assert time.now <= 20


def test_a_server_that_answers_nothing_has_one_deadline_too(patience: Patience, time: Time) -> None:
    def silent() -> None:
        time.sleep(2 * patience.timeout)  # for the connection, and for a byte
        fail()

    for number in range(8):
        with pytest.raises(DataError, match="has failed for"):
            patience(f"http://down/{number}.tar", "its size", silent)
    assert time.now <= patience.deadline + 8 * 2 * patience.timeout, "each tries once"


def test_two_processes_that_fail_at_once_have_one_beginning() -> None:
    """The other one's failure is recorded while this one looks."""
    outages = Outages()
    shared = outages._shared

    class Meanwhile:
        def __getitem__(self, place: int) -> object:
            value = shared[place].clone()
            outages._shared = shared
            assert outages.failed("http://down", 6.5, 60) == 6.5
            return value

        def __setitem__(self, place: int, value: float) -> None:
            shared[place] = value

    outages._shared = Meanwhile()
    assert outages.failed("http://down", 7.0, 60) in (6.5, 7.0)


def test_of_readers_that_fail_together_one_tells(
    patience: Patience, time: Time, caplog: pytest.LogCaptureFixture
) -> None:
    def other() -> None:
        time.sleep(1)
        with pytest.raises(DataError):
            patience(SHARD.replace("7", "8"), "byte 3 to 7", lambda: time.sleep(2) or fail())

    calls = iter([other])

    def during() -> None:  # the other one begins before this one has failed
        next(calls, lambda: None)()
        fail()

    with caplog.at_level(logging.WARNING), pytest.raises(DataError):
        patience(SHARD, "byte 0 to 9", during)
    said = [record.getMessage() for record in caplog.records]
    assert said
    assert "8.tar, byte 3 to 7: attempt 1 failed" in said[0]
    assert not any("7.tar, byte 0" in line for line in said)


def test_a_stop_ends_the_wait_for_another_run_that_fills_the_cache(tmp_path: Path, patience: Patience) -> None:
    mine = Cache(tmp_path, 100, patience.sleep, patience.clock, patience.outages.check)
    begun, end = threading.Event(), threading.Event()

    def fill(sink: BinaryIO) -> None:
        begun.set()
        end.wait()
        sink.write(b"7")

    other = threading.Thread(target=lambda: Cache(tmp_path, 100).open("a", fill).close())
    other.start()
    begun.wait()
    patience.outages.stop()
    with pytest.raises(Stopped, match="which another process fills: the run was told to stop"):
        mine.open("a", fill)
    end.set()
    other.join()
    patience.outages.resume()
    with mine.open("a", fill) as file:
        assert file.read() == b"7"
