"""`mmssl recipes`: the shipped recipes, their differences, and the meaning of each key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mmssl.recipe.describe import DescribedKey
    from mmssl.recipe.recipe import Recipe

app = typer.Typer(
    help="List shipped recipes, show and compare them, and say what their keys mean.",
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
NAME = Annotated[str, typer.Argument(metavar="NAME", help="A shipped recipe, such as image_text/vit_b_32.")]
EITHER = Annotated[str, typer.Argument(help="A shipped recipe, a YAML file, or a run or checkpoint folder.")]
PATH = Annotated[
    str | None,
    typer.Argument(
        metavar="PATH",
        help="As optimizer.lr, encoders.vit.width or encoders.*.patch_size. Default: all keys of the top.",
    ),
]
MARKDOWN = Annotated[bool, typer.Option("--markdown", help="All keys of all parts, as configs/REFERENCE.md has them.")]


@app.callback(invoke_without_command=True)
def recipes(context: typer.Context) -> None:
    """List shipped recipes, show and compare them, and say what their keys mean.

    Examples:

    `mmssl recipes`

    `mmssl recipes show image_text/vit_b_32 > mine.yaml`

    `mmssl recipes diff image_text/vit_b_32 runs/first`

    `mmssl recipes key modalities.image.views.crop.scale`
    """
    from mmssl.recipe.shipped import recipe_summary, shipped_recipes

    if context.invoked_subcommand is None:
        names = shipped_recipes()
        width = max(map(len, names))
        for name, path in names.items():
            print(f"{name:<{width}}  {recipe_summary(path)}")


@app.command()
def show(name: NAME) -> None:
    """Print a shipped recipe, to start from: `mmssl recipes show image_text/vit_b_32 > mine.yaml`."""
    from mmssl.recipe.shipped import shipped_recipe

    print(shipped_recipe(name).read_text(encoding="utf-8"), end="")


@app.command()
def diff(a: EITHER, b: EITHER) -> None:
    """Compare two resolved recipes key by key: `key: a -> b`, only where they differ."""
    from mmssl.recipe.flat import leaves

    first, second = (leaves(_resolved(name).model_dump(mode="json")) for name in (a, b))
    shown = [(key, _shown(first, key), _shown(second, key)) for key in sorted(first.keys() | second.keys())]
    lines = [f"{key}: {before} -> {after}" for key, before, after in shown if before != after]
    print("\n".join(lines) or "no differences")


@app.command()
def key(path: PATH = None, markdown: MARKDOWN = False) -> None:
    """Describe a key: type, default, allowed values, and what it does.

    Examples:

    `mmssl recipes key optimizer.lr`

    `mmssl recipes key encoders.vit` (a kind of encoder, and its keys)

    `mmssl recipes key modalities.image.views.crop.scale`
    """
    from mmssl.recipe.describe import describe_path
    from mmssl.recipe.recipe import Recipe
    from mmssl.recipe.reference import reference

    if markdown and path is not None:
        raise typer.BadParameter("--markdown prints all keys: leave PATH out")
    if markdown:
        print(reference(Recipe), end="")
    else:
        print("\n\n".join(map(_block, describe_path(Recipe, path or "*"))))


def _block(key: DescribedKey) -> str:
    kinds = f" (kind {', '.join(key.kinds)})" if key.kinds else ""
    facts = {"type": key.type, "default": key.default, "allowed": key.allowed, "keys": ", ".join(key.inside)}
    lines = [f"  {name:<8} {text}" for name, text in facts.items() if text]
    return "\n".join([f"{key.path}{kinds}", *lines, *([f"  {key.sentence}"] if key.sentence else [])])


def _resolved(name: str) -> Recipe:
    """The recipe of a shipped name, a file, or a run or checkpoint folder."""
    from pathlib import Path

    from mmssl.recipe.shipped import find_recipe

    saved = Path(name) / "recipe.yaml"
    return find_recipe(str(saved) if saved.is_file() else name)


def _shown(leaves: dict[str, object], key: str) -> str:
    import json

    return json.dumps(leaves[key], ensure_ascii=False) if key in leaves else "absent"
