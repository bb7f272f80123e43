"""Console output of a run: lines and a progress bar on standard error, from the main process only."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from mmssl.core.distributed import is_main
from mmssl.core.sample import Drawn

_console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def say(message: str) -> None:
    """Print one message on the main process."""
    if is_main():
        _console.print(message)


def show_counts(title: str, counts: Mapping[str, int], examples: Mapping[str, str]) -> None:
    """Print a table of reasons, how often each occurred, and one example of each."""
    table = Table("reason", "count", "example", title=title, title_justify="left")
    for reason, count in sorted(counts.items(), key=lambda item: -item[1]):
        table.add_row(reason, f"{count:,}", examples.get(reason, ""))
    if is_main():
        _console.print(table)


def show_drawn(sources: Mapping[str, Drawn]) -> None:
    """Print a table of the samples drawn from each source; nothing if there is none."""
    table = Table("source", "samples drawn", "share", "passes", title="samples drawn", title_justify="left")
    for name, drawn in sources.items():
        table.add_row(name, f"{drawn.samples:,}", f"{drawn.share:.4f}", f"{drawn.passes:.2f}")
    if sources and is_main():
        _console.print(table)


class ProgressBar:
    """A progress bar over the steps of a run, on a terminal only; elsewhere log lines say the same."""

    def __init__(self, total_steps: int) -> None:
        self._progress: Progress | None = None
        if is_main() and _console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=_console)
            self._task = self._progress.add_task("training", total=total_steps)

    def __enter__(self) -> ProgressBar:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, step: int) -> None:
        """Move the bar to `step`."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)
