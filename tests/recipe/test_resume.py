"""What a resumed run may change, and what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmssl.core.errors import CheckpointError
from mmssl.recipe.resume import refuse_other_recipe
from mmssl.recipe.shipped import find_recipe

NAME, PLACE = "quickstart/image_text", Path("step_00000001")


@pytest.mark.parametrize("change", ["precision=bf16", "compile=default", "data.workers=3", "optimizer.lr=0.5"])
def test_a_resumed_run_may_change_how_fast_it_is(change: str) -> None:
    saved, wanted = find_recipe(NAME), find_recipe(NAME, [change])
    assert saved != wanted
    refuse_other_recipe(saved, wanted, PLACE)


@pytest.mark.parametrize(
    "change",
    [
        "seed=7",
        "batch_size=32",
        "objective.temperature=0.5",
        "optimizer.eps=0.5",
        "encoders.image.channels=16",
        "modalities.image.size=32",
        "data.synchronized=[{kind: flip}]",
        "data.optional=[text]",
        "step={kind: cached, micro_batches: 2}",
        "ema={decay: 0.9}",
        "resolution={image: [{until: 50 percent, size: 32}]}",
        "weights=elsewhere",
    ],
)
def test_a_resumed_run_may_not_change_what_its_state_means(change: str) -> None:
    key = rf"{change.split('=')[0]}(\.\w+)*"
    with pytest.raises(CheckpointError, match=rf"(?s){PLACE} was made by another recipe.*\n  {key}: saved"):
        refuse_other_recipe(find_recipe(NAME), find_recipe(NAME, [change]), PLACE)
