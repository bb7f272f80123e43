"""Sentences for mistakes: all at once, with file, line, path, what was got and what is allowed."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from mmssl.core.config import Config, Duration
from mmssl.core.errors import RecipeError
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

    @model_validator(mode="after")
    def _named(self) -> Toy:
        if self.name == "bad":
            raise ValueError("the name 'bad' is taken: choose another")
        return self


GOOD = "name: x\nlength: 3 epochs\nshapes:\n  a: {kind: square, side: 2}\n"


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
    joined = "\n".join(got)
    assert "toy.yaml:1: name: got 3, wanted a valid string" in joined
    assert (
        "toy.yaml:2: lenght: unknown key, did you mean 'length'?; allowed here: length, mode, name, numbers, one, shapes"
        in joined
    )
    assert "toy.yaml:1: length: missing; this key must be stated" in joined
    assert "toy.yaml:3: mode: got \"fats\", did you mean 'fast'?; allowed: 'fast' or 'slow'" in joined
    assert "toy.yaml:5: shapes.a: got kind 'sqare', did you mean 'square'?; allowed: 'square', 'circle'" in joined
    assert "toy.yaml:6: shapes.b.side: unknown key; allowed here: centre, kind, radius" in joined
    assert "toy.yaml:6: shapes.b.radius: missing" in joined
    assert "toy.yaml:8: one.sid: unknown key, did you mean 'side'?; allowed here: kind, side" in joined


def test_missing_kind_lists_the_kinds() -> None:
    assert (
        "toy.yaml:4: shapes.a: missing its `kind`; allowed: 'circle', 'square'"
        in mistakes(GOOD.replace("kind: square, ", ""))[1]
    )


def test_no_silent_conversion() -> None:
    assert 'shapes.a.side: got "2", wanted a valid number' in mistakes(GOOD.replace("side: 2", "side: '2'"))[1]
    assert "numbers.1: got 2.5" in mistakes(GOOD + "numbers: [1, 2.5]\n")[1]


def test_cross_field_rules_and_durations_speak_for_themselves() -> None:
    assert mistakes(GOOD.replace("name: x", "name: bad"))[1].endswith("the name 'bad' is taken: choose another")
    assert "length: got '3 eons', wanted a number and a unit" in mistakes(GOOD.replace("3 epochs", "3 eons"))[1]


def test_too_few_entries() -> None:
    assert mistakes(GOOD, "some=[]")[1] == "override 'some=[]': some: got a list [], wanted at least 1 entry"


def test_one_entry_in_place_of_a_list() -> None:
    assert mistakes(GOOD, "some=3")[1] == "override 'some=3': some: got 3, wanted a list: [3]"
    assert mistakes(GOOD, "some={a: 1}")[1].endswith("wanted a list")


def test_an_override_is_named_as_the_place() -> None:
    assert "override 'shapes.a.side=wide': shapes.a.side: got \"wide\"" in mistakes(GOOD, "shapes.a.side=wide")[1]


def test_not_a_mapping() -> None:
    with pytest.raises(RecipeError, match="wanted a mapping"):
        validate_text(Toy, "[1]", "toy.yaml")
