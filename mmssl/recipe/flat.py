"""Flat documents of nested configs: a field that is marked FLAT has its keys beside those of the config that holds it.

Pydantic has no such fields, and a validator that groups keys would lose its strict mode for JSON, in which lists are tuples and
text is a path: so keys are grouped before pydantic reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

FLAT = "flat"
"""The mark: `training: Annotated[TrainingConfig, FLAT]`."""


def flat_fields(config: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Name -> config, of the fields that are marked."""
    return {
        name: field.annotation
        for name, field in config.model_fields.items()
        if FLAT in field.metadata and isinstance(field.annotation, type)
    }


def document_keys(config: type[BaseModel]) -> dict[str, FieldInfo]:
    """Key -> field, as documents have them, in order."""
    keys: dict[str, FieldInfo] = {}
    for name, field in config.model_fields.items():
        inner = flat_fields(config).get(name)
        keys |= {name: field} if inner is None else inner.model_fields
    return keys


def group(config: type[BaseModel], document: Mapping[str, Any]) -> dict[str, Any]:
    """A document as the config's fields: keys of a marked field go below its name."""
    groups: dict[str, dict[str, Any]] = {name: {} for name in flat_fields(config)}
    rest: dict[str, Any] = {}
    # A marked field's own name is no key of documents: it goes among that field's keys, and is refused there as unknown.
    owners = {key: name for name, inner in flat_fields(config).items() for key in (name, *inner.model_fields)}
    for key, value in document.items():
        (groups[owners[key]] if key in owners else rest)[key] = value
    return {**groups, **rest}


def spread(config: type[BaseModel], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `group`, keys in the order of `document_keys`."""
    return {
        key: item
        for name, value in fields.items()
        for key, item in (value if name in flat_fields(config) else {name: value}).items()
    }


def leaves(document: Any, path: str = "") -> dict[str, Any]:
    """Key path -> value of everything in a document that is no mapping, or an empty one; lists are values."""
    if isinstance(document, dict) and document:
        inner = (leaves(child, f"{path}.{name}" if path else name) for name, child in document.items())
        return {key: leaf for found in inner for key, leaf in found.items()}
    return {path: document}
