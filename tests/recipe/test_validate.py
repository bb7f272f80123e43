"""Sentences for mistakes: all at once, with file, line, path, what was got and what is allowed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic import Field, TypeAdapter, model_validator

from mmssl.core.config import LOW_HIGH, Config, Duration
from mmssl.core.errors import RecipeError
from mmssl.core.schedules import Bounds, Scheduled
from mmssl.recipe.annotations import field_annotation, options, unwrapped
from mmssl.recipe.describe import registered
from mmssl.recipe.recipe import Recipe
from mmssl.recipe.validate import validate_text


class Square(Config):
    kind: Literal["square"] = "square"
    side: float


class Circle(Config):
    kind: Literal["circle"] = "circle"
    radius: float
    centre: tuple[float, float] = (0.0, 0.0)


class Toy(Config):
    name: str
    length: Duration
    mode: Literal["fast", "slow"] = "fast"
    shapes: dict[str, Annotated[Square | Circle, Field(discriminator="kind")]]
    one: Square | None = None
    numbers: tuple[int, ...] = ()
    some: Annotated[tuple[int, ...], Field(min_length=1)] = (1,)
    range: Annotated[tuple[float, float], LOW_HIGH] | None = None
    colour: tuple[int, int, int] = (0, 0, 0)
    names: tuple[str, ...] | str = "all"
    tiles: bool | Annotated[int, Field(ge=1)] | None = None
    share: float = Field(default=0.5, gt=0, lt=1)
    rate: Annotated[Scheduled, Bounds(ge=0)] = 0.5
    extents: dict[str, tuple[int, int]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _named(self) -> Toy:
        if self.name == "bad":
            raise ValueError("the name 'bad' is taken: choose another")
        return self


GOOD = "name: x\nlength: 3 epochs\nshapes:\n  a: {kind: square, side: 2}\n"


VALUE = "a mapping with kind 'constant', 'linear', 'cosine' or 'exponential', or a number, at least 0"


def mistakes(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as error:
        validate_text(Toy, text, "toy.yaml", overrides)
    return str(error.value).split("\n  ")


def test_good_text_and_overrides() -> None:
    toy = validate_text(
        Toy, GOOD, "toy.yaml", ["shapes.b={kind: circle, radius: 1e-1, centre: [1, 2]}", "numbers=[1, 2]"]
    )
    assert toy.length == Duration("3 epochs")
    assert toy.shapes["b"] == Circle(radius=0.1, centre=(1.0, 2.0))
    assert toy.numbers == (1, 2)


def test_all_mistakes_at_once() -> None:
    text = "name: 3\nlenght: 3 epochs\nmode: fats\nshapes:\n  a: {kind: sqare, side: 2}\n  b: {kind: circle, side: 2}\n"
    text += "one:\n  sid: 2\n"
    got = mistakes(text)
    assert got[0] == "toy.yaml: 9 mistakes"
    assert len(got) == 10
    joined = "\n".join(got)
    assert "toy.yaml:1: name: got 3, wanted a valid string" in joined
    assert (
        "toy.yaml:2: lenght: unknown key, did you mean 'length'?; allowed here: colour, extents, length, mode, "
        "name, names, numbers, one, range, rate, shapes, share, some, tiles" in joined
    )
    assert "toy.yaml:1: length: missing; wanted a duration, as '2000 steps'" in joined
    assert "toy.yaml:3: mode: got \"fats\", did you mean 'fast'?; allowed: 'fast' or 'slow'" in joined
    assert "toy.yaml:5: shapes.a: got kind 'sqare', did you mean 'square'?; allowed: 'circle', 'square'" in joined
    assert "toy.yaml:6: shapes.b.side: unknown key; allowed here: centre, kind, radius" in joined
    assert "toy.yaml:6: shapes.b.radius: missing; wanted a number" in joined
    assert "toy.yaml:8: one.sid: unknown key, did you mean 'side'?; allowed here: kind, side" in joined


def test_missing_kind_lists_the_kinds() -> None:
    assert (
        "toy.yaml:4: shapes.a: missing its `kind`; allowed: 'circle', 'square'"
        in mistakes(GOOD.replace("kind: square, ", ""))[1]
    )


class Dots(Config):
    kind: Literal["dots"] = "dots"
    dots: int = Field(ge=2)
    size: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _fit(self) -> Dots:
        if self.dots * self.size > 10:
            raise ValueError("the dots do not fit")
        return self


class Page(Config):
    drawn: Annotated[Dots | Circle, Field(discriminator="kind")] | None = None
    only: Dots | None = None


@pytest.mark.parametrize("where", ["drawn", "only"])
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("dots: 2, size: 0", ".size: got 0, wanted a number, above 0"),
        ("dots: 1", ".dots: got 1, wanted an integer, at least 2"),
        ("dots: 2, sise: 3", ".sise: unknown key, did you mean 'size'?; allowed here: dots, kind, size"),
        ("dots: 20", ": the dots do not fit"),
    ],
)
def test_a_kind_with_a_key_of_its_own_name(where: str, given: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        validate_text(Page, f"{where}: {{kind: dots, {given}}}", "page.yaml")
    assert str(error.value) == f"page.yaml: 1 mistake\n  page.yaml:1: {where}{sentence}"


def test_no_silent_conversion() -> None:
    assert 'shapes.a.side: got "2", wanted a valid number' in mistakes(GOOD.replace("side: 2", "side: '2'"))[1]
    assert "numbers.1: got 2.5" in mistakes(GOOD + "numbers: [1, 2.5]\n")[1]


@pytest.mark.parametrize("share", [0, 1.5])
def test_a_number_out_of_range_is_told_all_bounds(share: float) -> None:
    said = mistakes(GOOD + f"share: {share}\n")[1]
    assert said == f"toy.yaml:5: share: got {share}, wanted a number, above 0, below 1"


def test_a_rule_of_the_whole_document_has_no_key() -> None:
    assert mistakes(GOOD.replace("name: x", "name: bad"))[1] == "toy.yaml:1: the name 'bad' is taken: choose another"


def test_cross_field_rules_and_durations_speak_for_themselves() -> None:
    assert mistakes(GOOD.replace("name: x", "name: bad"))[1].endswith("the name 'bad' is taken: choose another")
    assert "length: got '3 eons', wanted a number and a unit" in mistakes(GOOD.replace("3 epochs", "3 eons"))[1]


def test_too_few_entries() -> None:
    assert mistakes(GOOD, "some=[]")[1] == (
        "override 'some=[]': some: got a list [], wanted a list of integers, at least 1 entry"
    )


def test_one_entry_in_place_of_a_list() -> None:
    assert mistakes(GOOD, "some=3")[1].endswith("some: got 3, wanted a list of integers, at least 1 entry: [3]")
    assert mistakes(GOOD, "some={a: 1}")[1].endswith("wanted a list of integers, at least 1 entry")
    assert mistakes(GOOD, "some=x")[1].endswith('got "x", wanted a list of integers, at least 1 entry'), (
        "[x] is refused"
    )


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("range=6.0", "range: got 6.0, wanted two numbers [low, high]"),
        ("range=[6.0]", "range: got a list [6.0], wanted two numbers [low, high]"),
        ("range=[1, 2, 3]", "range: got a list [1, 2, 3], wanted two numbers [low, high]"),
        ("range=[1, high]", 'range.1: got "high", wanted a valid number'),
        ("range={low: 1}", "range: got a dict {'low': 1}, wanted two numbers [low, high]"),
        ("colour=3", "colour: got 3, wanted three integers [integer, integer, integer]"),
        ("extents={a: 1}", "extents.a: got 1, wanted two integers [integer, integer]"),
        ("extents=1", "extents: got 1, wanted a mapping of names to lists of two integers [integer, integer]"),
    ],
)
def test_lists_of_fixed_length_are_described(override: str, sentence: str) -> None:
    assert mistakes(GOOD, override)[0] == "toy.yaml: 1 mistake"
    assert mistakes(GOOD, override)[1] == f"override {override!r}: {sentence}"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("names=3", "names: got 3, wanted a list of strings, or a string"),
        ("names=[3]", "names.0: got 3, wanted a valid string"),
        ("tiles=0", "tiles: got 0, wanted true or false, or an integer, at least 1"),
        ("tiles=yes", 'tiles: got "yes", wanted true or false, or an integer, at least 1'),
    ],
)
def test_a_value_that_fits_none_of_several_types_is_one_mistake(override: str, sentence: str) -> None:
    assert mistakes(GOOD, override) == ["toy.yaml: 1 mistake", f"override {override!r}: {sentence}"]


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("-1", "rate: got -1, wanted at least 0"),
        ("null", f"rate: got null, wanted {VALUE}"),
        ("fast", f'rate: got "fast", wanted {VALUE}'),
        ("{kind: cosine, start: 1, final: a}", 'rate.final: got "a", wanted a valid number'),
        ("{kind: cosine, start: 1, final: -1}", "rate: got final -1, wanted at least 0"),
        (
            "{kind: cosine, start: 1, finl: 0}",
            "rate.finl: unknown key, did you mean 'final'?; allowed here: final, kind, ",
        ),
        ("{start: 1}", "rate: missing its `kind`; allowed: 'constant', 'cosine', 'exponential', 'linear'"),
        ("{kind: linear, start: 1}", "rate: got a schedule of kind 'linear' without final, wanted start and final"),
    ],
)
def test_a_value_is_a_number_or_a_schedule(value: str, sentence: str) -> None:
    (_, line) = mistakes(GOOD, f"rate={value}")
    assert f": {sentence}" in line


def test_what_is_missing_names_its_type_and_choices() -> None:
    class Strict(Config):
        rate: float = Field(gt=0, le=1)
        mode: Literal["fast", "slow"]
        shape: Annotated[Square | Circle, Field(discriminator="kind")]
        one: Square
        shapes: Annotated[dict[str, Annotated[Square | Circle, Field(discriminator="kind")]], Field(min_length=1)]
        folder: Path
        pair: tuple[str, str]
        names: tuple[str, ...] | str
        on: bool
        size: Annotated[int, Field(ge=8)]

    with pytest.raises(RecipeError) as error:
        validate_text(Strict, "{}", "strict.yaml")
    assert [line.removeprefix("strict.yaml:1: ") for line in str(error.value).split("\n  ")[1:]] == [
        "rate: missing; wanted a number, above 0, at most 1",
        "mode: missing; wanted 'fast' or 'slow'",
        "shape: missing; wanted a mapping with kind 'square' or 'circle'",
        "one: missing; wanted a mapping with `kind: square`",
        "shapes: missing; wanted a mapping of names to mappings, kind 'square' or 'circle'; at least 1 entry",
        "folder: missing; wanted a path",
        "pair: missing; wanted two strings [string, string]",
        "names: missing; wanted a list of strings, or a string",
        "on: missing; wanted true or false",
        "size: missing; wanted an integer, at least 8",
    ]


def lists() -> list[Any]:
    """Every field of a registered config that takes a list, as (config, name)."""
    return [
        pytest.param(config, name, id=f"{config.__name__}.{name}")
        for config in registered(Recipe)
        for name, field in config.model_fields.items()
        if any(get_origin(unwrapped(option)[0]) is tuple for option in options(field_annotation(field)))
    ]


@pytest.mark.parametrize(("config", "name"), lists())
def test_what_a_message_proposes_is_a_value_of_the_type(config: type[Config], name: str) -> None:
    """A scalar in place of a list, and a list that is too short: the answer is never one that is refused next."""
    field = config.model_fields[name]
    adapter = TypeAdapter(field_annotation(field))
    fixed = any(
        get_origin(bare) is tuple and get_args(bare)[-1] is not Ellipsis
        for bare in (unwrapped(option)[0] for option in options(field_annotation(field)))
    )
    for got in (3, 0.5, "word", [0.5]):
        try:
            validate_text(config, json.dumps({name: got}), "x.yaml")
            continue
        except RecipeError as error:
            said = [line for line in str(error).split("\n  ") if f": {name}: got" in line]
        for proposal in re.findall(r": (\[.*\])$", "\n".join(said), re.MULTILINE):
            adapter.validate_json(proposal, strict=True)
        if fixed and said:
            assert re.search(r"wanted (.*, or )?(two|three) \w+ \[\w", said[0]), said


def test_an_override_is_named_as_the_place() -> None:
    assert "override 'shapes.a.side=wide': shapes.a.side: got \"wide\"" in mistakes(GOOD, "shapes.a.side=wide")[1]


def test_not_a_mapping() -> None:
    with pytest.raises(RecipeError, match="wanted a mapping"):
        validate_text(Toy, "[1]", "toy.yaml")


def test_the_folder_of_a_document_stands_at_the_beginning_of_paths(tmp_path: Path) -> None:
    text = GOOD + 'names: ["{folder}/x", "{folder}", "{folder}s/x", "y/{folder}/x"]\n'
    assert validate_text(Toy, text, "toy.yaml", folder=tmp_path).names == (
        f"{tmp_path}/x", f"{tmp_path}", "{folder}s/x", "y/{folder}/x",
    )  # fmt: skip
    assert validate_text(Toy, text, "toy.yaml").names[0] == "{folder}/x"
