"""Run folders of imported models: they may be moved, and errors advise what mends an import."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mmssl
from mmssl.core.errors import CheckpointError, DataError, RecipeError
from mmssl.recipe.imported import describe_model, write_imported_run
from mmssl.recipe.load import start_of
from mmssl.recipe.shipped import find_recipe
from tests.recipe.test_imported import CAPTIONS, CLIPS, SIZES, open_clip_folder, transformers_folder


def test_advice_is_for_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_clip_folder("vit", tmp_path / "hub")
    torch.save(model.state_dict(), tmp_path / "epoch_3.pt")
    other = CLIPS["vit"] | {"vision_cfg": SIZES | {"layers": 3}}  # type: ignore[operator]
    monkeypatch.setattr("open_clip.get_model_config", lambda name: other)
    attempts: list[Callable[[], object]] = [
        lambda: mmssl.load(tmp_path / "epoch_3.pt", arch="ViT-B-32"),
        lambda: write_imported_run(describe_model(tmp_path / "epoch_3.pt", "ViT-B-32"), tmp_path / "run"),
    ]
    for attempt in attempts:
        with pytest.raises(
            CheckpointError, match=r"belong to another model than these weights: give the right .*--arch"
        ) as found:
            attempt()
        assert "partial" not in str(found.value)
        assert "blocks.2" in str(found.value)


def test_what_describes_itself_takes_no_description(tmp_path: Path) -> None:
    open_clip_folder("vit", tmp_path / "hub")
    write_imported_run(describe_model(tmp_path / "hub"), tmp_path / "run")
    with pytest.raises(RecipeError, match=r"arch: got 'ViT-B-32' for .* which says its own; leave it out"):
        mmssl.load(tmp_path / "run", arch="ViT-B-32")
    with pytest.raises(DataError, match="wanted the folder of a tokenizer"):
        mmssl.load(tmp_path / "hub", tokenizer=tmp_path / "none")


def test_imported_folders_may_be_moved(tmp_path: Path) -> None:
    transformers_folder("ChineseCLIP", tmp_path / "hub")
    recipe, _ = write_imported_run(describe_model(tmp_path / "hub"), tmp_path / "run")
    assert recipe.weights == tmp_path / "run"
    model = mmssl.load(tmp_path / "run")
    before, digest = model.encode(text=CAPTIONS)["text"], model.digest()
    shutil.rmtree(tmp_path / "hub")
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "run").rename(tmp_path / "elsewhere" / "moved")
    for file in [*moved.rglob("*.yaml"), *moved.rglob("*.json")]:
        assert str(tmp_path) not in re.sub(r"#.*|\"imported\".*", "", file.read_text()), file
    model = mmssl.load(moved)
    assert torch.equal(model.encode(text=CAPTIONS)["text"], before)
    assert model.digest() == digest, "what was fitted of it, and embedded, is its own still"
    tuned = find_recipe(str(moved / "recipe.yaml"))  # starts from the folder, wherever it is
    assert tuned.weights == moved
    assert torch.equal(start_of(tuned).encode(text=CAPTIONS)["text"], before)
