"""Strict configs and durations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field, ValidationError

from mmssl.core.config import Config, Duration


class Sizes(Config):
    width: int
    rate: float = 0.5
    every: Duration = Duration("10 steps")


def test_config_takes_json_and_is_frozen() -> None:
    config = Sizes.model_validate_json('{"width": 3, "every": "1.5 epochs"}')
    assert (config.width, config.rate, config.every) == (3, 0.5, Duration("1.5 epochs"))
    with pytest.raises(ValidationError, match="frozen"):
        config.width = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"width": "3"}', "valid integer"),
        ('{"width": 3.0}', "valid integer"),
        ('{"width": true}', "valid integer"),
        ('{"width": 3, "hight": 4}', "Extra inputs"),
        ('{"width": 3, "rate": "0.1"}', "valid number"),
        ('{"width": 3, "rate": NaN}', "finite number"),
        ('{"width": 3, "every": 10}', "wanted a number and a unit"),
        ('{"width": 3, "every": "10 weeks"}', "wanted a number and a unit"),
        ("{}", "Field required"),
    ],
)
def test_config_refuses(text: str, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Sizes.model_validate_json(text)


class Written(Config):
    size: Sizes
    shards: Annotated[tuple[str, ...], Field(min_length=1)]
    names: tuple[str, ...] | str = ()
    folder: Path | None = None
    pair: tuple[str, str] = ("a", "b")
    many: dict[str, Sizes] = Field(default_factory=dict)
    extensions: Annotated[tuple[str, ...], Field(min_length=1)] | None = None


def test_python_may_write_values_as_recipes_do() -> None:
    plain = Written(
        size={"width": 3, "every": "2 epochs"},
        shards="x",
        names="file.txt",
        folder="a/b",
        pair=["b", "a"],
        extensions="png",
    )  # type: ignore[arg-type]
    assert plain == Written(
        size=Sizes(width=3, every=Duration("2 epochs")),
        shards=("x",),
        names="file.txt",
        folder=Path("a/b"),
        pair=("b", "a"),
        extensions=("png",),
    )
    assert Written(size=plain.size, shards=["x", "y"], many={"one": plain.size}).many["one"] == plain.size  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"shards": 3}, {"shards": [3]}, {"folder": 3}, {"size": {"width": "3"}}, {"size": {"width": 3.0}}]
)
def test_python_is_as_strict_as_recipes(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="Input should be"):
        Written(**{"size": {"width": 3}, "shards": "x", **wrong})
    with pytest.raises(TypeError, match="got a value of type object"):
        Written(size=object(), shards="x")  # type: ignore[arg-type]


def test_one_text_for_a_list_is_refused_in_a_recipe() -> None:
    with pytest.raises(ValidationError, match="valid array"):
        Written.model_validate_json('{"size": {"width": 3}, "shards": "x"}')


def test_config_round_trips_through_json() -> None:
    config = Sizes(width=3, every=Duration("12.8e6 samples"))
    assert Sizes.model_validate_json(config.model_dump_json()) == config
    assert '"every":"12800000 samples"' in config.model_dump_json()


def test_defaults_are_validated() -> None:
    class Wrong(Config):
        width: int = "three"  # type: ignore[assignment]

    with pytest.raises(ValidationError, match="valid integer"):
        Wrong()


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("2000 steps", 2000, "steps"),
        ("1 step", 1, "steps"),
        ("12.8e6 samples", 12.8e6, "samples"),
        ("1_000 Samples", 1000, "samples"),
        (" 1.5 epochs ", 1.5, "epochs"),
        ("1epoch", 1, "epochs"),
        ("10 percent", 10, "percent"),
        ("10%", 10, "percent"),
        ("0 steps", 0, "steps"),
    ],
)
def test_duration_reads(text: str, amount: float, unit: str) -> None:
    duration = Duration(text)
    assert (duration.amount, duration.unit) == (amount, unit)
    assert Duration(str(duration)) == duration
    assert hash(Duration(str(duration))) == hash(duration)


@pytest.mark.parametrize(
    "text", ["", "steps", "10", "-1 steps", "1 hour", "1 2 steps", "one epoch", "inf steps", "_1 steps"]
)
def test_duration_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="wanted a number and a unit"):
        Duration(text)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("7 steps", 7),
        ("6.5 steps", 7),
        ("64 samples", 2),
        ("65 samples", 3),
        ("1 epoch", 4),  # 100 samples are 3.125 batches of 32, and the next epoch goes on in the fourth
        ("1.5 epochs", 5),
        ("0.01 epochs", 1),
        ("10 percent", 5),
        ("0 steps", 0),
    ],
)
def test_duration_in_steps(text: str, steps: int) -> None:
    assert Duration(text).steps(batch_size=32, epoch_samples=100, total_steps=50) == steps


def test_percent_needs_the_length_of_the_run() -> None:
    with pytest.raises(ValueError, match="give steps, samples or epochs"):
        Duration("10 percent").steps(batch_size=32, epoch_samples=100)


def test_durations_of_other_units_differ() -> None:
    assert Duration("1 step") != Duration("1 epoch")
    assert Duration("1 step") != "1 steps"
    assert repr(Duration("1 step")) == "Duration('1 steps')"


def test_duration_defaults_hold_where_json_leaves_them_out() -> None:
    config = Sizes.model_validate_json('{"width": 3}')
    assert config.every == Duration("10 steps")
    assert Sizes(width=3, every="3 steps").every == Duration("3 steps")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["1234567 steps", "12_800_001 samples", "33.3333333 percent"])
def test_duration_survives_being_written_down(text: str) -> None:
    assert Duration(str(Duration(text))) == Duration(text)


@pytest.mark.parametrize(("text", "steps"), [("7 percent", 7), ("1.1 epochs", 11)])
def test_duration_is_not_rounded_up_by_floating_point_noise(text: str, steps: int) -> None:
    assert Duration(text).steps(batch_size=10, epoch_samples=100, total_steps=100) == steps
