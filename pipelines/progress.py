"""A progress bar for work that reports (done, all)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Bar(Protocol):
    """A bar that is called with how much is done and how much there is; `what`: a new title, where other work begins."""

    def __call__(self, done: int, total: int, /, what: str = ...) -> None: ...


@contextmanager
def progress_bar(what: str) -> Iterator[Bar]:
    """A bar on the error output, on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)

        def update(done: int, total: int, /, what: str = what) -> None:
            bar.update(task, completed=done, total=total, description=what)

        yield update
