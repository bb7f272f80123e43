"""Type annotations of config fields as text (type, allowed values), and the configs of a union."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen, MultipleOf
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mmssl.core.config import Duration, Entries
from mmssl.core.schedules import Bounds

NOUNS = {float: "number", int: "integer", str: "string", Path: "path", Duration: "duration", Any: "value"}
COUNTS = {2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class Option:
    """One of the types that a key takes.

    Attributes:
        one, many: the type's noun, as "integer" and "integers".
        allowed: constraint, as "at least 1"; empty: everything.
        phrase: type and constraint in one, with an article if needed.
    """

    one: str
    many: str
    allowed: str = ""
    phrase: str = ""

    def __str__(self) -> str:
        return self.phrase or ", ".join(filter(None, (f"{_article(self.one)} {self.one}", self.allowed)))


def field_annotation(field: FieldInfo) -> Any:
    """The type of a field with its constraints, as one annotation."""
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def options(annotation: Any) -> list[Any]:
    """The member types of a union, or the single type, each with its outer constraints."""
    inner, constraints = unwrapped(annotation)
    if get_origin(inner) in (Union, types.UnionType):
        found = [option for one in get_args(inner) for option in options(one)]
        return [Annotated[(option, *constraints)] if constraints else option for option in found]
    return [annotation]


def unwrapped(annotation: Any) -> tuple[Any, list[Any]]:
    """A type without `Annotated`, and the constraints from it."""
    if get_origin(annotation) is not Annotated:
        return annotation, []
    inner, *outer = get_args(annotation)
    bare, constraints = unwrapped(inner)
    metadata = [one for item in outer for one in (item.metadata if isinstance(item, FieldInfo | Bounds) else [item])]
    return bare, [*constraints, *metadata]


def configs_of(annotation: Any) -> list[type[BaseModel]]:
    """The config classes of a union, or the single one."""
    inner = [unwrapped(option)[0] for option in options(annotation)]
    return [one for one in inner if isinstance(one, type) and issubclass(one, BaseModel)]


def item_types(annotation: Any) -> list[Any]:
    """Element types of the lists and mappings that a key takes."""
    return [*list_types(annotation), *mapping_types(annotation)]


def list_types(annotation: Any) -> list[Any]:
    """Element types of the lists that a key takes."""
    bare = [unwrapped(option)[0] for option in options(annotation)]
    return [get_args(one)[0] for one in bare if get_origin(one) in (list, tuple)]


def mapping_types(annotation: Any) -> list[Any]:
    """Value types of the mappings that a key takes."""
    bare = [unwrapped(option)[0] for option in options(annotation)]
    return [get_args(one)[1] for one in bare if get_origin(one) is dict]


def kinds_of_config(config: type[BaseModel]) -> tuple[str, ...]:
    """The values of `kind` that select a config; empty if it has none."""
    field = config.model_fields.get("kind")
    return get_args(field.annotation) if field is not None else ()


def type_in_words(annotation: Any) -> str:
    """The type as text, as "integer or null"."""
    return " or ".join(dict.fromkeys(option.one for option in _in_words(annotation)))


def allowed_in_words(annotation: Any) -> str:
    """Allowed values as text, as "at least 1", "'a' or 'b'", "kind 'a' or 'b'"; empty: all values of the type."""
    return "; ".join(dict.fromkeys(option.allowed for option in _in_words(annotation) if option.allowed))


def wanted(annotation: Any) -> str:
    """Type and what is allowed, for a message: "wanted ..."."""
    return ", or ".join(dict.fromkeys(str(option) for option in _in_words(annotation) if option.one != "null"))


def _in_words(annotation: Any) -> Iterator[Option]:
    """The options of a type as text; all configs of a union count as one."""
    mappings = configs_of(annotation)
    if mappings:
        yield _config_in_words(mappings)
    for option in options(annotation):
        inner, constraints = unwrapped(option)
        if inner not in mappings:
            yield _option(inner, constraints)


def _config_in_words(mappings: Sequence[type[BaseModel]]) -> Option:
    kinds = [kind for config in mappings for kind in kinds_of_config(config)]
    allowed = f"kind {_choice(kinds)}" if kinds else f"keys {', '.join(mappings[0].model_fields)}"
    phrase = f"a mapping with `kind: {kinds[0]}`" if len(kinds) == 1 else f"a mapping with {allowed}"
    return Option("mapping", "mappings", allowed, phrase)


def _option(inner: Any, constraints: Sequence[Any]) -> Option:
    if inner is type(None):
        return Option("null", "null")
    if inner is bool:
        return Option("true or false", "true or false", phrase="true or false")
    if get_origin(inner) is Literal:
        choice = _choice(get_args(inner))
        return Option("word", "words", choice, choice)
    if inner is Duration:
        return Option("duration", "durations", "as '2000 steps', '2 epochs', '1e6 samples' or '10 percent'")
    if get_origin(inner) in (tuple, list, dict):
        return _container(inner, constraints)
    noun = NOUNS.get(inner, "value")
    limits = (_limits(constraints), _lengths(constraints, "character", "characters"))
    return Option(noun, f"{noun}s", ", ".join(filter(None, limits)))


def _container(inner: Any, constraints: Sequence[Any]) -> Option:
    inside = list(_in_words(item_types(inner)[0]))
    many = " or ".join(dict.fromkeys(option.many for option in inside))
    allowed = "; ".join(filter(None, [*(option.allowed for option in inside), _lengths(constraints)]))
    if get_origin(inner) is dict:
        noun = f"mapping of names to {many}"
        return Option(noun, noun.replace("mapping", "mappings", 1), allowed)
    if get_origin(inner) is list or get_args(inner)[-1] is Ellipsis:
        return Option(f"list of {many}", f"lists of {many}", allowed)
    count = len(get_args(inner))
    names = next((one.names for one in constraints if isinstance(one, Entries)), (inside[0].one,) * count)
    noun = f"{COUNTS.get(count, count)} {many} [{', '.join(names)}]"
    return Option(noun, f"lists of {noun}", allowed, ", ".join(filter(None, (noun, allowed))))


def _limits(constraints: Sequence[Any]) -> str:
    """Bounds of a number; of several, the narrowest."""
    lower: list[tuple[Any, str]] = [(one.ge, f"at least {one.ge}") for one in constraints if isinstance(one, Ge)]
    lower += [(one.gt, f"above {one.gt}") for one in constraints if isinstance(one, Gt)]
    upper: list[tuple[Any, str]] = [(one.le, f"at most {one.le}") for one in constraints if isinstance(one, Le)]
    upper += [(one.lt, f"below {one.lt}") for one in constraints if isinstance(one, Lt)]
    multiples = [f"a multiple of {one.multiple_of}" for one in constraints if isinstance(one, MultipleOf)]
    return ", ".join([*(max(lower)[1:] if lower else ()), *(min(upper)[1:] if upper else ()), *multiples])


def _lengths(constraints: Sequence[Any], one: str = "entry", several: str = "entries") -> str:
    words: list[str] = []
    for constraint in constraints:
        match constraint:
            case MinLen(least):
                words.append(f"at least {least} {one if least == 1 else several}")
            case MaxLen(most):
                words.append(f"at most {most} {one if most == 1 else several}")
    return ", ".join(words)


def _choice(words: Sequence[Any]) -> str:
    """Join names as pydantic does: 'a', 'b' or 'c'."""
    *first, last = map(repr, words)
    return f"{', '.join(first)} or {last}" if first else last


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"
