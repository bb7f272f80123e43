"""Strict validation of plain values against a Config, with all errors at once, each as one sentence."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mmssl.core.config import Config
from mmssl.core.errors import RecipeError, did_you_mean
from mmssl.recipe.flat import document_keys, flat_fields, group
from mmssl.recipe.strict_yaml import Document, KeyPath, override, parse, shortened

C = TypeVar("C", bound=Config)


def read(path: Path) -> str:
    """The text of a YAML file.

    Raises:
        RecipeError: the file is missing or not UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error


def validate_text(config: type[C], text: str, name: str, overrides: typing.Sequence[str] = ()) -> C:
    """Read YAML text, apply dotted overrides and validate strictly.

    Args:
        config: what the document describes.
        text: YAML.
        name: what errors call the document.
        overrides: `key.path=value`, later ones win.

    Raises:
        RecipeError: with every mistake of the document, one a line.
    """
    document = parse(text, name)
    value = {} if document.value is None else document.value
    if not isinstance(value, dict):
        raise RecipeError(f"{name}: got {type(value).__name__}, wanted a mapping of keys to values")
    overridden = {override(value, assignment): assignment for assignment in overrides}
    try:
        # Through JSON, so that strict types still take lists for tuples and text for paths and durations.
        return config.model_validate_json(json.dumps(group(config, value)))
    except ValidationError as error:
        mistakes = [
            _sentence(config, value, Document(value, document.lines), overridden, name, item) for item in error.errors()
        ]
        count = f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}"
        raise RecipeError("\n  ".join([f"{name}: {count}", *dict.fromkeys(mistakes)])) from None


def _sentence(
    config: type[Config],
    value: Any,
    document: Document,
    overridden: Mapping[KeyPath, str],
    name: str,
    error: ErrorDetails,
) -> str:
    location = error["loc"]
    path = _user_path(value, location[1:] if location and location[0] in flat_fields(config) else location)
    where = _where(path, document, overridden, name)
    dotted = ".".join(map(str, path)) or "recipe"
    return f"{where}: {dotted}: {_message(config, value, path, error)}"


def _user_path(value: Any, location: tuple[str | int, ...]) -> KeyPath:
    """The error's location without the union tags and `[key]` marks that pydantic puts in it."""
    path: list[str | int] = []
    for part in location:
        if part == "[key]":
            continue
        if isinstance(value, dict):
            if part not in value and value.get("kind") == part:
                continue
            path.append(part)
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int):
            path.append(part)
            value = value[part] if part < len(value) else None
        elif value is None:
            path.append(part)
    return tuple(path)


def _where(path: KeyPath, document: Document, overridden: Mapping[KeyPath, str], name: str) -> str:
    for length in range(len(path), -1, -1):
        if path[:length] in overridden:
            return f"override {overridden[path[:length]]!r}"
        if path[:length] in document.lines:
            return f"{name}:{document.lines[path[:length]]}"
    return name


def _message(config: type[Config], value: Any, path: KeyPath, error: ErrorDetails) -> str:
    kind, got, context = error["type"], error.get("input"), error.get("ctx", {})
    if kind == "extra_forbidden":
        key = str(path[-1])
        allowed = fields_at(config, value, path[:-1])
        return f"unknown key{did_you_mean(key, allowed)}; allowed here: {', '.join(sorted(allowed)) or 'nothing'}"
    if kind == "missing":
        return "missing; this key must be stated"
    if kind == "union_tag_not_found":
        return f"missing its `kind`; allowed: {_tags(config, value, path)}"
    if kind == "union_tag_invalid":
        tags = str(context.get("expected_tags", ""))
        tag = str(context.get("tag", ""))
        return f"got kind {tag!r}{did_you_mean(tag, _quoted(tags))}; allowed: {tags}"
    if kind == "literal_error":
        expected = str(context.get("expected", ""))
        return f"got {_shown(got)}{did_you_mean(str(got), _quoted(expected))}; allowed: {expected}"
    if kind == "value_error":
        return str(context.get("error", error["msg"]))
    if kind == "too_short":
        least = context["min_length"]
        return f"got {_shown(got)}, wanted at least {least} {'entry' if least == 1 else 'entries'}"
    if kind in ("list_type", "tuple_type"):
        return f"got {_shown(got)}, wanted a list" + (f": [{got}]" if isinstance(got, str | int | float) else "")
    message = error["msg"]
    return f"got {_shown(got)}, wanted {message[0].lower() + message[1:].removeprefix('Input should be ')}".replace(
        "wanted input should be ", "wanted "
    )


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _shown(value: Any) -> str:
    text = (
        json.dumps(value)
        if isinstance(value, bool | int | float | str | None)
        else f"a {type(value).__name__} {value!r}"
    )
    return shortened(text)


def _tags(config: type[Config], value: Any, path: KeyPath) -> str:
    kinds = [
        str(field.default)
        for model in _models_at(config, value, path, choose=False)
        if (field := model.model_fields.get("kind"))
    ]
    return ", ".join(sorted(map(repr, kinds)))


def fields_at(config: type[Config], value: Any, path: KeyPath) -> set[str]:
    """Names of the keys that are allowed at a path of the document."""
    return {name for model in _models_at(config, value, path) for name in document_keys(model)}


def _models_at(config: type[Config], value: Any, path: KeyPath, *, choose: bool = True) -> list[type[BaseModel]]:
    annotations: list[Any] = [config]
    for part in path:
        annotations = [inner for annotation in annotations for inner in _step(annotation, value, part)]
        value = value.get(part) if isinstance(value, dict) else value[int(part)] if isinstance(value, list) else None
    models = [model for annotation in annotations for model in _models(annotation)]
    chosen = [m for m in models if _is_kind(m, value)] if choose and len(models) > 1 else []
    return chosen or models


def _step(annotation: Any, value: Any, part: str | int) -> list[Any]:
    models = _models(annotation)
    if models:
        chosen = [m for m in models if _is_kind(m, value)] or models
        return [keys[str(part)].annotation for keys in map(document_keys, chosen) if str(part) in keys]
    containers = [a for a in _options(annotation) if get_origin(a) in (dict, list, tuple, Mapping)]
    return [get_args(a)[-1 if get_args(a)[-1] is not Ellipsis else 0] for a in containers]


def _is_kind(model: type[BaseModel], value: Any) -> bool:
    field = model.model_fields.get("kind")
    return field is not None and isinstance(value, dict) and value.get("kind") in get_args(field.annotation)


def _options(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return [option for inner in get_args(annotation) for option in _options(inner)]
    return [annotation]


def _models(annotation: Any) -> list[type[BaseModel]]:
    return [option for option in _options(annotation) if isinstance(option, type) and issubclass(option, BaseModel)]
