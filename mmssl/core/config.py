"""The strict base of every config, and durations.

Each Config is defined beside the class that it builds, is frozen, refuses unknown keys and does not convert types: `"3"` is not 3.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema, to_json, to_jsonable_python


class Config(BaseModel):
    """Base of every config: frozen, strict, no unknown keys, defaults validated too.

    In Python, values may be written as in a recipe (text for paths and durations, lists, mappings), and one text for a list of
    texts: `DataConfig(shards="shards/train")`. They are validated as those of a recipe are.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        fields = type(self).model_fields
        written = {k: [v] if k in fields and _is_one_text(fields[k].annotation, v) else v for k, v in values.items()}
        document = to_json(to_jsonable_python(written, fallback=_plain))
        self.__pydantic_validator__.validate_json(document, self_instance=self)

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # recipes are validated without a detour through it


def _is_one_text(annotation: Any, value: Any) -> bool:
    """Whether a single text was given where only a list of texts is allowed."""
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    bare = [get_args(option)[0] if get_origin(option) is Annotated else option for option in options]
    return isinstance(value, str) and tuple[str, ...] in bare and str not in bare


def _plain(value: Any) -> str:
    if isinstance(value, Duration):
        return str(value)
    raise TypeError(f"got a value of type {type(value).__name__}, wanted a value that YAML can hold: {value!r}")


def _rising(values: tuple[float, float]) -> tuple[float, float]:
    if not 0 < values[0] <= values[1]:
        raise ValueError(f"got {list(values)}, wanted [smallest, largest] with 0 < smallest <= largest")
    return values


def url_of(path: Path) -> str | None:
    """The URL that a path was written as, of which `Path` makes `https:/host`; None: it is a path."""
    found = _URL.match(str(path))
    return f"{found[0]}/{str(path)[found.end() :]}" if found else None


def _local(path: Path) -> Path:
    url = url_of(path)
    if url is not None:
        raise ValueError(f"got the URL {url!r}, wanted a path of this machine: download it first")
    return path


def _at_most_one(values: tuple[float, float]) -> tuple[float, float]:
    if values[1] > 1:
        raise ValueError(f"got {list(values)}, wanted fractions, at most 1")
    return values


@dataclass(frozen=True)
class Entries:
    """Marks a tuple of fixed length with names of its entries, for messages: `Annotated[tuple[float, float], LOW_HIGH]`."""

    names: tuple[str, ...]


LOW_HIGH = Entries(("low", "high"))

LocalPath = Annotated[Path, AfterValidator(_local)]
"""Path of a file or folder of this machine."""
Probability = Annotated[float, Field(ge=0, le=1)]
Range = Annotated[tuple[float, float], LOW_HIGH, AfterValidator(_rising)]
"""Smallest and largest value of a randomly drawn setting, both above 0."""
Share = Annotated[Range, AfterValidator(_at_most_one)]
"""Smallest and largest fraction, at most 1."""

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/(?=[^/])")
_UNITS = {"step": "steps", "sample": "samples", "epoch": "epochs", "percent": "percent", "%": "percent"}
_DURATION = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Z%]+)\s*")


def _ceil(steps: float) -> int:
    """Round up, except for floating-point noise: 1.1 * 100 / 10 is 11 steps. Anything above 0 is at least one step."""
    return max(math.ceil(round(steps, 6)), int(steps > 0))


class Duration:
    """A length of training, written `"2000 steps"`, `"1.5 epochs"`, `"12.8e6 samples"` or `"10 percent"`.

    An epoch is one pass over the training samples; percent is of the whole run. The loop sees steps only.
    """

    def __init__(self, text: str) -> None:
        match = _DURATION.fullmatch(text)
        unit = _UNITS.get(match[2].lower().removesuffix("s") or "") if match else None
        if match is None or unit is None:
            raise ValueError(
                f"got {text!r}, wanted a number and a unit: steps, samples, epochs or percent, as in '2000 steps'"
            )
        self.amount = float(match[1].replace("_", ""))
        self.unit = unit

    def steps(self, *, batch_size: int, epoch_samples: int, total_steps: int | None = None) -> int:
        """Length in optimizer steps, rounded up.

        Args:
            batch_size: samples of the global batch.
            epoch_samples: samples of one pass over the training data.
            total_steps: steps of the whole run; needed for percent only.

        Raises:
            ValueError: percent without a known total.
        """
        if self.unit == "percent":
            if total_steps is None:
                raise ValueError(
                    f"{self} is the length of the run, which cannot be a percentage of itself: give steps, samples or epochs"
                )
            return _ceil(self.amount * total_steps / 100)
        if self.unit == "steps":
            return _ceil(self.amount)
        # Epochs follow each other without a gap, and batches cross their borders: nothing is dropped, so samples are what counts.
        samples = self.amount * epoch_samples if self.unit == "epochs" else self.amount
        return _ceil(samples / batch_size)

    def __str__(self) -> str:
        amount = int(self.amount) if self.amount.is_integer() else self.amount
        return f"{amount} {self.unit}"

    def __repr__(self) -> str:
        return f"Duration({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Duration) and (self.amount, self.unit) == (other.amount, other.unit)

    def __hash__(self) -> int:
        return hash((self.amount, self.unit))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validated, serialization=core_schema.to_string_ser_schema()
        )

    @classmethod
    def _validated(cls, value: Any) -> Duration:
        # Not a str schema: defaults, which are durations already, are validated in the mode of the document around them.
        return value if isinstance(value, cls) else cls(value if isinstance(value, str) else repr(value))


def _positive(duration: Duration) -> Duration:
    if duration.amount == 0:
        raise ValueError(f"got '{duration}', wanted more than 0, as in '1 {duration.unit}'")
    return duration


PositiveDuration = Annotated[Duration, AfterValidator(_positive)]
"""A duration that cannot be zero: the length of a run, or the time between two events of one."""
