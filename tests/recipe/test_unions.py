"""What documents list is what a recipe can name."""

from __future__ import annotations

import re
from pathlib import Path

from mmssl.recipe.shipped import shipped_recipes
from mmssl.recipe.unions import SHIPPED

TABLE = Path(__file__).resolve().parents[2] / "mmssl/objectives/README.md"


def test_the_table_of_objectives_lists_every_kind_and_recipes_that_there_are() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", TABLE.read_text(), re.MULTILINE)
    kinds = [config.model_fields["kind"].default for config in SHIPPED["mmssl.objectives"]]
    assert sorted(kind for kind, _ in rows) == sorted(kinds)
    named = [name for _, recipes in rows for name in re.findall(r"`([^`]+)`", recipes)]
    assert len(named) >= len(kinds)
    assert set(named) <= shipped_recipes().keys()
