"""Run a verb as a program: errors become messages and exit codes here.

Exit codes: 0 fine, 1 anything else, 2 usage or recipe, 3 data, 4 checkpoint, 5 numeric failure, 128 + n stopped by signal n:
130 SIGINT, 143 SIGTERM, 138 SIGUSR1, 140 SIGUSR2 (what `sbatch --signal` sends).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from mmssl.core.errors import STOPPING, MmsslError, RecipeError, StopSignal, did_you_mean
from mmssl.data.shards.patience import stop_waiting, wait_again

T = TypeVar("T", bound=str)

# Typer bundles Click, and exposes the base of its usage errors only through this class.
UsageError: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def guarded(application: typer.Typer, arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code; an `MmsslError` is shown as one message."""
    try:
        with _raising_signals():
            code = application(args=arguments, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except typer.Exit as stop:
        return stop.exit_code
    except UsageError as error:
        _say_number(error)
        error.show()
        return int(error.exit_code)
    except StopSignal as stop:
        print(f"stopped by {signal.Signals(stop.number).name}", file=sys.stderr)
        return 128 + stop.number
    except typer.Abort:
        return 130
    except MmsslError as error:
        rank = os.environ.get("RANK")
        who = "error" if rank is None else f"error on process {rank}"
        Console(stderr=True, soft_wrap=True).print(f"[bold red]{who}:[/] {escape(str(error))}", highlight=False)
        return error.exit_code


def _say_number(error: Any) -> None:
    """Name the value and all bounds in an error of an option's number: Typer (0.29) names the one bound that it breaks."""
    from pydantic import Field, ValidationError

    from mmssl.recipe.annotations import wanted

    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return
    option = error.param.get_runtime_param()
    if option.annotation in (int, float):
        bounds = Field(ge=option.parameter_info.min, le=option.parameter_info.max)
        error.message = f"got {cause.errors()[0]['input']}, wanted {wanted(Annotated[option.annotation, bounds])}"


@contextmanager
def _raising_signals() -> Iterator[None]:
    """Raise a `StopSignal` for those of `STOPPING` that would end the process at once: files are closed, and half-written ones
    deleted. Ends the waiting of other threads for storage too. Later ones are ignored while it ends; SIGINT never is.
    """
    process, usual = os.getpid(), (signal.SIG_DFL, signal.default_int_handler)
    received: set[int] = set()

    def stop(number: int, frame: object) -> None:
        if os.getpid() != process:  # a forked loader worker that has not set its handlers yet
            os._exit(128 + number)
        if number == signal.SIGINT or not received:
            received.add(number)
            stop_waiting()
            raise StopSignal(number)

    before = {}
    if threading.current_thread() is threading.main_thread():  # which alone receives signals
        before = {number: signal.getsignal(number) for number in STOPPING if signal.getsignal(number) in usual}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        wait_again()


def one_of(option: str, value: str, allowed: tuple[T, ...]) -> T:
    """Check the value of an option with few allowed values.

    Raises:
        RecipeError: the value is not allowed.
    """
    for word in allowed:
        if word == value:
            return word
    raise RecipeError(f"{option}: got {value!r}{did_you_mean(value, allowed)}; allowed: {', '.join(allowed)}")


def single(command: Callable[..., Any]) -> None:
    """`python -m pipelines.VERB`: run one verb as a separate program."""
    alone = typer.Typer(rich_markup_mode="markdown", pretty_exceptions_enable=False)
    alone.command()(command)
    sys.exit(guarded(alone))
