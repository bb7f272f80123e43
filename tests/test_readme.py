"""README is true: its commands parse, its recipes and files exist, and nothing is left out of its tree."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import pytest
import typer
from pydantic import TypeAdapter

from mmssl.recipe.flat import document_keys
from mmssl.recipe.recipe import Recipe
from mmssl.recipe.shipped import shipped_recipes
from mmssl.recipe.strict_yaml import parse as parse_yaml
from pipelines import cli, evaluate, pretrain

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True) for kind, block in BLOCKS if kind == "sh" for line in block.splitlines() if line
]
MODULES = {"pipelines.pretrain": pretrain.pretrain, "pipelines.evaluate": evaluate.evaluate}


def parse(application: typer.Typer, arguments: list[str]) -> None:
    """Let the command line parse the arguments, down to the verb, without running it."""
    command = typer.main.get_command(application)
    context = command.make_context("mmssl", list(arguments)) if hasattr(command, "commands") else None
    while context is not None and hasattr(command, "commands"):
        name, *arguments = arguments
        assert name in command.commands, f"no verb {name!r}"
        command = command.commands[name]
    command.make_context(command.name, arguments)


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 15


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_is_one(command: list[str]) -> None:
    words = list(command)
    if words[:2] == ["python3", "tools/run.py"]:
        assert (ROOT / words[1]).is_file()
        words = words[2:]
    if words[0] == "mmssl":
        parse(cli.full(), words[1:])
        if words[1] == "pretrain":
            assert words[2] in shipped_recipes()
    elif words[0] in ("accelerate", "torchrun"):
        module = words.index("-m")
        alone = typer.Typer()
        alone.command()(MODULES[words[module + 1]])
        parse(alone, words[module + 2 :])
        assert words[module + 2] in shipped_recipes()
    else:
        assert words[0] in ("pip", "pytest"), f"not a command that README may name: {words[0]}"


def test_python_blocks_parse_and_name_what_exists() -> None:
    import mmssl

    blocks = [block for kind, block in BLOCKS if kind == "python"]
    assert blocks
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mmssl":
                assert hasattr(mmssl, node.attr)


def test_yaml_blocks_are_parts_of_recipes() -> None:
    blocks = [block for kind, block in BLOCKS if kind == "yaml"]
    assert blocks
    for block in blocks:
        for part, value in parse_yaml(block, "README").value.items():
            TypeAdapter(document_keys(Recipe)[part].annotation).validate_json(json.dumps(value))


def test_every_recipe_is_listed() -> None:
    listed = re.findall(r"^\| `([\w/]+)` \|", README, re.MULTILINE)
    assert sorted(name for name in listed if "/" in name) == sorted(shipped_recipes())


def test_the_tree_is_complete_and_true() -> None:
    """Every source file stands in the tree, and nothing else."""
    (tree,) = [block for kind, block in BLOCKS if kind == "text"]
    listed, folders = set(), {-1: Path()}
    for line in tree.splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        depth = indent // 2
        path = folders[depth - 1] / name
        if name.endswith("/"):
            folders[depth] = path
        else:
            listed.add(path.as_posix())
            assert len(line.split()) > 1, f"{name}: say what it is for"
    files = {
        path.relative_to(ROOT).as_posix()
        for folder in ("mmssl", "pipelines", "tools")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".txt", ".jinja") and path.name != "__init__.py" and "__pycache__" not in path.parts
    }
    assert listed - files == set(), "listed and not there"
    assert files - listed == set(), "there and not listed"
