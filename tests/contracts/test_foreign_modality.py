"""A package of somebody else's, installed beside this one: every verb takes its modality, encoder, objective and evaluator.

And beside a broken package too, which is left out.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from mmssl.data.modalities.text import TextConfig
from mmssl.data.synchronized.chain import Synchronized, mistakes
from mmssl.data.synchronized.order import Reverse
from mmssl.data.synchronized.space import Flip
from mmssl.recipe.inputs import check_inputs
from tests.contracts.foreign.mmssl_points import PointsConfig, SetEncoderConfig

FOREIGN = Path(__file__).parent / "foreign"
CAPTIONS = [f"a cloud at the {height} {side}" for height in ("top", "bottom") for side in ("left", "right")]
RECIPE = """
name: points
seed: 0
duration: 60 steps
batch_size: 32
output: runs
modalities:
  points: {kind: points}
  text: {kind: text, tokenizer: {kind: clip, context_length: 16}}
data:
  shards: [shards/train]
  workers: 0
  synchronized: [{kind: flip}]
encoders:
  points: {kind: set, width: 32}
  text: {kind: text_transformer, context_length: 16, width: 32, depth: 1, heads: 2, pool: mean, causal: false}
objective:
  kind: weighted
  objectives:
    pair: {objective: {kind: clip, pairs: [[points, text]], views: {points: some, text: tokens}, embedding: 16, temperature: 0.1}}
    small: {weight: 0.001, objective: {kind: small, modality: points}}
optimizer: {kind: adamw, lr: 1e-2}
schedule: {kind: constant}
log: {every: 20 steps}
evaluators:
  retrieval: {kind: retrieval, shards: [shards/test], pair: [points, text]}
  mirror: {kind: mirrored, shards: [shards/test], modality: points}
"""
POINTS = """
[mmssl.modalities]
points = mmssl_points:PointsConfig
[mmssl.encoders]
set = mmssl_points:SetEncoderConfig
[mmssl.objectives]
small = mmssl_points:SmallConfig
[mmssl.evaluators]
mirrored = mmssl_points:MirroredConfig
"""
BROKEN = """
[mmssl.modalities]
gone = mmssl_gone:GoneConfig
[mmssl.encoders]
thief = mmssl_broken:ThiefConfig
[mmssl.objectives]
other = mmssl_points:PointsConfig
[mmssl.evaluators]
loose = mmssl_broken:LooseConfig
nameless = mmssl_broken:NamelessConfig
"""
BROKEN_CODE = """
from typing import Literal
from pydantic import ConfigDict
from mmssl.core.encoder import EncoderConfig
from mmssl.evaluation.common import EvaluatorConfig

class ThiefConfig(EncoderConfig):
    kind: Literal["vit"] = "vit"

class LooseConfig(EvaluatorConfig):
    model_config = ConfigDict(extra="allow")
    kind: Literal["loose"] = "loose"

class NamelessConfig(EvaluatorConfig):
    pass
"""
DRIVER = """
import contextlib, io, json, sys
from pipelines import cli
from pipelines.command import guarded

for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = guarded(cli.full(), arguments)
    print(json.dumps([code, " ".join((out.getvalue() + err.getvalue()).split())]), file=sys.__stdout__)
"""


class Outcome(NamedTuple):
    """Exit code of a verb, and what it printed."""

    code: int
    said: str


def install(site: Path, name: str, points: str) -> None:
    """What a package manager would leave: metadata and entry points."""
    folder = site / f"{name}-1.5.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    (folder / "entry_points.txt").write_text(points)


def verbs(folder: Path, *commands: list[str]) -> list[Outcome]:
    """Outcomes of several verbs in one process that finds the packages of `folder/site`."""
    path = os.pathsep.join([str(folder / "site"), str(FOREIGN), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(commands)],
        cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [Outcome(*json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]


def cloud(caption: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centre = [-0.7 if "left" in caption else 0.7, 0.7 if "top" in caption else -0.7]
    return (centre + 0.3 * rng.standard_normal((int(rng.integers(8, 40)), 2))).astype(np.float32)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Outcome]]:
    folder = tmp_path_factory.mktemp("foreign")
    install(folder / "site", "points-for-mmssl", POINTS)
    install(folder / "site", "broken-for-mmssl", BROKEN)
    (folder / "site/mmssl_broken.py").write_text(BROKEN_CODE)
    for split, count in (("train", 128), ("test", 4)):
        rows = [(f"{split}{i}.npy", CAPTIONS[i % 4]) for i in range(count)]
        for i, (name, caption) in enumerate(rows):
            np.save(folder / name, cloud(caption, i + 1000 * (split == "test")))
        with (folder / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("points", "caption"), *rows])
    (folder / "recipe.yaml").write_text(RECIPE)
    commands = {
        "doctor": ["doctor"],
        "pack": ["shards", "pack", "train.csv", "shards/train", "--column", "points=points"],
        "pack test": ["shards", "pack", "test.csv", "shards/test"],
        "pack text": ["shards", "pack", "train.csv", "shards/none", "--column", "points=caption"],
        "check": ["shards", "check", "shards/train", "--json", "check.json"],
        "stats": ["shards", "stats", "shards/train", "--json", "stats.json"],
        "pretrain": ["pretrain", "recipe.yaml"],
        "evaluate": ["evaluate", "runs/points", "--out", "scores.json"],
        "embed": ["embed", "runs/points", "--shards", "shards/test", "--out", "embeddings"],
        "no kernel": ["pretrain", "recipe.yaml", "name=other", "data.synchronized=[{kind: reverse}]"],
        "typo": ["pretrain", "recipe.yaml", "modalities.points.jiter=true", "encoders.points.width='32'"],
        "typo in a sum": ["pretrain", "recipe.yaml", "objective.objectives.small.objective.modalty=points"],
        "no such kind": ["pretrain", "recipe.yaml", "evaluators.mirror.kind=mirored"],
        "mistake": ["pretrain", "recipe.yaml", "name=flat", "encoders.points.width=1"],
    }
    return folder, dict(zip(commands, verbs(folder, *commands.values()), strict=True))


def test_files_are_packed_and_others_are_refused(world: tuple[Path, dict[str, Outcome]]) -> None:
    folder, said = world
    assert (said["pack"].code, said["pack test"].code) == (0, 0), said["pack"].said
    assert "128 samples in 1 shards" in said["pack"].said
    assert said["pack text"].code != 0
    assert "wanted one of jpg" in said["pack text"].said
    assert (folder / "shards/train/manifest.json").exists()


def test_members_are_audited_and_counted(world: tuple[Path, dict[str, Outcome]]) -> None:
    folder, said = world
    assert (said["check"].code, said["stats"].code) == (0, 0), said["check"].said
    checked = json.loads((folder / "check.json").read_text())
    assert checked["fields"]["npy"]["decoded"] == 128
    assert checked["modalities"]["points"]["members"] == 128
    assert checked["modalities"]["points"]["repeated"]["extra"] == 0
    sizes = [len(np.load(folder / f"train{i}.npy")) for i in range(128)]
    counted = json.loads((folder / "stats.json").read_text())["modalities"]["points"]
    assert counted["figures"]["size"]["mean"] == pytest.approx(np.mean(sizes))
    means = [np.load(folder / f"train{i}.npy").mean(0) for i in range(128)]
    assert counted["mean"] == pytest.approx(np.mean(means, axis=0), abs=1e-5)
    assert "points size mean" in said["stats"].said


def test_a_model_is_trained_measured_and_embeds(world: tuple[Path, dict[str, Outcome]]) -> None:
    folder, said = world
    for verb in ("pretrain", "evaluate", "embed"):
        assert said[verb].code == 0, said[verb].said
    scores = json.loads((folder / "scores.json").read_text())
    flat = dict(_leaves({task: found for task, found in scores.items() if task != "records"}))
    (recall,) = [value for name, value in flat.items() if name.endswith("points_to_text_R@1")]
    assert recall == 1  # of four
    (cosine,) = [value for name, value in flat.items() if name.endswith("cosine")]
    assert cosine < 0.9  # the model tells sides, though every second sample was mirrored together with its caption
    embedded = np.load(folder / "embeddings/points.npy")
    assert embedded.shape == (4, 16)
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, atol=1e-5)


def _leaves(value: object, name: str = "") -> list[tuple[str, float]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, f"{name}/{key}")]
    return [(name, value)] if isinstance(value, int | float) else []


def test_doctor_lists_what_is_installed(world: tuple[Path, dict[str, Outcome]]) -> None:
    for part in ("modalities", "encoders", "objectives", "evaluators"):
        assert f"{part} of points-for-mmssl 1.5 kind" in world[1]["doctor"].said


def test_mistakes_are_answered_as_for_our_own(world: tuple[Path, dict[str, Outcome]]) -> None:
    said = world[1]
    assert [said[name].code for name in ("no kernel", "typo", "typo in a sum", "no such kind", "mistake")] == [2] * 5
    assert "'reverse' has no kernel for modality 'points' (PointsModality)" in said["no kernel"].said
    assert "modalities.points.jiter: unknown key, did you mean 'jitter'?; allowed here: " in said["typo"].said
    assert 'encoders.points.width: got "32", wanted a valid integer' in said["typo"].said
    assert "modalty: unknown key, did you mean 'modality'?" in said["typo in a sum"].said
    assert "got kind 'mirored', did you mean 'mirrored'?; allowed: " in said["no such kind"].said
    assert "encoders.points.width: got 1, which tells one axis; set 2 or more" in said["mistake"].said


def test_an_encoder_says_itself_what_views_lose_in_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_inputs({"points": SetEncoderConfig(width=2)}, {"points": PointsConfig()})
        assert not caplog.records
        check_inputs({"points": SetEncoderConfig(width=2)}, {"points": PointsConfig(seconds=2.0)})
    assert [record.getMessage() for record in caplog.records] == [
        "modalities.points.seconds: got 2, and sets have no time"
    ]


def test_a_flip_mirrors_points_with_their_caption() -> None:
    modalities = {"points": PointsConfig().build("points"), "text": TextConfig(captions="lines").build("text")}
    points = cloud(CAPTIONS[0], 0)
    values = {"points": points, "text": modalities["text"].decode(b"a cloud at the top left", "txt")}
    augmented, record = Synchronized([Flip(probability=1.0)], modalities)(values, (0,))
    assert record[0]["applied"]
    np.testing.assert_array_equal(augmented["points"], points * [-1, 1])
    assert tuple(augmented["text"]) == ("a cloud at the top right",)
    values["text"] = modalities["text"].decode(b"the box is right", "txt")
    kept, record = Synchronized([Flip(probability=1.0)], modalities)(values, (0,))
    assert record[0]["skipped"] == "ambiguous_caption"
    np.testing.assert_array_equal(kept["points"], points)
    assert "'reverse' has no kernel for modality 'points'" in next(mistakes([Reverse()], modalities))


def test_a_broken_package_is_named_and_left_out(world: tuple[Path, dict[str, Outcome]]) -> None:
    outcome = world[1]["doctor"]
    faults = {
        "gone": "mmssl_gone:GoneConfig cannot be imported: ModuleNotFoundError: No module named 'mmssl_gone'",
        "thief": "kind 'vit' of mmssl_broken:ThiefConfig is taken by mmssl",
        "other": "got mmssl_points:PointsConfig, wanted a subclass of mmssl.objectives.common.ObjectiveConfig",
        "loose": "mmssl_broken:LooseConfig loosens `model_config`",
        "nameless": "mmssl_broken:NamelessConfig has no kind",
    }
    assert outcome.code == 2
    for name, fault in faults.items():
        assert outcome.said.count(f"entry point '{name}' of broken-for-mmssl 1.5 is left out: {fault}") == 1, (
            outcome.said
        )
        assert f"{name} is left out" in outcome.said
