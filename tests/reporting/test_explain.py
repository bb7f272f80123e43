"""Why a loss is flat: on made-up logs, and on tiny runs that are broken on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmssl.core.errors import RecipeError
from mmssl.recipe.recipe import Recipe
from mmssl.recipe.validate import validate_text
from mmssl.reporting.explain import explain_history, explain_run, standing
from mmssl.training.health import lines
from mmssl.training.runtime.jsonl import JsonLines
from pipelines import cli
from pipelines.command import guarded
from tests.evaluation.world import COLOURS, NAMES, png, write_shard

RECIPE: dict[str, Any] = {
    "name": "run",
    "seed": 0,
    "duration": "40 steps",
    "batch_size": 16,
    "device": "cpu",
    "modalities": {
        "image": {"kind": "image", "size": 8, "views": {"crop": {"kind": "resized_crop"}}},
        "text": {"kind": "text", "tokenizer": {"kind": "clip", "context_length": 8}},
    },
    "data": {"shards": ["x"], "workers": 0},
    "encoders": {
        "image": {"kind": "vit", "size": 8, "patch_size": 4, "width": 32, "depth": 1, "heads": 2},
        "text": {"kind": "text_transformer", "context_length": 8, "width": 32, "depth": 1, "heads": 2},
    },
    "objective": {
        "kind": "clip",
        "pairs": [["image", "text"]],
        "views": {"image": "crop", "text": "tokens"},
        "embedding": 16,
        "temperature": 0.07,
        "duplicates": "ignore",
    },
    "optimizer": {"kind": "adamw", "lr": 5e-3},
    "schedule": {"kind": "cosine", "warmup": "4 steps"},
    "save": {"every": None, "minutes": None},
    "log": {"every": "1 steps", "trackers": []},
}


def recipe(**changes: Any) -> Recipe:
    return validate_text(Recipe, json.dumps({**RECIPE, **changes}), "recipe")


def log(n: int = 30, **changes: Any) -> list[dict[str, Any]]:
    """The lines of a run whose loss falls from above chance, ln 16, to 1; a change may be a function of the number."""
    made = []
    for number in range(1, n + 1):
        healthy: dict[str, Any] = {
            "step": 10 * number, "progress": number / n, "loss": 3 - 2 * number / n, "chance_loss": 2.7726, "lr": 5e-3,
            "skipped_steps": 0, "spread/image": 0.6, "spread/text": 0.5, "image-text/scale": 20.0, "image-text/scale_limit": 100.0,
            "image-text/chance_loss": 2.7726, "image-text/samples": 16.0, "image-text/duplicates": 0.4,
            "image-text/floor_loss": 0.3, "grad_norm": 1.0, "grad_norm/image": 0.7, "grad_norm/text": 0.7, "samples": 160 * number,
            "data_wait": 0.05,
        }  # fmt: skip
        made.append(healthy | {k: v(number) if callable(v) else v for k, v in changes.items()})
    return made


CASES: list[tuple[str, dict[str, Any], str]] = [
    ("chance", {"loss": 2.775}, "2.775, that of random guessing (2.773)"),
    ("collapse", {"spread/image": 0.001}, "'image' have collapsed: their spread is 0.001"),
    ("floor", {"target_std": 0.05, "target_std_least": 0.1}, "'target_std' is 0.05, and was below 0.1 from step 10 to step 300"),
    ("limit", {"image-text/scale": 100.0}, "'image-text/scale' is 100, at its limit from step 10 to step 300"),
    ("rate", {"lr": 0.0}, "learning rate is 0"),
    ("rate", {"lr": lambda n: 1e-6 * n, "progress": lambda n: n / 100}, "3e-05, of a peak of 0.005, with 30% of the run done"),
    ("rate", {"lr": lambda n: 1e-4 / n, "progress": lambda n: n / 100}, "3.33e-06, of a peak of 0.005"),
    ("skipped", {"skipped_steps": lambda n: 3 * n}, "12 of the last 40 steps"),
    ("gradient", {"grad_norm/text": 0.0}, "No gradient has reached 'text'"),
    ("duplicates", {"loss": 0.32}, "no less than 0.3: 40% of a batch"),
    ("absent", {"image-text/samples": 1.0}, "1 of 16 samples of a batch have both modalities of 'image-text'"),
    ("input", {"data_wait": 0.4}, "40% of the time"),
    ("faults", {"skipped/undecodable": lambda n: 8 * n}, "5.0% of the samples were replaced by others: 240 undecodable."),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "seen"), CASES)
def test_a_sign_is_found_alone_and_with_its_numbers(name: str, changes: dict[str, Any], seen: str) -> None:
    (finding,) = explain_history(log(**changes), recipe())
    assert finding.name == name
    assert seen in finding.seen
    assert finding.cause
    assert finding.remedy


def test_a_healthy_log_has_no_finding() -> None:
    assert explain_history(log(), recipe()) == []


def test_the_end_of_a_schedule_is_no_finding() -> None:
    assert explain_history(log(lr=lambda n: 5e-3 * (1 - n / 30) + 1e-8), recipe()) == []


def test_a_long_warm_up_and_an_early_end_have_other_advice() -> None:
    (rising,) = explain_history(log(lr=lambda n: 1e-6 * n, progress=lambda n: n / 100), recipe())
    (over,) = explain_history(log(lr=lambda n: 1e-4 / n, progress=lambda n: n / 100), recipe())
    assert "warm-up" in rising.cause
    assert "schedule" in over.cause


def test_the_field_and_shard_of_most_faults_are_named() -> None:
    faults = [{"step": n, "shard": f"{n % 3 // 2}.tar", "field": "image", "reason": "undecodable"} for n in range(9)]
    (finding,) = explain_history(log(**{"skipped/undecodable": lambda n: 8 * n}), recipe(), faults)
    assert "Most are 'image' in 0.tar." in finding.seen


def test_a_weighted_pair_has_its_floor_in_units_of_the_loss() -> None:
    half = {"loss": 0.16, "chance_loss": 2.7726 / 2}
    (finding,) = explain_history(log(**half), recipe())
    assert "no less than 0.15" in finding.seen
    several = log(**half, **{"loss/a": 0.1, "loss/b": 0.06})
    assert explain_history(several, recipe()) == [], "of a sum, nobody knows which part is at its floor"


def test_a_frozen_encoder_without_weights_is_found(tmp_path: Path) -> None:
    frozen = {**RECIPE["encoders"], "image": {**RECIPE["encoders"]["image"], "frozen": True}}
    (finding,) = explain_history(log(), recipe(encoders=frozen))
    assert finding.name == "frozen"
    assert "encoders.image is frozen, and starts from random weights" in finding.seen
    with_weights = {**frozen, "image": {**frozen["image"], "weights": str(tmp_path / "w.safetensors")}}
    assert explain_history(log(), recipe(encoders=with_weights)) == []
    partly = {**frozen, "image": {**frozen["image"], "unlocked_layers": 1}}
    assert explain_history(log(), recipe(encoders=partly)) == []


def test_numbers_that_are_not_finite_do_not_hide_the_rest() -> None:
    found = explain_history(log(loss=None, skipped_steps=lambda n: 10 * n, **{"spread/image": None}), recipe())
    assert [finding.name for finding in found] == ["skipped"]
    assert "loss not finite" in standing(log(loss=None))


def test_folders_without_a_log_or_with_a_short_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no metrics\.jsonl; give the folder of a run"):
        explain_run(tmp_path)
    JsonLines(tmp_path / "metrics.jsonl").extend(log(4))
    with pytest.raises(RecipeError, match="4 log lines, wanted at least 5"):
        explain_run(tmp_path)


def shards(folder: Path, caption: Callable[[int], str], picture: Callable[[int], str], n: int = 64) -> str:
    """Samples with a picture of one colour and a caption that names one."""

    def fields(i: int) -> dict[str, bytes]:
        return {"png": png(COLOURS[picture(i)], 0), "txt": f"a {caption(i)} picture".encode()}

    return str(write_shard(folder / "shards.tar", ((f"sample{i:03d}", fields(i)) for i in range(n))))


def colour(number: int) -> str:
    return NAMES[number % len(NAMES)]


def shuffled(number: int) -> str:
    """A colour that has nothing to do with that of `colour`."""
    return NAMES[(number * 5 + number // 8 * 3) % len(NAMES)]


def trained(folder: Path, *overrides: str, caption: Any = colour, picture: Any = colour) -> list[str]:
    """Train, and return the names of what is found. How fast this machine is, is not the subject."""
    made = {**RECIPE, "output": str(folder), "data": {"shards": [shards(folder, caption, picture)], "workers": 0}}
    of_run = validate_text(Recipe, json.dumps(made), "recipe", overrides)
    launch = of_run.training.launch()
    try:
        of_run.build(launch).train()
    finally:
        launch.close()
    standing, findings = explain_run(folder / "run")
    assert standing.startswith("step 40, 100% of the run: loss ")
    return [finding.name for finding in findings if finding.name != "input"]


def warned(folder: Path) -> set[str]:
    """Warnings that the run itself gave."""
    records = lines(JsonLines(folder / "run/metrics.jsonl").read())
    return {name for record in records for name in record if name.startswith("alarm/")}


def test_a_healthy_run_trips_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trained(tmp_path) == []
    assert warned(tmp_path) == set()
    capsys.readouterr()
    assert guarded(cli.full(), ["explain", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "step 40, 100% of the run: loss " in said
    assert "nothing wrong seen" in said or "waiting for data" in said


def test_partners_that_do_not_belong_together_are_at_chance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And all features become one point, which is the best that can be done."""
    found = trained(tmp_path, caption=shuffled)
    assert found[-1] == "chance"
    assert set(found) <= {"collapse", "chance"}
    capsys.readouterr()
    assert guarded(cli.full(), ["explain", str(tmp_path / "run")]) == 0
    assert f"\n{len(found)}. The loss is " in capsys.readouterr().out


def test_a_rate_of_next_to_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "rate" in trained(tmp_path, "optimizer.lr=1e-12")
    assert "alarm/rate" in warned(tmp_path)
    assert "| warning: The learning rate is " in capsys.readouterr().err


def test_pictures_that_are_all_alike(tmp_path: Path) -> None:
    assert "collapse" in trained(tmp_path, picture=lambda number: "red")
    assert "alarm/collapse" in warned(tmp_path)


def test_a_temperature_that_cannot_fall(tmp_path: Path) -> None:
    assert trained(tmp_path, "objective.temperature=0.2", "objective.max_scale=5") == ["limit"]


def test_captions_that_repeat_and_are_negatives(tmp_path: Path) -> None:
    assert trained(tmp_path, "objective.duplicates=negatives") == ["duplicates"]
