"""Flatten nested configs in YAML: keys of a field marked FLAT are on the level of the config that holds it.

Pydantic has no such fields, and a validator that nests keys would lose pydantic's strict JSON mode (lists as tuples, text as
paths): so keys are nested before pydantic validates them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

FLAT = "flat"
"""The mark: `training: Annotated[TrainingConfig, FLAT]`."""


def flat_fields(config: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Name -> config of the fields marked FLAT."""
    return {
        name: field.annotation
        for name, field in config.model_fields.items()
        if FLAT in field.metadata and isinstance(field.annotation, type)
    }


def document_keys(config: type[BaseModel]) -> dict[str, FieldInfo]:
    """Key of a document -> its field, in order."""
    keys: dict[str, FieldInfo] = {}
    for name, field in config.model_fields.items():
        inner = flat_fields(config).get(name)
        keys |= {name: field} if inner is None else inner.model_fields
    return keys


def nest_keys(config: type[BaseModel], document: Mapping[str, Any]) -> dict[str, Any]:
    """Nest a flat document: keys of a FLAT field move below its name."""
    groups: dict[str, dict[str, Any]] = {name: {} for name in flat_fields(config)}
    rest: dict[str, Any] = {}
    # A FLAT field's name is no key of documents: it moves below that field, and is refused there as unknown.
    owners = {key: name for name, inner in flat_fields(config).items() for key in (name, *inner.model_fields)}
    for key, value in document.items():
        (groups[owners[key]] if key in owners else rest)[key] = value
    return {**groups, **rest}


def flatten_keys(config: type[BaseModel], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested fields: the reverse of `nest_keys`, in the order of `document_keys`."""
    return {
        key: item
        for name, value in fields.items()
        for key, item in (value if name in flat_fields(config) else {name: value}).items()
    }


def leaves(document: Any, path: str = "") -> dict[str, Any]:
    """Key path -> value of each leaf of a document: non-mappings (lists too) and empty mappings."""
    if isinstance(document, dict) and document:
        inner = (leaves(child, f"{path}.{name}" if path else name) for name, child in document.items())
        return {key: leaf for found in inner for key, leaf in found.items()}
    return {path: document}
