"""A reader who follows a command to its first optimizer step opens six files, those that the docstring of mmssl.training lists."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import mmssl.training
from mmssl.training.run import Run
from pipelines import cli, pretrain
from tests.pipelines.conftest import World

ROOT = Path(__file__).parents[2]
LISTED = re.findall(r"^    ((?:mmssl|pipelines)/\S+\.py)\s", mmssl.training.__doc__ or "", re.MULTILINE)


def files_that_called() -> Iterator[str]:
    """Files of mmssl and pipelines whose functions are running, from the verb on."""
    inward: list[str] = []
    frame = sys._getframe(1)
    while frame.f_code is not pretrain.pretrain.__code__:
        inward.append(frame.f_code.co_filename)
        assert frame.f_back is not None
        frame = frame.f_back
    for name in [frame.f_code.co_filename, *reversed(inward)]:
        path = Path(name)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ("mmssl", "pipelines"):
            yield path.relative_to(ROOT).as_posix()


def test_a_command_reaches_its_first_step_through_the_files_that_are_listed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: dict[str, None] = {}

    def noting(function: Any) -> Any:
        def noted(*arguments: Any, **named: Any) -> Any:
            passed.update(dict.fromkeys(files_that_called()))
            return function(*arguments, **named)

        return noted

    monkeypatch.setattr(Run, "__init__", noting(Run.__init__))
    monkeypatch.setattr(torch.optim.AdamW, "step", noting(torch.optim.AdamW.step))
    assert world.pretrain(f"output={tmp_path}", "duration=2 steps", "evaluators={}") == 0
    verbs = {command.name: command.callback for command in cli.full().registered_commands}
    assert verbs["pretrain"] is pretrain.pretrain
    assert ["pipelines/cli.py", *passed] == LISTED
    assert len(LISTED) <= 6
