"""How a verb ends as a program."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Annotated

import pytest
import typer

from mmssl.core.errors import STOPPING, Stopped
from mmssl.data.shards.patience import shared_outages
from mmssl.data.shards.remote import CacheConfig
from pipelines.command import guarded


def usual_interrupt(request: pytest.FixtureRequest) -> None:
    """Python's handler of SIGINT, which is ignored where a shell runs the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))


@pytest.mark.parametrize("number", STOPPING)
def test_signals_end_a_verb_with_their_code_and_a_message(
    number: int, capfd: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    app, closed = typer.Typer(), []

    @app.command()
    def write() -> None:
        try:
            os.kill(os.getpid(), number)
        except Exception:  # as readers of foreign files and retries of storage have them
            closed.append("caught")
        finally:
            closed.append("closed")

    usual_interrupt(request)
    handlers = [signal.getsignal(each) for each in STOPPING]
    assert guarded(app, []) == 128 + number
    assert closed == ["closed"]
    assert capfd.readouterr().err == f"stopped by {signal.Signals(number).name}\n"
    assert [signal.getsignal(each) for each in STOPPING] == handlers


def test_an_interrupt_ends_the_waiting_of_all_threads_for_storage() -> None:
    asked, never = threading.Event(), threading.Event()
    futures: list[Future[None]] = []

    def hang() -> None:
        asked.set()
        never.wait(20)

    app = typer.Typer()

    @app.command()
    def read() -> None:
        patience = CacheConfig().build().storage.patience
        with ThreadPoolExecutor(2) as pool:
            futures.append(pool.submit(patience, "http://down/0.tar", "its size", hang))
            asked.wait()
            os.kill(os.getpid(), signal.SIGINT)
            futures[0].result()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert guarded(app, []) == 130
        assert isinstance(futures[0].exception(), Stopped)
        assert not shared_outages().stopping, "the next verb waits again"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
        never.set()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (("--share", "1.5"), "'--share': got 1.5, wanted a number, at least -1, at most 1"),
        (("--share", "-2"), "'--share': got -2, wanted a number, at least -1, at most 1"),
        (("--count", "0"), "'--count': got 0, wanted an integer, at least 1"),
        (("--count", "two"), "'--count': got two, wanted an integer, at least 1"),
    ],
)
def test_a_number_out_of_range_is_told_all_bounds(
    given: tuple[str, str], wanted: str, capfd: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()

    @app.command()
    def choose(
        share: Annotated[float | None, typer.Option(min=-1, max=1)] = None,
        count: Annotated[int, typer.Option(min=1)] = 1,
    ) -> None:
        raise AssertionError((share, count))

    assert guarded(app, [*given]) == 2
    assert wanted in " ".join(capfd.readouterr().err.replace("│", " ").split())
