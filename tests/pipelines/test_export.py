"""`mmssl export`: other libraries load what it writes, and find the same embeddings; what differs is not left there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import mmssl
from mmssl.core.errors import CheckpointError
from mmssl.interop import open_clip_folder
from mmssl.recipe.imported import described_folder
from tests.pipelines.conftest import World

SIGMOID = "objective.pairs=[{modalities: [text, image], loss: sigmoid, bias: -10}]"
TEXTS = ["a zero", "the number seven on a blue square", "Ünïcode &amp; 12 <b>"]


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


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
    ours = mmssl.load(run).encode(image=pixels(), text=TEXTS)
    model.eval()
    with torch.no_grad():
        theirs = model(preprocess(Image.fromarray(pixels()))[None], tokenize(TEXTS))
    torch.testing.assert_close(theirs[0], ours["image"], atol=1e-5, rtol=0)
    torch.testing.assert_close(theirs[1], ours["text"], atol=1e-5, rtol=0)
    assert (len(theirs) == 4) == bool(overrides)  # a sigmoid's model has a bias
    if overrides:
        assert float(theirs[3].detach()) == pytest.approx(-10, abs=0.2)
    assert float(theirs[2]) == pytest.approx(1 / 0.07, rel=0.1)


def test_transformers_load_it_with_its_processor_and_embed_alike(world: World, tmp_path: Path) -> None:
    from transformers import AutoModel, CLIPProcessor

    out = tmp_path / "exported"
    assert world.mmssl("export", world.run, "--to", "transformers", "--out", out) == 0
    model, processor = AutoModel.from_pretrained(out).eval(), CLIPProcessor.from_pretrained(out, backend="pil")
    given = processor(text=TEXTS[:2], images=[Image.fromarray(pixels())], return_tensors="pt", padding=True)
    assert int(given["input_ids"].max()) == 49407
    with torch.no_grad():
        theirs = model(**given)
    trained = mmssl.load(world.run)
    ours = trained.encode(image=pixels(), text=TEXTS[:2])
    torch.testing.assert_close(theirs.image_embeds, ours["image"], atol=1e-5, rtol=0)
    torch.testing.assert_close(theirs.text_embeds, ours["text"], atol=1e-5, rtol=0)
    scale = trained.logit_scales["image", "text"]
    torch.testing.assert_close(theirs.logits_per_image, scale * ours["image"] @ ours["text"].T, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_onnx_has_a_dynamic_batch_and_int8_is_measured(world: World, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "exported"
    assert world.mmssl("export", world.run, "--to", "onnx", "--int8", "--out", out) == 0
    model = mmssl.load(world.run)
    ids = model.modalities["text"].tokenize(TEXTS)
    for kind, tolerance in (("onnx", 1e-5), ("int8.onnx", 0.1)):
        session = onnxruntime.InferenceSession(out / f"text.{kind}")
        found = torch.from_numpy(session.run(None, {"input": ids.numpy()})[0])
        torch.testing.assert_close(found, model.encode(text=TEXTS)["text"], atol=tolerance, rtol=0)
    card = (out / "README.md").read_text()
    assert "- opset: 18" in card
    assert all(f"- {name}.int8.onnx: bytes " in card for name in ("image", "text"))
    assert "p95_ms" in card
    assert "- retrieval, onnx: image_to_text_R@1 " in card
    assert "- retrieval, int8.onnx: image_to_text_R@1 " in card
    assert (out / "image.int8.onnx").stat().st_size < (out / "image.onnx").stat().st_size


def test_safetensors_are_merged_weights_bit_for_bit_with_a_card(world: World, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    lora = ("name=lora", f"weights={world.run}", "lora={image: {rank: 2}}")
    assert world.pretrain(f"output={tmp_path}", *lora) == 0
    out = tmp_path / "exported"
    assert world.mmssl("export", tmp_path / "lora", "--to", "safetensors", "--out", out) == 0
    merged, plain = (mmssl.load(path) for path in (tmp_path / "lora", out))
    assert not plain.recipe.lora
    for name, x in merged.embedding.state_dict().items():
        assert torch.equal(plain.embedding.state_dict()[name], x), name
    card = (out / "README.md").read_text()
    assert "| retrieval | image_to_text_R@1 | " in card
    assert "mmssl.load" in card
    assert world.pretrain(f"output={tmp_path}", "name=next", f"weights={out}") == 0


def test_what_differs_is_not_left_there(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    embed: Callable[..., tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = open_clip_folder.embed_open_clip

    def wrong(*arguments: object) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        views, files = embed(*arguments)
        return {**views, "text": views["text"] + 2e-5}, files

    monkeypatch.setattr(open_clip_folder, "embed_open_clip", wrong)
    assert world.mmssl("export", world.run, "--out", tmp_path / "one") == 5
    assert "embeddings of text differ by 2e-05, wanted at most 1e-05" in capfd.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_what_cannot_be_exported_is_told(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one").mkdir()
    assert world.mmssl("export", world.run, "--out", tmp_path / "one") == 3
    assert "exists already" in capfd.readouterr().err
    (tmp_path / "file").write_text("")
    assert world.mmssl("export", world.run, "--out", tmp_path / "file" / "x") == 3
    assert "cannot write" in capfd.readouterr().err
    assert world.mmssl("export", world.run, "--out", tmp_path / "no", "--samples", tmp_path / "none") == 3
    assert "name shards of some by --samples" in capfd.readouterr().err
    values = json.loads(world.recipe.read_text())
    values["encoders"]["text"]["pool"] = "mean"
    recipe = tmp_path / "mean.yaml"
    recipe.write_text(json.dumps(values | {"name": "mean", "output": str(tmp_path)}))
    assert world.pretrain(recipe=recipe) == 0
    capfd.readouterr()
    for target in ("open_clip", "transformers"):
        assert world.mmssl("export", tmp_path / "mean", "--to", target, "--out", tmp_path / "two") == 2
        assert "pool: eot" in capfd.readouterr().err
        assert not (tmp_path / "two").exists()


@pytest.mark.parametrize(
    ("target", "file"),
    [
        ("safetensors", "model.safetensors"),
        ("open_clip", "open_clip_model.safetensors"),
        ("transformers", "model.safetensors"),
    ],
)
def test_the_weights_file_of_an_export_means_its_folder(world: World, tmp_path: Path, target: str, file: str) -> None:
    out = tmp_path / "exported"
    assert world.mmssl("export", world.run, "--to", target, "--out", out) == 0
    whole, alone = (mmssl.load(path).encode(text=TEXTS, image=pixels()) for path in (out, out / file))
    assert all(torch.equal(alone[name], rows) for name, rows in whole.items())
    assert world.mmssl("evaluate", out / file, "--retrieval", world.shards / "test") == 0
    if target != "safetensors":
        other = shutil.copy(out / file, out / "epoch_3.pt")
        assert described_folder(other) == other, "not the weights of the folder"


def test_a_file_of_a_checkpoint_with_averaged_weights_is_ambiguous(world: World, tmp_path: Path) -> None:
    checkpoint = world.copy_of_run(tmp_path / "run") / "checkpoints" / "step_00000006"
    assert described_folder(checkpoint / "model.safetensors") == checkpoint
    assert described_folder(checkpoint / "recipe.yaml") == checkpoint / "recipe.yaml", "a recipe"
    with pytest.raises(CheckpointError, match=r"optimizer\.pt', one file of the checkpoint '.*06': give the folder$"):
        described_folder(checkpoint / "optimizer.pt")
    (checkpoint / "ema.safetensors").touch()
    for file in ("model.safetensors", "ema.safetensors"):
        with pytest.raises(CheckpointError, match=r"give the folder, with --no-ema \(ema=False\) for the weights"):
            described_folder(checkpoint / file)
    assert described_folder(checkpoint / "model.safetensors", "ViT-B-32") == checkpoint / "model.safetensors"


def test_a_model_without_a_shared_space_is_weights_or_features(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A self-supervised model has encoders alone: libraries of two towers and embeddings are refused with what there is."""
    values = json.loads(world.recipe.read_text())
    pictures = values["modalities"]["image"] | {"views": {"crop": {"kind": "resized_crop"}}}
    head = {"kind": "mlp", "hidden": 8}
    values |= {
        "name": "alone",
        "output": str(tmp_path),
        "evaluators": {},
        "modalities": {"image": pictures},
        "encoders": {"image": values["encoders"]["image"]},
        "objective": {
            "kind": "simclr", "modality": "image", "view": "crop", "temperature": 0.1, "embedding": 8, "head": head,
        },
    }  # fmt: skip
    recipe, run = tmp_path / "alone.yaml", tmp_path / "alone"
    recipe.write_text(json.dumps(values))
    assert world.pretrain(recipe=recipe) == 0
    capfd.readouterr()
    for target in ("open_clip", "transformers"):
        assert world.mmssl("export", run, "--to", target, "--out", tmp_path / "no") == 2
        assert f"no shared space, which {target} wants" in capfd.readouterr().err
    assert world.mmssl("embed", run, "--shards", world.shards / "test", "--out", tmp_path / "embedded") == 2
    assert "--features writes what its encoders give" in capfd.readouterr().err
    for flag in ("--zero-shot", "--retrieval", "--relations", "--calibrate"):
        assert world.mmssl("evaluate", run, flag, world.shards / "test") == 2
        said = " ".join(capfd.readouterr().err.replace("│", " ").split())
        assert f"{flag} needs two modalities of a shared space: this model has none; features of one" in said
    with pytest.raises(ValueError, match="no shared space for 'image'"):
        mmssl.load(run).match(image=pixels(), text=["a cat"])
    assert world.mmssl("export", run, "--to", "safetensors", "--out", tmp_path / "weights") == 0
    features = mmssl.load(run).features(image=pixels())["image"]
    assert torch.equal(mmssl.load(tmp_path / "weights").features(image=pixels())["image"], features)
    card = (tmp_path / "weights" / "README.md").read_text()
    assert "A model of image (vit) alone, trained with mmssl" in card
    assert "features, scaled to unit norm, may differ" in card
