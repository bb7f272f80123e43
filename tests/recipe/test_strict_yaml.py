"""The YAML 1.2 reader and overrides."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from mmssl.core.errors import RecipeError
from mmssl.recipe.strict_yaml import parse_yaml, set_override


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("on", "on"),
        ("no", "no"),
        ("3:30", "3:30"),
        ("12:30:00", "12:30:00"),
        ("2026-11-21", "2026-11-21"),
        ("0x1F", 31),
        ("0o17", 15),
        ("017", 17),
        ("1_000", "1_000"),
        (".5", 0.5),
        ("-2", -2),
        ("true", True),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        (".inf", ".inf"),
        ("[1, a, {b: 2.0}]", [1, "a", {"b": 2.0}]),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    got = parse_yaml(text, "x").value
    assert got == value
    assert type(got) is type(value)


def test_lines_are_remembered() -> None:
    document = parse_yaml("a: 1\nb:\n  c: [1,\n    2]\n", "x.yaml")
    assert document.lines[("a",)] == 1
    assert document.lines[("b", "c")] == 3
    assert document.lines[("b", "c", 1)] == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", ["x.yaml:3", "'a'", "line 1"]),
        ("a: &x [1]\nb: *x\n", ["x.yaml:2", "alias"]),
        ("a: !!python/object:os.system 1\n", ["x.yaml:1", "tag"]),
        ("a: [1\nb: 2\n", ["x.yaml:2", "not YAML"]),
        ("? [a]\n: 1\n", ["as a key"]),
        ("a: " + "x" * 1_000_001, ["at most 1000000"]),
    ],
)
def test_what_is_refused_says_where(text: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as error:
        parse_yaml(text, "x.yaml")
    for word in words:
        assert word in str(error.value)


def test_overrides() -> None:
    value = {"optimizer": {"lr": 1.0}, "pairs": [["a", "b"]]}
    assert set_override(value, "optimizer.lr=3e-4") == ("optimizer", "lr")
    set_override(value, "pairs.0.1=c")
    set_override(value, "data.shards=[x, y]")
    set_override(value, "data.pattern={000..007}.tar")
    set_override(value, "name=")
    assert value == {
        "optimizer": {"lr": 3e-4},
        "pairs": [["a", "c"]],
        "data": {"shards": ["x", "y"], "pattern": "{000..007}.tar"},
        "name": None,
    }


@pytest.mark.parametrize("assignment", ["lr", "=3", "optimizer.lr.x=3", "pairs.7=1", "pairs.a=1"])
def test_impossible_overrides_are_refused(assignment: str) -> None:
    with pytest.raises(RecipeError):
        set_override({"optimizer": {"lr": 1.0}, "pairs": [1]}, assignment)


NESTED: dict[str, Callable[[int], str]] = {
    "brackets": lambda levels: "a: " + "[" * (levels - 1) + "]" * (levels - 1),
    "open brackets": lambda levels: "a: " + "[" * (levels - 1),
    "braces": lambda levels: "{a: " * levels + "}" * levels,
    "dashes": lambda levels: "a:\n  " + "- " * (levels - 1) + "x",
    "indents": lambda levels: "\n".join(" " * i + "a:" for i in range(levels)) + " x",
}
"""Documents of so many lists and mappings within each other."""


@pytest.mark.parametrize("form", NESTED)
@pytest.mark.parametrize("levels", [33, 500, 100_000])
def test_depth_is_bounded(form: str, levels: int) -> None:
    text = NESTED[form](min(levels, 1400) if form == "indents" else levels)  # 1400 indents are a megabyte
    started = time.process_time()
    with pytest.raises(RecipeError, match=r"x.yaml:\d+: got lists and mappings more than 32 deep, wanted") as error:
        parse_yaml(text, "x.yaml")
    assert time.process_time() - started < 5
    assert ("x.yaml:33:" in str(error.value)) == (form == "indents")


@pytest.mark.parametrize("form", sorted(NESTED.keys() - {"open brackets"}))
def test_what_is_less_deep_is_read(form: str) -> None:
    value: object = parse_yaml(NESTED[form](32), "x.yaml").value
    depth = 0
    while isinstance(value, dict | list):
        depth += 1
        value = next(iter(value.values() if isinstance(value, dict) else value), None)
    assert depth == 32


@pytest.mark.parametrize("levels", [33, 500, 100_000])
def test_depth_of_overrides_is_bounded(levels: int) -> None:
    for assignment in ("a=" + "[" * levels, "a=" + "[" * levels + "]" * levels, ".".join("a" * levels) + "=1"):
        with pytest.raises(RecipeError, match=r"^override 'a[=.].*':.* 32 ") as error:
            set_override({}, assignment)
        assert len(str(error.value)) < 300
    set_override({}, ".".join("a" * 32) + "=1")
