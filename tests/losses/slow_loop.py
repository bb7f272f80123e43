"""Run the slow loop that stands in a docstring: the equation that people read is the one that the loss is tested against."""

from __future__ import annotations

import inspect
import math
import textwrap
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def slow_loop(function: Callable[..., Any], **others: Any) -> Callable[..., Any]:
    """The `loop` of the one code block ("::") in the docstring, with plain-number functions, torch's stack, and others by name."""
    documentation = inspect.getdoc(function) or ""
    _, found, after = documentation.partition("::\n")
    assert found, f"{function.__name__} has no slow loop in its docstring"
    lines = []
    for line in after.splitlines():
        if line and not line.startswith(" "):
            break
        lines.append(line)
    names: dict[str, Any] = {
        "exp": math.exp,
        "log": math.log,
        "cos": math.cos,
        "sin": math.sin,
        "dot": lambda x, y: float(torch.dot(x, y)),
        "mean": _mean,
        "stack": torch.stack,
        **others,
    }
    exec(textwrap.dedent("\n".join(lines)), names)
    return names["loop"]  # type: ignore[no-any-return]


def _mean(values: list[Any] | Tensor) -> float:
    if isinstance(values, Tensor):
        return float(values.mean())
    return sum(values) / len(values)
