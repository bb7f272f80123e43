"""The way of a user with a model from a hub and a table of pictures, from the first command to a page that searches them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmssl
from pipelines import cli
from pipelines.command import guarded
from tests.recipe.test_imported import open_clip_folder

COLOURS = ["red", "green", "blue", "yellow", "black", "white"]


def mmssl_(*arguments: object) -> None:
    assert guarded(cli.full(), [str(argument) for argument in arguments]) == 0


def table(folder: Path, count: int, seed: int) -> Path:
    """Pictures of one colour with noise, and a table of their captions."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    with open(folder / "table.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["photo", "title", "colour"])
        for number in range(count):
            colour = COLOURS[number % len(COLOURS)]
            plain = np.array(Image.new("RGB", (40, 36), colour), dtype=int)
            pixels = (plain + rng.integers(-20, 20, plain.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            rows.writerow([f"{number}.png", f"{colour} picture {number}", colour])
    return folder / "table.csv"


@pytest.mark.slow
def test_from_a_hub_folder_to_a_search_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    open_clip_folder("vit", tmp_path / "hub")
    for split, count in (("train", 48), ("test", 12)):
        source = table(tmp_path / f"{split}_pictures", count, seed=count)
        columns = ("--column", "image=photo", "--column", "caption=title", "--column", "class=colour")
        mmssl_("shards", "pack", source, f"shards/{split}", *columns)

    mmssl_("import", "hub", "--out", "clip")
    suite = {"retrieval": {"kind": "retrieval", "shards": ["shards/test"], "pair": ["image", "text"], "workers": 0}}
    Path("suite.yaml").write_text(json.dumps({"evaluators": suite}))
    mmssl_("evaluate", "clip", "suite.yaml", "--out", "before.json")
    changes = (
        'data.shards=["shards/train"]', "data.workers=0", "batch_size=12", "duration=30 epochs", "optimizer.lr=0.02",
        "optimizer.layer_decay=null", "precision=fp32", "device=cpu", "ema=null", "save.every=10 epochs", "log.trackers=[]",
        "name=tuned", "lora={image: {rank: 4}, text: {rank: 4}}",
    )  # fmt: skip
    mmssl_("pretrain", "clip/recipe.yaml", *changes)
    mmssl_("evaluate", "runs/tuned", "suite.yaml", "--out", "after.json")
    before, after = (json.loads(Path(f"{name}.json").read_text())["retrieval"] for name in ("before", "after"))
    assert after["image_to_text_R@5"] > before["image_to_text_R@5"]

    mmssl_("compare", "clip", "runs/tuned", "suite.yaml", "--out", "comparison")
    (row,) = (
        one
        for one in json.loads(Path("comparison/compare.json").read_text())["differences"]
        if one["metric"] == "image_to_text_R@5" and not one["group"]
    )
    assert row["second"] == pytest.approx(after["image_to_text_R@5"])
    mmssl_("average", "clip", "runs/tuned", "--weights", "0.5,0.5", "--out", "between")
    weights = [dict(mmssl.load(name).embedding.named_parameters()) for name in ("clip", "runs/tuned", "between")]
    name = "encoders.image.blocks.0.attention.qkv.weight"
    start, end, middle = (one[name] for one in weights)
    assert not torch.equal(start, end)
    torch.testing.assert_close(middle, (start + end) / 2)

    for target in ("transformers", "onnx", "open_clip"):
        mmssl_("export", "between", "--to", target, "--out", f"exported_{target}", "--samples", "shards/test")
    again = mmssl.load("exported_transformers").encode(text=["red picture 0"])["text"]
    torch.testing.assert_close(again, mmssl.load("between").encode(text=["red picture 0"])["text"], atol=1e-5, rtol=0)

    mmssl_("embed", "between", "--shards", "shards/test", "--out", "embeddings")
    mmssl_("search", "embeddings", "a red picture", "--modality", "image", "--top", 3, "--html", "found.html")
    assert Path("found.html").read_text().count("data:image/") >= 3
