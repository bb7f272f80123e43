"""`keep` of a recipe after its run, and `mmssl average`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import mmssl
from mmssl.training.checkpoints.read import load_weights, resolve
from tests.pipelines.conftest import World


def test_a_fine_tuned_run_leaves_the_kept_weights_and_a_table(world: World, tmp_path: Path) -> None:
    old = {"kind": "retrieval", "shards": [str(world.shards / "validation")], "pair": ["image", "text"]}
    keep = {
        "evaluators": {"old": old}, "old": "old/image_to_text_R@1", "new": "retrieval/image_to_text_R@1",
        "largest_loss": 1.0, "points": 3,
    }  # fmt: skip
    overrides = (f"output={tmp_path}", "name=tuned", f"weights={world.run}", f"keep={json.dumps(keep)}")
    assert world.pretrain(*overrides, "optimizer.lr=1e-2") == 0
    run = tmp_path / "tuned"
    made = json.loads((run / "keep.json").read_text())
    assert [point["share"] for point in made["points"]] == [0, 0.5, 1]
    best = max(made["points"], key=lambda p: (p["scores"]["retrieval/image_to_text_R@1"], -p["share"]))
    assert made["chosen"] == best["share"]
    assert "at most 1 of old/image_to_text_R@1" in (run / "keep.txt").read_text()
    start, end, kept = (load_weights(resolve(path)) for path in (world.run, run, run / "kept"))
    for name, x in kept.items():
        expected = (1 - made["chosen"]) * start[name].double() + made["chosen"] * end[name].double()
        torch.testing.assert_close(x.double(), expected, atol=1e-6, rtol=1e-6)
    mmssl.load(run / "kept").encode(text=["a three"])
    assert world.mmssl("average", world.run, run, "--weights", "0.5,0.5", "--out", tmp_path / "half") == 0
    half = load_weights(tmp_path / "half")
    torch.testing.assert_close(
        half["encoders.text.norm_final.weight"], sum_of(start, end, "encoders.text.norm_final.weight")
    )
    soup = ("average", world.run, run, "--out", tmp_path / "soup", "--greedy", "retrieval/image_to_text_R@1")
    assert world.mmssl(*soup) == 0
    mmssl.load(tmp_path / "soup")


def sum_of(start: dict[str, torch.Tensor], end: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return (start[name] + end[name]) / 2


@pytest.mark.parametrize(
    ("arguments", "code", "wanted"),
    [
        (["--weights", "0.5"], 2, "wanted 2 numbers with sum 1"),
        (["--greedy", "none/x"], 2, "wanted '<evaluator>/<metric>' of ['retrieval']"),
        (["--greedy", "retrieval/image_to_text_mean_rank"], 2, "of which less is better"),
        (["--suite", "x.yaml"], 2, "no effect without --greedy"),
    ],
)
def test_what_cannot_be_averaged_is_told(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], code: int, wanted: str
) -> None:
    assert world.mmssl("average", world.run, world.run, "--out", tmp_path / "x", *arguments) == code
    assert wanted in " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "x").exists()


def test_keep_without_a_start_is_refused(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    keep = {"evaluators": {"old": {"kind": "retrieval", "shards": ["x"], "pair": ["image", "text"]}}, "old": "old/a"}
    assert world.pretrain(f"output={tmp_path}", f"keep={json.dumps(keep | {'new': 'retrieval/a'})}") == 2
    assert "keep: got no weights to start from" in capfd.readouterr().err
