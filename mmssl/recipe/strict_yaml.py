"""Strict YAML 1.2 (core schema): `1e-3` is a number, `on` is text, duplicate keys and aliases are errors, lines are remembered.

`dump_yaml` writes YAML that `parse_yaml` reads back to the same values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from mmssl.core.errors import RecipeError

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
"""Nesting depth of lists and mappings; the deepest key of a recipe is about twelve deep."""

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times faster, where PyYAML has it

KeyPath = tuple[str | int, ...]

_INTEGER = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_CONSTANTS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


class OutOfBoundsError(RecipeError):
    """A document too large or too deep to be a recipe."""


@dataclass(frozen=True)
class Document:
    """Plain values of one YAML document, and the line (from 1) of each path."""

    value: Any
    lines: dict[KeyPath, int]


def parse_yaml(text: str, name: str) -> Document:
    """Read one YAML document.

    Args:
        text: the document.
        name: name in error messages, usually the file's path.

    Raises:
        OutOfBoundsError: more than 1 MB, or more than 32 levels.
        RecipeError: not YAML, a duplicate key, an alias or a tag.
    """
    if len(text) > MAX_BYTES:
        raise OutOfBoundsError(f"{name}: got {len(text)} characters, wanted a recipe of at most {MAX_BYTES}")
    try:
        depth = 0
        for event in yaml.parse(text, Loader=LOADER):
            what, line = _refused(event), event.start_mark.line + 1 if event.start_mark else 0
            if what is not None:
                raise RecipeError(f"{name}:{line}: got {what}, and recipes are plain values: write the value out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise OutOfBoundsError(
                    f"{name}:{line}: got lists and mappings more than {MAX_DEPTH} deep, wanted at most {MAX_DEPTH}: "
                    "close brackets, or check the indentation"
                )
        node = yaml.compose(text, Loader=LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        raise RecipeError(f"{where}: not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: not YAML: {error}") from error
    lines: dict[KeyPath, int] = {}
    return Document(None if node is None else _value(node, (), lines, name), lines)


def _refused(event: yaml.Event) -> str | None:
    if isinstance(event, yaml.AliasEvent):
        return f"the alias *{event.anchor}"
    if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
        return f"the tag {event.tag}"
    return None


def _value(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], name: str) -> Any:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_value(child, (*path, i), lines, name) for i, child in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, child in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise RecipeError(f"{name}:{key_node.start_mark.line + 1}: got a list or mapping as a key, wanted text")
            key, here = key_node.value, key_node.start_mark.line + 1
            if key in mapping:
                first = lines[(*path, key)]
                raise RecipeError(f"{name}:{here}: {key!r} stands here and on line {first}: keep one of the two")
            lines[(*path, key)] = here
            mapping[key] = _value(child, (*path, key), lines, name)
        return mapping
    assert isinstance(node, yaml.ScalarNode)
    return node.value if node.style in ("'", '"', "|", ">") else parse_scalar(node.value)


def parse_scalar(text: str) -> Any:
    """Parse a plain scalar by the YAML 1.2 core schema; infinities and NaN stay text, which strict numbers refuse."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def set_override(value: Any, assignment: str) -> KeyPath:
    """Set one `key.path=value` in plain values (in place) and return its path. The right-hand side is YAML.

    Raises:
        RecipeError: no `=`, a path that runs through something that is not a mapping or a list, or more than 32 levels.
    """
    dotted, equals, text = assignment.partition("=")
    if not equals or not dotted:
        raise RecipeError(f"got {shortened(assignment)!r}, wanted key.path=value, as in optimizer.lr=3e-4")
    if dotted.count(".") >= MAX_DEPTH:
        raise OutOfBoundsError(f"override {shortened(assignment)!r}: wanted a key path of at most {MAX_DEPTH} keys")
    keys: list[str | int] = [int(part) if part.isdigit() else part for part in dotted.split(".")]
    for depth, key in enumerate(keys):
        done = ".".join(map(str, keys[:depth])) or "the recipe"
        if isinstance(value, dict):
            key = str(key)
        elif not (isinstance(value, list) and isinstance(key, int) and key < len(value)):
            raise RecipeError(f"{assignment!r}: {done} is {_describe(value)}, which has no entry {key!r}")
        keys[depth] = key
        if depth == len(keys) - 1:
            value[key] = _right_hand_side(text, f"override {shortened(assignment)!r}")
        else:
            if isinstance(value, dict):
                value.setdefault(key, {})
            value = value[key]
    return tuple(keys)


def _right_hand_side(text: str, name: str) -> Any:
    try:
        return parse_yaml(text, name).value
    except OutOfBoundsError:
        raise
    except RecipeError:
        return text  # a brace pattern such as {000000..000007}.tar is text, not a broken flow mapping; types are checked later


def shortened(text: str, most: int = 80) -> str:
    """The text, truncated if long."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _describe(value: Any) -> str:
    return f"a list of {len(value)}" if isinstance(value, list) else f"the value {value!r}"


def dump_yaml(value: Any) -> str:
    """Plain values as YAML that `parse_yaml` reads back to the same values."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.2 would read as a number, e.g. '1e5', which YAML 1.1's rules leave bare."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if isinstance(parse_scalar(text), str) else "'"
    )


_Dumper.add_representer(str, _text)
