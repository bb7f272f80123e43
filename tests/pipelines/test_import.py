"""`mmssl import`: a model of another library evaluates, embeds, fine-tunes and exports as a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mmssl
from tests.pipelines.conftest import World
from tests.recipe.test_imported import CLIPS, PREPROCESS, open_clip_folder


def test_an_imported_model_is_a_run(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    open_clip_folder("vit", tmp_path / "hub")
    run, test = tmp_path / "run", world.shards / "test"
    assert world.mmssl("import", tmp_path / "hub", "--out", run) == 0
    told = capfd.readouterr().err
    assert "encoders.image      31        0       0" in told
    assert f"mmssl pretrain {run / 'recipe.yaml'}" in told
    assert "unused" not in told
    for name, source in (("run", run), ("hub", tmp_path / "hub")):
        out = tmp_path / f"{name}.json"
        assert world.mmssl("evaluate", source, "--retrieval", test, "--workers", 0, "--out", out) == 0
        assert world.mmssl("embed", source, "--shards", test, "--out", tmp_path / f"{name}_rows") == 0
        assert world.mmssl("export", source, "--out", tmp_path / f"{name}_exported", "--samples", test) == 0
    ours, theirs = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("run", "hub"))
    assert ours["retrieval"] == theirs["retrieval"]
    rows = [np.load(tmp_path / f"{name}_rows" / "image.npy") for name in ("run", "hub")]
    assert np.array_equal(*rows)
    assert "imported from another library" in (tmp_path / "run_exported/README.md").read_text()
    before = load_file(tmp_path / "hub/open_clip_model.safetensors")
    for name in ("run", "hub"):
        after = load_file(tmp_path / f"{name}_exported" / "open_clip_model.safetensors")
        assert before.keys() == after.keys()
        written = json.loads((tmp_path / f"{name}_exported" / "open_clip_config.json").read_text())["preprocess_cfg"]
        assert written == PREPROCESS | {"interpolation": "bicubic", "resize_mode": "shortest"}
        assert all(np.allclose(before[key], after[key], atol=1e-6, rtol=1e-6) for key in before)
    changes = [
        f'data.shards=["{world.shards / "train"}"]',
        "data.workers=0",
        "batch_size=8",
        "duration=2 steps",
        "device=cpu",
    ]
    more = [f"output={tmp_path / 'runs'}", "name=tuned", "precision=fp32", "log.trackers=[]"]
    capfd.readouterr()
    assert world.mmssl("pretrain", run / "recipe.yaml", *changes, *more) == 0
    assert f"{run}/checkpoints/step_00000000/model.safetensors" in capfd.readouterr().err
    tuned = mmssl.load(tmp_path / "runs/tuned", ema=False).encode(text=["a photo of a cat"])["text"]
    start = mmssl.load(run).encode(text=["a photo of a cat"])["text"]
    assert 0.9 < float((tuned * start).sum()) < 0.9999999


def test_verbs_take_the_architecture_of_a_bare_file(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, test, file = open_clip_folder("vit", tmp_path / "hub"), world.shards / "test", tmp_path / "epoch_3.pt"
    torch.save({"state_dict": model.state_dict()}, file)
    monkeypatch.setattr("open_clip.get_model_config", lambda name: CLIPS["vit"])
    verbs: dict[str, tuple[object, ...]] = {
        "evaluate": ("--retrieval", test, "--workers", 0),
        "embed": ("--shards", test, "--out", tmp_path / "rows"),
        "export": ("--to", "safetensors", "--samples", test, "--out", tmp_path / "exported"),
    }
    for verb, options in verbs.items():
        assert world.mmssl(verb, file, *options) == 4
        assert "wanted open_clip's name of it" in capfd.readouterr().err
        assert world.mmssl(verb, file, "--arch", "ViT-B-32", *options) == 0
        assert world.mmssl(verb, world.run, "--arch", "ViT-B-32", *options) == 2
        assert "leave it out: other libraries' models need it" in capfd.readouterr().err


def test_what_cannot_be_imported_is_told(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "words.pt").write_text("no tensors")
    (tmp_path / "empty").mkdir()
    for code, source, more, message in (
        (4, tmp_path / "words.pt", (), "cannot read weights from"),
        (4, tmp_path / "none.pt", (), "there is no such file"),
        (4, tmp_path / "empty", (), "a folder without weights"),
        (4, "hf-hub:../../etc", (), "nothing is downloaded"),
        (3, tmp_path / "words.pt", ("--tokenizer", tmp_path / "none"), "wanted the folder of a tokenizer"),
    ):
        assert world.mmssl("import", source, "--out", tmp_path / "run", *more) == code
        assert message in capfd.readouterr().err
        assert not (tmp_path / "run").exists()
    assert world.mmssl("import", world.run, "--out", tmp_path / "run") == 4
    assert "is a run of mmssl already" in capfd.readouterr().err
