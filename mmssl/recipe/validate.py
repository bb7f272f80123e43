"""Strict validation of YAML values against a Config: all errors at once, one sentence each."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from mmssl.core.config import Config
from mmssl.core.errors import RecipeError, did_you_mean, os_words
from mmssl.core.schedules import NUMBER
from mmssl.recipe.annotations import configs_of, field_annotation, item_types, kinds_of_config, options, wanted
from mmssl.recipe.flat import document_keys, flat_fields, nest_keys
from mmssl.recipe.strict_yaml import Document, KeyPath, parse_yaml, set_override, shortened

C = TypeVar("C", bound=Config)
RANGES = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "multiple_of")
"""pydantic's errors of numbers out of range: each names one bound, and a message names all."""
LENGTHS = ("string_too_short", "string_too_long", "too_short", "too_long")
"""The same of texts and lists."""
HERE = "{folder}"
"""Beginning of a path in a recipe's file that is relative to the folder of the file."""


def read_recipe_text(path: Path) -> str:
    """The text of a YAML file.

    Raises:
        RecipeError: the file is missing or not UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {os_words(error)}") from error


def validate_text(
    config: type[C],
    text: str,
    name: str,
    overrides: Sequence[str] = (),
    folder: Path | None = None,
    options: Callable[[KeyPath], str | None] | None = None,
) -> C:
    """Read YAML text, apply dotted overrides and validate strictly.

    Args:
        config: class of the document.
        text: YAML.
        name: name of the document in errors.
        overrides: `key.path=value`, later ones win.
        folder: of the document, which `{folder}` at the beginning of a text stands for; None: for nothing.
        options: path of a key -> the option of a command line that gave it, which errors then name; None: it is of no option.

    Raises:
        RecipeError: with every mistake of the document, one a line.
    """
    document = parse_yaml(text, name)
    value = {} if document.value is None else document.value
    if folder is not None:
        value = _placed(value, str(folder.absolute()))
    if not isinstance(value, dict):
        raise RecipeError(f"{name}: got {type(value).__name__}, wanted a mapping of keys to values")
    overridden = {set_override(value, assignment): assignment for assignment in overrides}
    try:
        # Through JSON, so that strict types accept lists as tuples and text as paths and durations.
        return config.model_validate_json(json.dumps(nest_keys(config, value)))
    except ValidationError as error:
        # A value that fits none of several types is one mistake, though pydantic lists one for each type.
        mistakes = dict.fromkeys(
            f"{_option(path, options) or _key(path, document, overridden, name)}: "
            f"{_message(config, value, path, item).removeprefix(f'{path[-1]}: ' if path else '')}"
            for path, item in _deepest(config, value, error.errors())
        )
        count = f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}"
        raise RecipeError("\n  ".join([f"{name}: {count}", *mistakes])) from None


def _placed(value: Any, folder: str) -> Any:
    """A value with a folder in place of `HERE` at the beginning of its texts."""
    if isinstance(value, dict):
        return {key: _placed(inner, folder) for key, inner in value.items()}
    if isinstance(value, list):
        return [_placed(inner, folder) for inner in value]
    begins = isinstance(value, str) and (value == HERE or value.startswith(f"{HERE}/"))
    return folder + value.removeprefix(HERE) if begins else value


def _deepest(config: type[Config], value: Any, errors: Sequence[ErrorDetails]) -> list[tuple[KeyPath, ErrorDetails]]:
    """Paths and errors, without errors of containers whose entries have errors."""
    found = [(_user_path(config, value, error), error) for error in errors]
    around = {path[:length] for path, _ in found for length in range(len(path))}
    return [(path, error) for path, error in found if path not in around]


def _user_path(config: type[Config], value: Any, error: ErrorDetails) -> KeyPath:
    """The error's location without names of flat fields, and without the union tags and marks that pydantic puts in it."""
    location, root = error["loc"], value
    path: list[str | int] = []
    tagged: KeyPath | None = None  # the mapping whose tag has come, after which its key of that name may follow
    for part in location[1:] if location and location[0] in flat_fields(config) else location:
        if part in ("[key]", NUMBER):
            continue
        if isinstance(value, dict):
            if value.get("kind") == part and (part not in value or _has_tag(config, root, path, tagged)):
                tagged = tuple(path)
                continue
            path.append(part)
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int):
            path.append(part)
            value = value[part] if part < len(value) else None
        elif value is None:
            path.append(part)
    # A list of fixed length that lacks an entry is reported of that entry.
    return tuple(path[:-1] if error["type"] == "missing" and isinstance(path[-1], int) else path)


def _has_tag(config: type[Config], root: Any, path: Sequence[str | int], tagged: KeyPath | None) -> bool:
    """Whether pydantic's tag of the mapping at a path is still to come: it is of one of several configs."""
    several = any(len(configs_of(annotation)) > 1 for annotation in _types_at(config, root, tuple(path)))
    return several and tagged != tuple(path)


def _option(path: KeyPath, options: Callable[[KeyPath], str | None] | None) -> str | None:
    return options(path) if options is not None and path else None


def _key(path: KeyPath, document: Document, overridden: Mapping[KeyPath, str], name: str) -> str:
    """The place of a key, and its path."""
    where = _where(path, document, overridden, name)
    return f"{where}: {'.'.join(map(str, path))}" if path else where


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
    if kind == "value_error":
        return str(context.get("error", error["msg"]))
    annotation = reduce(operator.or_, _types_at(config, value, path) or [Any])
    if kind == "missing" and not isinstance(error["loc"][-1], int):
        return f"missing; wanted {wanted(annotation)}"
    if kind == "union_tag_not_found":
        return f"missing its `kind`; allowed: {_kinds(annotation)}"
    if kind == "union_tag_invalid":
        tag = str(context.get("tag", ""))
        return f"got kind {tag!r}{did_you_mean(tag, _quoted(_kinds(annotation)))}; allowed: {_kinds(annotation)}"
    several = len([option for option in options(annotation) if option is not type(None)]) > 1
    if kind == "literal_error" and not several:
        expected = str(context.get("expected", ""))
        return f"got {_shown(got)}{did_you_mean(str(got), _quoted(expected))}; allowed: {expected}"
    if several or kind in (*RANGES, *LENGTHS, "list_type", "tuple_type", "missing", "dict_type"):
        return f"got {_shown(got)}, wanted {wanted(annotation)}{_proposal(annotation, got)}"
    message = error["msg"]
    return f"got {_shown(got)}, wanted {message[0].lower() + message[1:].removeprefix('Input should be ')}".replace(
        "wanted input should be ", "wanted "
    )


def _proposal(annotation: Any, got: Any) -> str:
    """`: [3]` for a 3 in place of a list, where that is a value of the type."""
    if not isinstance(got, str | int | float):
        return ""
    proposed = json.dumps([got])
    try:
        TypeAdapter(annotation).validate_json(proposed, strict=True)
    except ValidationError:
        return ""
    return f": {proposed}"


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _shown(value: Any) -> str:
    text = (
        json.dumps(value)
        if isinstance(value, bool | int | float | str | None)
        else f"a {type(value).__name__} {value!r}"
    )
    return shortened(text)


def _kinds(annotation: Any) -> str:
    return ", ".join(sorted(repr(kind) for one in configs_of(annotation) for kind in kinds_of_config(one)))


def fields_at(config: type[Config], value: Any, path: KeyPath) -> set[str]:
    """Keys allowed at a path of the document."""
    for part in path:
        value = _entry(value, part)
    models = [one for annotation in _types_at(config, value, path) for one in configs_of(annotation)]
    return {name for model in _chosen(models, value) for name in document_keys(model)}


def _types_at(config: type[Config], value: Any, path: KeyPath) -> list[Any]:
    """Types allowed at a path, given the kinds that the document selects above it."""
    found: list[Any] = [config]
    for part in path:
        found = [inner for annotation in found for inner in _step(annotation, value, part)]
        value = _entry(value, part)
    return found


def _step(annotation: Any, value: Any, part: str | int) -> list[Any]:
    models = _chosen(configs_of(annotation), value)
    if models:
        return [field_annotation(keys[str(part)]) for keys in map(document_keys, models) if str(part) in keys]
    return item_types(annotation)


def _entry(value: Any, part: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(part)
    return value[part] if isinstance(value, list) and isinstance(part, int) and part < len(value) else None


def _chosen(models: Sequence[type[BaseModel]], value: Any) -> Sequence[type[BaseModel]]:
    """The configs of the kind that the document names, or all."""
    kind = value.get("kind") if isinstance(value, dict) else None
    return [model for model in models if kind in kinds_of_config(model)] or models
