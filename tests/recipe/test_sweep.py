"""Sweeps: which runs there are, what they are called, and what is refused."""

from __future__ import annotations

import pytest

from mmssl.core.errors import RecipeError
from mmssl.recipe.recipe import NAME
from mmssl.recipe.sweep import elements, split_values


def test_every_combination_is_a_run_with_a_folder_of_its_own() -> None:
    found = elements("first", ["optimizer.lr=1e-3,3e-4", "objective.temperature=0.07"], seeds=2, first_seed=5)
    assert [element.name for element in found] == [
        f"first.lr-{lr}.temperature-0.07.seed-{seed}" for lr in ("1e-3", "3e-4") for seed in (5, 6)
    ]
    assert found[2].overrides == (
        "optimizer.lr=3e-4", "objective.temperature=0.07", "seed=5", f"name={found[2].name}"
    )  # fmt: skip


def test_seeds_alone_are_a_sweep() -> None:
    assert [element.overrides[0] for element in elements("a", [], seeds=3)] == ["seed=0", "seed=1", "seed=2"]


def test_commas_inside_of_values_do_not_split_them() -> None:
    assert split_values("1, [2,3],{a: 1, b: [4,5]}") == ["1", "[2,3]", "{a: 1, b: [4,5]}"]
    assert split_values("'a,b',\"c,]\",d") == ["'a,b'", '"c,]"', "d"]
    names = [element.name for element in elements("a", ["objective.pairs=[[image, text]],[[audio, text]]"])]
    assert names == ["a.pairs-_image_text_", "a.pairs-_audio_text_"]
    assert all(NAME.fullmatch(name) for name in names)


@pytest.mark.parametrize(
    ("sweeps", "seeds", "why"),
    [
        (["lr"], 1, "got 'lr', wanted KEY.PATH=A,B,C"),
        (["lr=1,,2"], 1, "a value between all commas"),
        (["=1"], 1, "wanted KEY.PATH=A,B,C"),
        (["lr=1", "lr=2"], 1, "wanted each once"),
        (["seed=1,2"], 2, "not seed beside --seeds"),
        (["name=a,b"], 1, "not name"),
        (["lr=1"], 0, "--seeds: got 0, wanted at least 1"),
        (["a=[1],{1}"], 1, "two runs would have one folder"),
    ],
)
def test_sweeps_that_make_no_sense_are_refused(sweeps: list[str], seeds: int, why: str) -> None:
    with pytest.raises(RecipeError, match=why.replace("[", r"\[")):
        elements("x", sweeps, seeds)
