"""The reference of all keys of a recipe as Markdown: one table a config, grouped by top-level key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from mmssl.recipe.annotations import configs_of, kinds_of_config, list_types, mapping_types
from mmssl.recipe.describe import DescribedKey, Place, config_summary

COMMAND = "mmssl recipes key --markdown > configs/REFERENCE.md"
HEAD = f"""# Every key of a recipe

Type, default, what is allowed, and what it does; `mmssl recipes key PATH` prints the same of one. In paths, `*` is a name that
a recipe chooses or a place in a list, and a kind stands where a recipe has a name. Shipped recipes: [README.md](README.md).

Made by `{COMMAND}` from the configs and their docstrings; a test fails when it is stale.
"""


@dataclass(frozen=True)
class ReferencePart:
    """A config and the first path at which a recipe may have it."""

    path: str
    config: type[BaseModel]

    @property
    def title(self) -> str:
        """The heading of its table."""
        kinds = ", ".join(f"`{kind}`" for kind in kinds_of_config(self.config))
        return f"`{self.path}`" + (f", kind {kinds}" if kinds else "")

    def rows(self) -> list[DescribedKey]:
        """Its keys, paths relative to the part."""
        return [place.key() for place in Place("", self.config).below("*")]


def config_tables(root: type[BaseModel]) -> list[ReferencePart]:
    """A config and all configs nested in it, each once, in document order, with the paths of a union first."""
    paths: dict[type[BaseModel], str] = {}
    found: list[ReferencePart] = []

    def visit(path: str, annotation: Any) -> None:
        here = configs_of(annotation)
        new = [config for config in here if config not in paths]
        paths.update(dict.fromkeys(new, path))
        for config in new:
            found.append(ReferencePart(path, config))
            base = _of_kind(path, config) if len(here) > 1 else path
            for place in Place(base, config).below("*"):
                visit(place.path, place.annotation)
        for item in (*list_types(annotation), *mapping_types(annotation)):
            visit(f"{path}.*", item)

    visit("", root)
    return found


def _of_kind(path: str, config: type[BaseModel]) -> str:
    """The path with the kind in place of a name, or after a key with several kinds."""
    return f"{path.removesuffix('.*')}.{kinds_of_config(config)[0]}" if kinds_of_config(config) else path


def reference(root: type[BaseModel]) -> str:
    """Markdown with a section for the keys of `root` itself and one for each key that holds configs."""
    lines = [HEAD]
    section = ""
    for part in config_tables(root):
        if part.path.partition(".")[0] != section or not part.path:
            section = part.path.partition(".")[0]
            lines.append(f"## {section or 'run'}\n")
        if part.path:
            lines.append(f"### {part.title}\n\n{config_summary(part.config)}\n")
        lines.extend(_table(part))
    return "\n".join(lines)


def _table(part: ReferencePart) -> Iterator[str]:
    keys = part.rows()
    if keys:
        yield "| key | type | default | allowed | what |\n|---|---|---|---|---|"
    for key in keys:
        default = f"`{key.default}`" if key.default != "required" else "required"
        cells = (f"`{key.path}`", key.type, default, key.allowed, key.sentence)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    if keys:
        yield ""
