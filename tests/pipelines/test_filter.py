"""`mmssl shards filter --run`: CLIP-score filtering by the command line, against the model itself; wrong options."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mmssl
from mmssl.curation.filter_similarity import SIMILARITIES
from mmssl.data.shards.index import ShardIndex
from mmssl.recipe.calibrations import read_calibrations
from tests.pipelines.conftest import World


@pytest.fixture(scope="module")
def calibrated(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = world.copy_of_run(tmp_path_factory.mktemp("calibrated") / "run")
    assert world.mmssl("evaluate", run, "--calibrate", world.shards / "validation") == 0
    return run


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / SIMILARITIES).read_text().splitlines()]


def test_scores_and_choice_are_those_of_the_model(world: World, calibrated: Path, tmp_path: Path) -> None:
    out, test = tmp_path / "out", world.shards / "test"
    arguments = ("--run", calibrated, "--pair", "image,text", "--keep-share", 0.3, "--batch-size", 7)
    assert world.mmssl("shards", "filter", test, "--out", out, *arguments) == 0
    model = mmssl.load(calibrated)
    assert model.checkpoint is not None
    raws = list(ShardIndex.open([test]))
    pictures = [
        Image.open(io.BytesIO(next(raw.fields[one] for one in ("png", "jpg") if one in raw.fields))) for raw in raws
    ]
    captions = [raw.fields["txt"].decode().splitlines() for raw in raws]
    assert {len(some) for some in captions} == {1}
    inputs: dict[str, Any] = {"image": pictures, "text": [caption for (caption,) in captions]}
    cosines, found = model.similarity(**inputs).diag(), lines(out)
    np.testing.assert_allclose([line["similarity"] for line in found], cosines, atol=1e-5)
    # A calibration may be steep: it is compared at the same cosines.
    calibration = next(iter(read_calibrations(model.checkpoint, model.digest()).values()))
    torch.testing.assert_close(model.match(**inputs).diag(), calibration(cosines))
    known = calibration(torch.tensor([line["similarity"] for line in found]))
    torch.testing.assert_close(torch.tensor([line["probability"] for line in found]), known)
    assert sum(line["kept"] for line in found) == 9, "the floor of 0.3 x 32"
    assert [raw.key for raw in ShardIndex.open([out])] == [line["key"] for line in found if line["kept"]]
    facts = json.loads((out / "manifest.json").read_text())["settings"]["similarity"]
    assert facts["model"] == model.digest()
    assert Path(facts["checkpoint"]).is_relative_to(calibrated.resolve())


def test_a_probability_chooses_by_the_saved_calibration(
    world: World, calibrated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ("shards", "filter", world.shards / "test", "--out", tmp_path / "out", "--run", calibrated)
    assert world.mmssl(*command, "--dry-run") == 0
    assert "similarity of image and text  of 32 samples" in capfd.readouterr().out
    assert not (tmp_path / "out").exists()
    assert world.mmssl(*command, "--min-probability", 0) == 0
    probabilities = sorted(line["probability"] for line in lines(tmp_path / "out"))
    middle = probabilities[len(probabilities) // 2]
    assert world.mmssl(*command, "--min-probability", middle, "--overwrite") == 0
    assert [line["kept"] for line in lines(tmp_path / "out")] == [
        line["probability"] >= middle for line in lines(tmp_path / "out")
    ]


def test_embeddings_that_are_there_score_as_the_model_does(
    world: World, calibrated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    test, embedded = world.shards / "test", tmp_path / "embedded"
    assert world.mmssl("embed", calibrated, "--shards", test, "--out", embedded) == 0
    for name, run in (("model", calibrated), ("rows", embedded)):
        command = ("shards", "filter", test, "--out", tmp_path / name, "--min-words", 1, "--run", run)
        assert world.mmssl(*command, "--min-probability", 0) == 0
    by_model, by_rows = lines(tmp_path / "model"), lines(tmp_path / "rows")
    assert [line["key"] for line in by_rows] == [line["key"] for line in by_model]
    for_rows = [line["similarity"] for line in by_rows]
    np.testing.assert_allclose(for_rows, [line["similarity"] for line in by_model], atol=1e-5)
    facts = [
        json.loads((tmp_path / name / "manifest.json").read_text())["settings"]["similarity"]
        for name in ("model", "rows")
    ]
    assert {name: facts[1][name] for name in ("checkpoint", "weights", "model", "recipe", "pair", "scored")} == {
        name: facts[0][name] for name in ("checkpoint", "weights", "model", "recipe", "pair", "scored")
    }
    assert facts[1]["embeddings"] == str(embedded)
    capfd.readouterr()
    for arguments, code, wanted in (
        ((test, "--batch-size", 8), 2, "--batch-size has no effect without a model that encodes"),
        ((test, "--pair", "image,sound"), 2, "--pair: got 'sound'; allowed: image, text"),
        ((world.shards / "train",), 3, "holds embeddings of 32 samples of"),
    ):
        given = ("shards", "filter", *arguments, "--out", tmp_path / "out", "--run", embedded, "--keep-share", 1)
        assert world.mmssl(*given) == code
        assert wanted in " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--pair", "image,text"], "--pair has no effect without --run"),
        (["--device", "cpu"], "--device has no effect without --run"),
        (["--keep-share", "0.3"], "got --keep-share without a model"),
        (["--run", "{run}"], "got a model (--run) and no criterion"),
        (["--run", "{run}", "--keep-share", "0"], "--keep-share: got 0.0, wanted a number, above 0, at most 1"),
        (["--run", "{run}", "--keep-share", "1.5"], "--keep-share: got 1.5, wanted a number, above 0, at most 1"),
        (["--run", "{run}", "--min-similarity", "2"], "got 2, wanted a number, at least -1, at most 1"),
        (
            ["--run", "{run}", "--min-similarity", "0.1", "--keep-share", "1"],
            "command line:1: got --min-similarity and --keep-share, wanted one",
        ),
        (["--run", "{run}", "--min-probability", "0.5"], "a model without a calibration of image and text"),
        (["--run", "{run}", "--keep-share", "1", "--pair", "image,sound"], "--pair: got 'sound'; allowed: image, text"),
        (["--run", "{run}", "--keep-share", "1", "--pair", "text,text"], "wanted two different modalities as A,B"),
        (["--run", "{run}", "--keep-share", "1", "--device", "tpu"], "--device: got 'tpu'"),
    ],
)
def test_wrong_options_are_told_before_any_work(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], wanted: str
) -> None:
    given = [one.format(run=world.run) for one in arguments]
    assert world.mmssl("shards", "filter", tmp_path / "nowhere", "--out", tmp_path / "out", *given) == 2
    assert wanted in " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "out").exists()
