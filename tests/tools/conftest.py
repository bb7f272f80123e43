"""Tools run in the process of the tests, as their command lines would have it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))  # tools import each other by name

RunTool = Callable[..., Any]


@pytest.fixture
def run_tool(monkeypatch: pytest.MonkeyPatch) -> RunTool:
    """Calls `main` of a tool with these arguments on its command line; returns what it returns."""

    def run(name: str, *arguments: object) -> Any:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        monkeypatch.setattr(sys, "path", [*sys.path])  # tools add the checkout to it
        return import_module(name).main()

    return run
