"""Describe recipe keys: type, default, allowed values, and the sentence of the config's docstring."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mmssl.core.errors import RecipeError, did_you_mean
from mmssl.recipe.annotations import (
    allowed_in_words,
    configs_of,
    field_annotation,
    item_types,
    kinds_of_config,
    list_types,
    mapping_types,
    type_in_words,
)
from mmssl.recipe.flat import document_keys, flat_fields

REQUIRED = "required"


@dataclass(frozen=True)
class DescribedKey:
    """Description of one key of a recipe.

    Attributes:
        path: key path; `*` for a name that a recipe chooses.
        kinds: kinds of the configs with this key, if the path matches several.
        type, default, allowed, sentence: as text; `default` is YAML, "required", or empty if the path is no key.
        inside: keys below it.
    """

    path: str
    kinds: tuple[str, ...]
    type: str
    default: str
    allowed: str
    sentence: str
    inside: tuple[str, ...] = ()


def registered(root: type[BaseModel]) -> list[type[BaseModel]]:
    """A config and all configs nested in its fields, each once, in document order."""
    found: dict[type[BaseModel], None] = {}

    def visit(annotation: Any) -> None:
        for config in configs_of(annotation):
            if config not in found:
                found[config] = None
                for field in config.model_fields.values():
                    visit(field_annotation(field))
        for item in item_types(annotation):
            visit(item)

    visit(root)
    return list(found)


def key_meaning(config: type[BaseModel], key: str) -> str:
    """The text for a key in the `Attributes:` section of a config's docstring or its bases'; empty if missing."""
    said = next((text for base in config.__mro__ if (text := _attributes(base).get(key))), "")
    return re.sub(r"\bNone\b", "null", said)  # as a recipe writes it


def config_summary(config: type[BaseModel]) -> str:
    """First paragraph of a config's docstring, without "see ClassName"."""
    return re.sub(r"; see `\w+`", "", " ".join((inspect.getdoc(config) or "").split("\n\n")[0].split()))


def _attributes(config: type[Any]) -> dict[str, str]:
    """Name -> text of an `Attributes:` section; several names may share one text."""
    lines = inspect.cleandoc(config.__dict__.get("__doc__") or "").splitlines()
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in lines[lines.index("Attributes:") + 1 :] if "Attributes:" in lines else ():
        entry = re.fullmatch(r" {4}(\w+(?:, \w+)*): (.+)", line)
        if entry:
            names = entry[1].split(", ")
            texts |= dict.fromkeys(names, entry[2])
        elif line.startswith(" " * 5):
            texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
        elif line.strip():
            break
    return texts


def default_in_yaml(field: FieldInfo) -> str:
    """The default as YAML, in one line; "required" if there is none."""
    if field.is_required():
        return REQUIRED
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        value = _plain(value)
    return json.dumps(value, default=_plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if not isinstance(value, BaseModel):
        return str(value)
    plain = value.model_dump(mode="json")
    return {name: plain[name] for name, one in value if name == "kind" or one != type(value).model_fields[name].default}


@dataclass(frozen=True)
class Place:
    """A key path with its type and field."""

    path: str
    annotation: Any
    owner: type[BaseModel] | None = None
    field: FieldInfo | None = None
    kinds: tuple[str, ...] = ()

    def below(self, segment: str) -> list[Place]:
        """The places that a path segment names here: a key, a kind, a user-chosen name, or a list index."""
        if found := list(self._keys(segment)):
            return found
        if found := self._chosen(segment):
            return [replace(one, path=self._joined(segment)) for one in found]
        if entry := [replace(self, annotation=one) for one in list_types(self.annotation)]:
            if segment.isdigit() or segment == "*":
                return [replace(one, path=self._joined(segment)) for one in entry]
            return [place for one in entry for place in one.below(segment)]
        named = [Place(self._joined(segment), one, kinds=self.kinds) for one in mapping_types(self.annotation)]
        return [place for one in named for place in one._chosen(segment) or [one]]

    def _chosen(self, kind: str) -> list[Place]:
        return [replace(self, annotation=one) for one in configs_of(self.annotation) if kind in kinds_of_config(one)]

    def _keys(self, segment: str) -> Iterator[Place]:
        models = configs_of(self.annotation)
        for config in models:
            kinds = (*self.kinds, *kinds_of_config(config)) if len(models) > 1 else self.kinds
            for name, field in document_keys(config).items():
                if fnmatchcase(name, segment) and name != "kind":
                    owner = next((one for one in flat_fields(config).values() if name in one.model_fields), config)
                    yield Place(self._joined(name), field_annotation(field), owner, field, kinds)

    def names(self) -> list[str]:
        """Keys and kinds allowed as the next segment."""
        inside = [one for item in item_types(self.annotation) for one in configs_of(item)]
        models = [*configs_of(self.annotation), *inside]
        keys = [name for one in models for name in document_keys(one) if name != "kind"]
        return list(dict.fromkeys([*keys, *(kind for one in models for kind in kinds_of_config(one))]))

    def key(self) -> DescribedKey:
        """The description of this place."""
        name = self.path.rpartition(".")[2]
        models = configs_of(self.annotation)
        said = key_meaning(self.owner, name) if self.owner is not None else ""
        if not said and len(models) == 1:
            said = config_summary(models[0])
        return DescribedKey(
            self.path,
            self.kinds,
            type_in_words(self.annotation),
            default_in_yaml(self.field) if self.field is not None else "",
            allowed_in_words(self.annotation),
            said,
            tuple(name for one in models for name in document_keys(one) if name != "kind") if len(models) == 1 else (),
        )

    def _joined(self, segment: str) -> str:
        return f"{self.path}.{segment}" if self.path else segment


def describe_path(root: type[BaseModel], path: str) -> list[DescribedKey]:
    """Describe a key path: one `DescribedKey` for each distinct description.

    Args:
        root: config in which the path starts.
        path: as "optimizer.lr", "modalities.image.views.crop.scale", "encoders.*.patch_size" or "encoders.vit.width": a
            user-chosen name may be any name, `*`, or a kind, which selects that config; keys may be patterns.

    Raises:
        RecipeError: unknown key; lists the keys allowed at that point.
    """
    places = [Place("", root)]
    for segment in path.split("."):
        following = [one for place in places for one in place.below(segment)]
        if not following:
            known = list(dict.fromkeys(name for place in places for name in place.names()))
            raise RecipeError(
                f"{path}: no key {segment!r} below {places[0].path or 'the recipe'}{did_you_mean(segment, known)}; "
                f"allowed here: {', '.join(known) or 'nothing'}"
            )
        places = following
    merged: dict[DescribedKey, tuple[str, ...]] = {}
    for key in (place.key() for place in places):
        alike = replace(key, kinds=())
        merged[alike] = (*merged.get(alike, ()), *key.kinds)
    return [replace(key, kinds=tuple(dict.fromkeys(kinds))) for key, kinds in merged.items()]
