"""The documents are true: commands parse, files and links exist, recipes validate, and lists are complete."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image
from pydantic import TypeAdapter

from mmssl.data.modality import ModalityConfig
from mmssl.recipe.flat import document_keys
from mmssl.recipe.recipe import Recipe
from mmssl.recipe.shipped import shipped_recipes
from mmssl.recipe.strict_yaml import parse_yaml
from mmssl.recipe.unions import ModalityUnion, SingleObjectiveUnion, members
from mmssl.recipe.validate import validate_text
from pipelines import cli, evaluate, pretrain
from tests.recipe.test_imported import CLIPS, open_clip_folder
from tests.test_architecture import FLOORS
from tools import peer_env

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("", "configs", "mmssl", "mmssl/data", "mmssl/objectives", "pipelines", "tools")
DOCUMENTS = {f"{folder}/README.md".lstrip("/"): (ROOT / folder / "README.md").read_text() for folder in FOLDERS}
README = DOCUMENTS["README.md"]
BLOCKS = [
    (name, kind, block)
    for name, text in DOCUMENTS.items()
    for kind, block in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
]
COMMANDS = [
    shlex.split(line, comments=True) for _, kind, block in BLOCKS if kind == "sh" for line in block.splitlines() if line
]
MODULES = {"pipelines.pretrain": pretrain.pretrain, "pipelines.evaluate": evaluate.evaluate}
SOURCES = [path for folder in ("mmssl", "pipelines") for path in (ROOT / folder).rglob("*.py")]


def section(title: str) -> str:
    """The text of a section of README."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


ALL_VERBS = typer.main.get_command(cli.full())


def parse(command: Any, arguments: list[str]) -> None:
    """Let the command line parse the arguments, down to the verb, without running it."""
    context = command.make_context("mmssl", list(arguments)) if hasattr(command, "commands") else None
    while context is not None and hasattr(command, "commands"):
        if not arguments and command.invoke_without_command:
            return
        name, *arguments = arguments
        assert name in command.commands, f"no verb {name!r}"
        command = command.commands[name]
    command.make_context(command.name, arguments)


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 15


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_is_one(command: list[str]) -> None:
    words = list(command)
    if words[0] == "python3":
        assert (ROOT / words[1]).is_file()
        words = words[2:]
    if words[0] == "--env":
        assert words[1] in peer_env.ENVIRONMENTS
        words = words[2:]
    if words[0] == "mmssl":
        parse(ALL_VERBS, words[1:])
        if words[1] == "pretrain":
            imported = any(
                made[:2] == ["mmssl", "import"] and words[2] == f"{made[-1]}/recipe.yaml" for made in COMMANDS
            )
            assert words[2] in shipped_recipes() or imported
    elif words[0] in ("accelerate", "torchrun"):
        module = words.index("-m")
        alone = typer.Typer()
        alone.command()(MODULES[words[module + 1]])
        parse(typer.main.get_command(alone), words[module + 2 :])
        assert words[module + 2] in shipped_recipes()
    elif words[:3] == ["python", "-m", "pytest"]:
        assert all((ROOT / word).is_file() for word in words[3:] if word.endswith(".py"))
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    else:
        assert words[0] in ("pip", "pytest"), f"not a command that a document may name: {words[0]}"


def test_python_blocks_parse_and_name_what_exists() -> None:
    import mmssl

    blocks = [block for _, kind, block in BLOCKS if kind == "python"]
    assert blocks
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
                continue
            if node.value.id in ("mmssl", "model"):
                assert hasattr(mmssl if node.value.id == "mmssl" else mmssl.Model, node.attr)


def test_the_first_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block, *_) = [block for name, kind, block in BLOCKS if (name, kind) == ("README.md", "python")]
    assert len([line for line in block.splitlines() if line]) == 3
    model = open_clip_folder("vit", tmp_path / "hub")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "epoch_32.pt")
    Image.new("RGB", (40, 30), "orange").save(tmp_path / "cat.jpg")
    monkeypatch.setattr("open_clip.get_model_config", lambda name: {"ViT-B-32": CLIPS["vit"]}[name])  # a small one
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out in ("['cat']\n", "['dog']\n")


def test_yaml_blocks_are_parts_of_recipes() -> None:
    blocks = [block for name, kind, block in BLOCKS if kind == "yaml" and name != "README.md"]
    assert blocks
    keys = document_keys(Recipe)
    for block in blocks:
        for part, value in parse_yaml(block, "README").value.items():
            TypeAdapter(keys[part].annotation).validate_json(json.dumps(value))


def test_the_recipe_of_readme_is_whole() -> None:
    (block,) = [block for name, kind, block in BLOCKS if kind == "yaml" and name == "README.md"]
    recipe = validate_text(Recipe, block, "README.md")
    recipe.build_modalities()
    assert len(block.splitlines()) <= 25


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", DOCUMENTS[name]):
        assert ((ROOT / name).parent / target).exists(), target


def test_readme_is_read_in_one_sitting() -> None:
    assert 5_000 < len(README.encode()) <= 10_000


def test_every_recipe_is_listed() -> None:
    listed = re.findall(r"^\| `([\w/]+)` \|", DOCUMENTS["configs/README.md"], re.MULTILINE)
    assert sorted(name for name in listed if "/" in name) == sorted(shipped_recipes())


METHODS = DOCUMENTS["mmssl/objectives/README.md"].split("## Published methods")[1].split("\n## ")[0]


def test_every_recipe_of_one_objective_is_that_of_a_published_method() -> None:
    """And names a source, of a paper or of its journal."""
    rows = [row.split(" | ") for row in re.findall(r"^\| (.*) \|$", METHODS, re.MULTILINE)][1:]
    assert all(len(row) == 4 and re.search(r"arXiv:\d|\d{4}|JMLR|solo-learn|eb_jepa", row[3]) for row in rows)
    named = [name for row in rows for name in re.findall(r"`([\w/]+)`", row[1])]
    kinds = {
        name: parse_yaml(path.read_text(), name).value["objective"]["kind"] for name, path in shipped_recipes().items()
    }
    alone = {name for name, kind in kinds.items() if kind not in ("clip", "weighted")}
    assert len(named) == len(set(named))
    assert alone <= set(named) <= set(kinds)


def test_gains_of_methods_are_those_of_the_runs() -> None:
    runs: dict[str, list[dict[str, Any]]] = {}
    for line in (ROOT / "tools/learning.jsonl").read_text().splitlines():
        run = json.loads(line)
        runs.setdefault(run["name"], []).append(run)
    cells = re.findall(r"`([\w,\- ]+)` (?:uniformity )?([+-][\d.]+), (?:RankMe )?([+-][\d.]+)( \(one seed\))?", METHODS)
    assert len(cells) >= 40
    for name, *said, one in cells:
        assert len(runs[name]) == (1 if one else 3), name
        for figure, wanted in zip(runs[name][0]["after"], said, strict=False):
            gain = sum(run["after"][figure] - run["before"][figure] for run in runs[name]) / len(runs[name])
            assert float(wanted) == pytest.approx(gain, abs=0.51 * 10.0 ** -len(wanted.partition(".")[2])), (
                name,
                figure,
            )


def test_the_house_has_all_folders() -> None:
    packages = {f"mmssl/{path.parent.name}" for path in (ROOT / "mmssl").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `([\w/]+)` \|", section("The house"), re.MULTILINE)) == packages | {"pipelines"}


def test_the_map_has_all_rooms() -> None:
    rooms = {path.parent.relative_to(ROOT / "mmssl").as_posix() for path in (ROOT / "mmssl").rglob("*/__init__.py")}
    listed = set(re.findall(r"^\| \d \| `([\w/]+)` \|", DOCUMENTS["mmssl/README.md"], re.MULTILINE))
    assert listed == (rooms - {"."}) | {"pipelines"}


def test_the_map_has_the_floors_that_are_tested() -> None:
    """Those of the map and of the first lines of the folders."""
    for name, floor in FLOORS.items():
        room = name.removeprefix("mmssl.")
        assert f"\n| {floor} | `{room}` |" in DOCUMENTS["mmssl/README.md"], name
        assert (ROOT / name.replace(".", "/") / "__init__.py").read_text().startswith(f'"""Floor {floor}: '), name


def test_files_that_the_map_names_exist() -> None:
    named = re.findall(
        r"`([\w/.]+\.py)`", DOCUMENTS["mmssl/README.md"].split("\n## Where to change what\n")[1].split("\n## ")[0]
    )
    assert len(named) > 40
    assert [path for path in named if not (ROOT / "mmssl" / path).is_file()] == []


def importers(module: str) -> set[str]:
    """Source files that import a module of mmssl."""
    pattern = re.compile(rf"^\s*(from|import) {re.escape(module)}( |$)", re.MULTILINE)
    return {path.relative_to(ROOT).as_posix() for path in SOURCES if pattern.search(path.read_text())}


OBJECTIVES = [config for config in members(SingleObjectiveUnion) if config.__module__.startswith("mmssl.")]


@pytest.mark.parametrize("config", OBJECTIVES, ids=lambda config: config.__name__)
def test_what_an_objective_touches(config: type) -> None:
    """The files that README names, for every shipped one; checks of a recipe alone know more of pairs."""
    (row,) = re.findall(r"^\| objective \| (.*) \|$", section("Extend"), re.MULTILINE)
    named = {path for path in re.findall(r"`([\w/.]+)`", row) if "NAME" not in path and path.endswith(".py")}
    assert f"mmssl/objectives/{config.__module__.rpartition('.')[2]}.py" in {
        path.relative_to(ROOT).as_posix() for path in SOURCES
    }
    assert importers(config.__module__) - {"mmssl/recipe/checks.py"} <= named
    assert (ROOT / "tests/objectives" / f"test_{config.__module__.rpartition('.')[2]}.py").is_file()


MODALITIES = [config for config in members(ModalityUnion) if config.__module__.startswith("mmssl.")]


@pytest.mark.parametrize("config", MODALITIES, ids=lambda config: config.__name__)
def test_what_a_modality_touches(config: type[ModalityConfig]) -> None:
    """The files that README names; no other room asks for a modality by name, but measures of front-ends and of classes."""
    (row,) = re.findall(r"^\| modality \| (.*) \|$", section("Extend"), re.MULTILINE)
    named = {path for path in re.findall(r"`([\w/.]+)`", row) if "NAME" not in path and path.endswith(".py")}
    special = {"mmssl/recipe/suite.py", "pipelines/spectrogram_stats.py"}
    assert importers(config.__module__) - special <= named
    assert (ROOT / "tests/data/modalities" / f"test_{config.__module__.rpartition('.')[2]}.py").is_file()
    assert config.__name__ in (ROOT / "tests/contracts/test_modalities.py").read_text()
