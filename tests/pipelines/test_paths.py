"""A path that is missing, or of something else, ends every verb with the code of what it should be, and is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from pipelines import cli
from tests.pipelines.conftest import World

RECIPE, DATA, MODEL = 2, 3, 4
PATHS = (
    (RECIPE, ("pretrain", "{path}")),
    (DATA, ("pretrain", "{recipe}", 'data.shards=["{path}"]', "output={out}")),
    (MODEL, ("pretrain", "{recipe}", "--resume", "{path}", "output={out}")),
    (MODEL, ("pretrain", "{recipe}", "weights={path}", "output={out}")),
    (RECIPE, ("runs", "{path}")),
    (RECIPE, ("runs", "{run}", "{path}")),
    (RECIPE, ("explain", "{path}")),
    (MODEL, ("evaluate", "{path}")),
    (RECIPE, ("evaluate", "{run}", "{path}")),
    (RECIPE, ("evaluate", "{run}", "{path}.yaml")),
    (DATA, ("evaluate", "{run}", "image_text", "--data", "{path}")),
    (DATA, ("evaluate", "{run}", "--zero-shot", "{path}", "--classnames", "a,b")),
    (RECIPE, ("report", "{path}")),
    (DATA, ("report", "{run}", "--results", "{path}")),
    (DATA, ("report", "{run}", "--compare", "{path}")),
    (MODEL, ("average", "{run}", "{path}", "--out", "{out}")),
    (MODEL, ("compare", "{path}", "{run}")),
    (MODEL, ("compare", "{run}", "{path}")),
    (RECIPE, ("compare", "{run}", "{run}", "{path}")),
    (MODEL, ("embed", "{path}", "--shards", "{test}", "--out", "{out}")),
    (DATA, ("embed", "{run}", "--shards", "{path}", "--out", "{out}")),
    (DATA, ("embed", "{run}", "--files", "{path}", "--out", "{out}")),
    (DATA, ("index", "{path}")),
    (DATA, ("search", "{path}", "a cat")),
    (DATA, ("serve", "{path}")),
    (MODEL, ("import", "{path}", "--out", "{out}")),
    (MODEL, ("export", "{path}", "--out", "{out}")),
    (DATA, ("export", "{run}", "--out", "{out}", "--samples", "{path}")),
    (RECIPE, ("recipes", "show", "{path}")),
    (RECIPE, ("recipes", "diff", "{recipe}", "{path}")),
    (DATA, ("shards", "pack", "{path}", "{out}")),
    (DATA, ("shards", "index", "{path}")),
    (DATA, ("shards", "check", "{path}")),
    (DATA, ("shards", "check", "{test}", "--against", "{path}")),
    (MODEL, ("shards", "check", "{test}", "--against", "{test}", "--run", "{path}")),
    (DATA, ("shards", "filter", "{path}", "--out", "{out}")),
    (MODEL, ("shards", "filter", "{test}", "--out", "{out}", "--run", "{path}", "--keep-share", "0.5")),
    (DATA, ("shards", "stats", "{path}")),
    (DATA, ("bench", "data", "{path}")),
)
WITHOUT_PATHS = {"quickstart", "doctor", "recipes key"}


def verbs(app: typer.Typer, before: str = "") -> set[str]:
    """Names of all verbs of an application."""
    commands = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
    groups = [(str(group.name), group.typer_instance) for group in app.registered_groups]
    return {before + name for name in commands}.union(
        *(verbs(one, f"{name} ") for name, one in groups if one is not None)
    )


def test_every_verb_is_here() -> None:
    here = {
        " ".join(command[:2]) if command[0] in ("recipes", "shards", "bench") else command[0] for _, command in PATHS
    }
    assert here | WITHOUT_PATHS == verbs(cli.full())


@pytest.mark.parametrize("what", ["missing", "file", "empty"])
@pytest.mark.parametrize(
    ("code", "command"), PATHS, ids=lambda value: "-".join(value) if isinstance(value, tuple) else ""
)
def test_exit_codes_of_paths(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str], code: int, command: tuple[str, ...], what: str
) -> None:
    path = tmp_path / what
    if what == "file":
        path.write_text("just words\n")
    elif what == "empty":
        path.mkdir()
    places = {"path": path, "out": tmp_path / "out", "run": world.run, "recipe": world.recipe}
    assert world.mmssl(*[word.format(**places, test=world.shards / "test") for word in command]) == code
    said = capfd.readouterr()
    assert what in "".join((said.err + said.out).replace("│", "").split()), "the path is named"
    assert "Errno" not in said.err
    if what != "file":
        assert "(1 of 1)" not in said.err, "nothing was measured before"
