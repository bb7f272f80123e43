"""torch.compile of the encoders, with a log line on graphs and graph breaks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from mmssl.core.compat import allow_graphs, compiled_graphs, is_compiled, uncompile
from mmssl.core.objective import Learner
from mmssl.core.teacher import teachers_in
from mmssl.training.runtime.console import say

CompileMode = Literal["off", "blocks", "default", "max-autotune-no-cudagraphs"]


def compile_encoders(learner: Learner, mode: CompileMode, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile each encoder and teacher in place; names of parameters stay. The objective, with its collectives, runs as it is.

    With "blocks" the repeated blocks of an encoder are compiled, and the rest runs as written: blocks of one class share graphs,
    so that it takes seconds where whole encoders take a minute. Encoders without repeated blocks are compiled whole.

    Sizes that change from batch to batch become variables of one kernel when they change for the first time, and texts are
    trimmed to multiples of a few tokens, so that a run compiles in its first steps and not again. After the first step the number
    of graphs
    and each graph break are logged: breaks cost speed, not correctness. Exact up to rounding.

    Args:
        learner: whose encoders are compiled.
        mode: of torch.compile; "off": nothing is done.
        backend: of torch.compile.
    """
    if mode == "off":
        return
    for encoder in _compilable(learner):
        for part in repeated_blocks(encoder) or [encoder] if mode == "blocks" else [encoder]:
            part.compile(mode=None if mode == "blocks" else mode, backend=backend)
    # Blocks of several encoders share their code, with separate graphs, with and without gradient, for each kind of sizes.
    allow_graphs(16 * len(_compilable(learner)))
    graphs, breaks = compiled_graphs()

    def report(module: nn.Module, inputs: object, outputs: object) -> None:
        handle.remove()
        graphs_now, breaks_now = compiled_graphs()
        found = {reason: n - breaks.get(reason, 0) for reason, n in breaks_now.items()}
        found = {reason: n for reason, n in found.items() if n > 0}
        say(f"compiled {len(_compilable(learner))} encoders into {graphs_now - graphs} graphs")
        for reason, count in found.items():
            say(f"graph broken {count} times: {' '.join(reason.split())}")

    handle = learner.register_forward_hook(report)


def uncompile_encoders(learner: Learner) -> None:
    """Undo the compilation of encoders: they run eagerly from here on."""
    for encoder in _compilable(learner):
        for module in encoder.modules():
            uncompile(module)


def eagerly(learner: Learner) -> AbstractContextManager[Any]:
    """Context in which compiled encoders run eagerly: evaluation gives the same scores, compiled or not."""
    compiled = any(is_compiled(module) for encoder in _compilable(learner) for module in encoder.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def repeated_blocks(encoder: nn.Module) -> list[nn.Module]:
    """The blocks of an encoder: children of one class, of lists and sequences of at least two; none inside another."""
    found: list[nn.Module] = []
    for child in encoder.children():
        parts = [*child.children()] if isinstance(child, nn.ModuleList | nn.Sequential) else []
        alike = len(parts) > 1 and len({type(part) for part in parts}) == 1
        found += parts if alike and not isinstance(parts[0], nn.ModuleList | nn.Sequential) else repeated_blocks(child)
    return found


def _compilable(learner: Learner) -> list[nn.Module]:
    """Encoders and the networks of their teachers."""
    return [*learner.encoders.values(), *(t.network for t in teachers_in(learner.teachers).values())]
