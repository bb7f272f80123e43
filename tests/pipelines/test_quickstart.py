"""The quickstart's parts: which recipe, where its data lie, and what the table says."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmssl.core.errors import RecipeError
from mmssl.recipe.shipped import find_recipe
from pipelines.quickstart import CLIPS, RECIPES, recipe_for, relocated, table_rows


def test_modalities_choose_the_recipe_in_any_order() -> None:
    assert recipe_for("text, image") == "quickstart/image_text"
    assert recipe_for("audio,text,image") == "quickstart/image_text_audio"
    with pytest.raises(RecipeError, match="got 'image,smell', wanted one of: image,text; image,text,audio"):
        recipe_for("image,smell")


@pytest.mark.parametrize("name", RECIPES.values())
def test_every_folder_of_the_recipe_is_turned_to_the_one_at_hand(name: str, tmp_path: Path) -> None:
    recipe = find_recipe(name, relocated(find_recipe(name), tmp_path))
    folders = [*recipe.data.shards]
    for evaluator in recipe.evaluators.values():
        folders += [*evaluator.shards, *getattr(evaluator, "train_shards", ())]
    assert len(folders) > 3
    assert all(Path(folder).is_relative_to(tmp_path) for folder in folders)


def test_the_table_names_chance_and_ceiling() -> None:
    recipe = find_recipe("quickstart/image_text")
    way = {"R@1": 0.3, "R@1_chance": 0.005, "R@1_ceiling": 0.76}
    scores = {f"{a}_{name}": value for a in ("image_to_text", "text_to_image") for name, value in way.items()}
    rows = table_rows(recipe.evaluators["retrieval"], {**scores, "n": 200})
    assert rows[0] == ("image to text R@1 of 200", "0.300", "chance 0.005, at most 0.760: captions repeat")
    rows = table_rows(recipe.evaluators["linear_probe"], {"acc1": 0.97, "untrained_acc1": 0.4})
    assert rows == [("image: linear probe accuracy", "0.970", "untrained encoder 0.400")]


def test_the_table_says_what_is_heard_of_moments_and_sides() -> None:
    recipe = find_recipe("quickstart/video_audio")
    offset, sides = (recipe.evaluators[name] for name in ("in_sync", "sides"))
    assert offset.kind == "offset"
    curve = {f"R@1_at_{seconds:g}": 0.5 - 0.1 * number for number, seconds in enumerate(offset.offsets)}
    rows = table_rows(offset, {"in_sync_acc": 0.75, "in_sync_chance": 0.2, "n": 200, **curve})
    assert rows == [
        ("video: own moment of the audio found", "0.750", "chance 0.200"),
        (
            "video to audio R@1 of 200, in sync",
            "0.500",
            "audio late by 0.1, 0.25, 0.5, 1 s: 0.400, 0.300, 0.200, 0.100",
        ),
    ]
    rows = table_rows(sides, {"acc": 0.93, "chance": 0.5})
    assert rows == [("video: audio told from its mirror image", "0.930", "chance 0.500")]


def test_clips_are_long_enough_for_every_offset() -> None:
    recipe = find_recipe("quickstart/video_audio")
    offset, video = recipe.evaluators["in_sync"], recipe.modalities["video"]
    assert offset.kind == "offset"
    assert offset.seconds + offset.offsets[-1] <= CLIPS["seconds"]
    assert (video.size, video.frames) == (CLIPS["size"], offset.seconds * CLIPS["fps"]), "every frame is seen"
