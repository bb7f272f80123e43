"""mmssl: pretrain multimodal contrastive models on WebDataset shards, and evaluate them honestly.

    model = mmssl.load("runs/first")
    embeddings = model.encode(image=["cat.jpg"], text=["a photo of a cat"])

`mmssl.Recipe` is the type of a run; `mmssl.find_recipe(path_or_name)` reads one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmssl.recipe.load import load
    from mmssl.recipe.model import Model
    from mmssl.recipe.recipe import Recipe
    from mmssl.recipe.shipped import find_recipe

__version__ = "0.1.0"
__all__ = ["Model", "Recipe", "__version__", "find_recipe", "load"]


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    """The public names, loaded when first used: `import mmssl` stays quick."""
    if name == "Recipe":
        from mmssl.recipe.recipe import Recipe

        return Recipe
    if name == "find_recipe":
        from mmssl.recipe.shipped import find_recipe

        return find_recipe
    if name == "Model":
        from mmssl.recipe.model import Model

        return Model
    if name == "load":
        from mmssl.recipe.load import load

        return load
    raise AttributeError(f"module 'mmssl' has no attribute {name!r}")
