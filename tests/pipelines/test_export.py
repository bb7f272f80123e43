"""`mmssl export`: open_clip loads what it writes, and finds the same embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import mmssl
from tests.pipelines.conftest import World

SIGMOID = "objective.pairs=[{modalities: [text, image], loss: sigmoid, bias: -10}]"


@pytest.mark.parametrize(
    "overrides", [(), (SIGMOID, "ema={decay: 0.5}", "name=sigmoid")], ids=["info_nce", "sigmoid and averaged"]
)
def test_open_clip_loads_it_and_embeds_alike(world: World, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    run = world.run
    if overrides:
        assert world.pretrain(f"output={tmp_path}", *overrides) == 0
        run = tmp_path / "sigmoid"
    out = tmp_path / "out" / "exported"
    assert world.mmssl("export", run, "--out", out) == 0
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{out}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{out}")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    texts = ["a zero", "the number seven on a blue square"]
    ours = mmssl.load(run).encode(image=pixels, text=texts)
    model.eval()
    with torch.no_grad():
        theirs = model(preprocess(Image.fromarray(pixels))[None], tokenize(texts))
    torch.testing.assert_close(theirs[0], ours["image"], atol=1e-5, rtol=0)
    torch.testing.assert_close(theirs[1], ours["text"], atol=1e-5, rtol=0)
    assert (len(theirs) == 4) == bool(overrides)  # a sigmoid's model has a bias
    if overrides:
        assert float(theirs[3].detach()) == pytest.approx(-10, abs=0.2)
    assert float(theirs[2]) == pytest.approx(1 / 0.07, rel=0.1)


def test_what_cannot_be_exported_is_told(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert world.mmssl("export", world.run, "--out", tmp_path / "one") == 0
    assert world.mmssl("export", world.run, "--out", tmp_path / "one") == 3
    assert "holds a model already" in capfd.readouterr().err
    (tmp_path / "file").write_text("")
    assert world.mmssl("export", world.run, "--out", tmp_path / "file" / "x") == 3
    assert "cannot write" in capfd.readouterr().err
    values = json.loads(world.recipe.read_text())
    values["encoders"]["text"]["pool"] = "mean"
    recipe = tmp_path / "mean.yaml"
    recipe.write_text(json.dumps(values | {"name": "mean", "output": str(tmp_path)}))
    assert world.pretrain(recipe=recipe) == 0
    capfd.readouterr()
    assert world.mmssl("export", tmp_path / "mean", "--out", tmp_path / "two") == 2
    assert "wanted pool: eot and causal: true" in capfd.readouterr().err
    assert not (tmp_path / "two").exists()
