"""Exports of towers of other libraries: the folders load there, and give the same embeddings and logits as the original."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import transformers
from safetensors.torch import save_file
from timm.models import VisionTransformer, register_model
from torch import nn

import mmssl
from mmssl.core.errors import CheckpointError, RecipeError
from mmssl.core.plan import Plan
from mmssl.datasets import digit_scenes
from mmssl.recipe.average import write_model
from mmssl.recipe.export import Check, export_model
from mmssl.recipe.imported import describe_model, write_imported_run
from mmssl.recipe.recipe import Recipe
from mmssl.recipe.validate import validate_text
from tests.encoders.kinds import BERT, HF_CLIP, HF_VIT, stir
from tests.recipe.test_imported import PREPROCESS, clap_folder, in_cache, tokenizer, transformers_folder

WORDS_OF = {"context_length": 16, "vocab_size": 40, "width": 32, "heads": 2, "layers": 2}
SIGLIP = {
    "embed_dim": 32,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 32, "timm_model_name": "tiny_siglip", "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": WORDS_OF | {
        "hf_tokenizer_name": "here", "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}, "tokenizer_kwargs": {"clean": "canonicalize"},
    },
}  # fmt: skip
ROBERTA = BERT | {"model_type": "roberta", "pad_token_id": 0, "max_position_embeddings": 24, "vocab_size": 40}
WITH_BERT = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {
        "hf_model_name": "org/words",
        "hf_tokenizer_name": "org/words",
        "hf_proj_type": "mlp",
        "context_length": 16,
    },
}
TEXTS = ["a photo of a cat", "red dog"]


@register_model
def tiny_siglip(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    settings = {"global_pool": "map"} | {key: kwargs[key] for key in ("num_classes", "global_pool") if key in kwargs}
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = VisionTransformer(**sizes, class_token=False, **settings)
    model.default_cfg = {}  # as timm's own builder does
    return model


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("scenes")
    digit_scenes.write(folder, train=8, validation=8, test=8, shards=1)
    return str(folder / "train")


def exported(source: Path, out: Path, to: Any, shards: str) -> tuple[Any, Check]:
    """Import a model, and export it again."""
    run = source
    if not (source / "checkpoints").exists():
        run = out.with_name(f"{out.name}_run")
        write_imported_run(describe_model(source), run)
    return export_model(run, out, to, which="best", ema=True, samples=[shards], int8=False)


def reloaded(folder: Path) -> Any:
    return transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()


def same_tensors(a: nn.Module, b: nn.Module, **tolerance: float) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        torch.testing.assert_close(x, theirs[name], **(tolerance or {"rtol": 0, "atol": 0}), msg=name)


@pytest.mark.parametrize("name", ["AltCLIP", "ChineseCLIP", "Siglip"])
def test_two_tower_models_of_transformers_are_saved_back(name: str, tmp_path: Path, shards: str) -> None:
    transformers_folder(name, tmp_path / "hub")
    theirs = reloaded(tmp_path / "hub")
    model, check = exported(tmp_path / "hub", tmp_path / "out", "transformers", shards)
    assert set(check.cosine) == {"image", "text"}
    again = reloaded(tmp_path / "out")
    assert type(again) is type(theirs)
    beside = {n: x.clone() for n, x in theirs.state_dict().items() if n.startswith("logit")}
    for key, x in again.state_dict().items():
        torch.testing.assert_close(x, theirs.state_dict()[key], rtol=1e-5, atol=1e-5 if key in beside else 0.0)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out", backend="pil")
    assert type(processor).__name__ == f"{name}Processor"
    picture = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    given = processor(images=[picture], text=TEXTS, return_tensors="pt", padding="max_length")
    assert ("attention_mask" in given) == (name != "Siglip")  # SigLIP's attention reads padding
    with torch.no_grad():
        logits = again(**given).logits_per_image
    (scale,) = model.logit_scales.values()
    (bias,) = model.logit_biases.values() or (0.0,)
    torch.testing.assert_close(logits, model.similarity(image=picture, text=TEXTS) * scale + bias, atol=2e-2, rtol=0)


def test_siglip_2_for_any_shape_is_saved_back_and_reads_squares_as_the_run_did(tmp_path: Path, shards: str) -> None:
    transformers_folder("Siglip2", tmp_path / "hub")
    model, check = exported(tmp_path / "hub", tmp_path / "out", "transformers", shards)
    assert set(check.cosine) == {"image", "text"}
    same_tensors(reloaded(tmp_path / "out"), reloaded(tmp_path / "hub"), rtol=1e-5, atol=1e-6)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out", backend="pil")
    assert type(processor).__name__ == "Siglip2Processor"
    size = 32
    square, wide = (np.random.default_rng(0).integers(0, 256, (size, w, 3), dtype=np.uint8) for w in (size, 2 * size))
    sizes = {"patch_size": 8, "max_num_patches": 16}  # the class of the processor has sizes of its own
    given = processor(images=[square], text=TEXTS, return_tensors="pt", padding="max_length", max_length=80, **sizes)
    assert "attention_mask" not in given
    with torch.no_grad():
        logits = reloaded(tmp_path / "out")(**given).logits_per_image
    (scale,), (bias,) = model.logit_scales.values(), model.logit_biases.values()
    torch.testing.assert_close(logits, model.similarity(image=square, text=TEXTS) * scale + bias, atol=1e-4, rtol=0)
    rows, columns = processor.image_processor(wide, return_tensors="pt")["spatial_shapes"][0].tolist()
    assert columns > rows  # a wide picture keeps its proportions, which the folder's card says
    assert "patch_size=8, max_num_patches=16" in check.facts["pictures"]


@pytest.mark.parametrize("fused", [False, True])
def test_clap_is_saved_back_with_its_extractor(fused: bool, tmp_path: Path, shards: str) -> None:
    theirs = clap_folder(tmp_path / "hub", fused)
    words = json.loads((tmp_path / "hub/tokenizer.json").read_text())
    words["post_processor"]["special_tokens"]["<s>"]["ids"] = [0]  # 1 is padding, as in RoBERTa
    (tmp_path / "hub/tokenizer.json").write_text(json.dumps(words))
    _, check = exported(tmp_path / "hub", tmp_path / "out", "transformers", shards)
    assert set(check.cosine) == {"audio", "text"}
    again = reloaded(tmp_path / "out")
    theirs.logit_scale_t.data.copy_(theirs.logit_scale_a)  # one temperature is trained here
    same_tensors(again, theirs, rtol=1e-5, atol=1e-6)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    assert type(processor).__name__ == "ClapProcessor"
    before = transformers.ClapFeatureExtractor.from_pretrained(tmp_path / "hub")
    settings = ("feature_size", "sampling_rate", "hop_length", "max_length_s", "frequency_min", "truncation", "padding")
    for key in settings:
        assert getattr(processor.feature_extractor, key) == getattr(before, key), key


def test_open_clips_siglip_becomes_transformers(tmp_path: Path, shards: str) -> None:
    theirs = open_clip_model(SIGLIP, tmp_path / "hub")
    _, check = exported(tmp_path / "hub", tmp_path / "out", "transformers", shards)
    assert set(check.cosine) == {"image", "text"}
    again = reloaded(tmp_path / "out")
    assert type(again).__name__ == "SiglipModel"
    assert (again.config.vision_config.hidden_act, again.config.text_config.hidden_act) == ("gelu", "gelu_pytorch_tanh")
    assert again.config.vision_config.layer_norm_eps == 1e-6
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(3, 9, (3, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = again(pixel_values=x, input_ids=ids)
        image, text = theirs.encode_image(x, normalize=True), theirs.encode_text(ids, normalize=True)
        wanted = image @ text.T * theirs.logit_scale.exp() + theirs.logit_bias
    torch.testing.assert_close(found.image_embeds, image, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.text_embeds, text, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.logits_per_image, wanted, atol=1e-3, rtol=0)


def open_clip_model(settings: dict[str, Any], folder: Path, text: dict[str, Any] | None = None) -> Any:
    """A model of random weights in a folder as on the hub; with the settings of its text model of transformers, if it has one."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    tokenizer(folder)
    made = json.loads(json.dumps(settings))
    if text is not None:
        (folder / "words").mkdir()
        (folder / "words/config.json").write_text(json.dumps(text))
        made["text_cfg"] |= {"hf_model_name": str(folder / "words"), "hf_model_pretrained": False}
    made.pop("custom_text", None)
    model = open_clip.CustomTextCLIP(**made).eval()
    stir(model)
    with torch.no_grad():
        model.logit_scale.fill_(3.5)
    save_file({key: x.contiguous() for key, x in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    preprocess = PREPROCESS | {"resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": preprocess}))
    return model


@pytest.mark.parametrize("place", ["beside", "cache"])
def test_open_clips_models_with_text_models_of_transformers(
    place: str, tmp_path: Path, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = open_clip_model(WITH_BERT, tmp_path / "hub", ROBERTA)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    if place == "cache":
        in_cache(tmp_path / "cache", "org/words", tmp_path / "hub/words")
        (tmp_path / "hub/words/config.json").unlink()
    ours = mmssl.load(tmp_path / "hub")
    assert ours.recipe.encoders["text"].kind == "open_clip"
    ids = ours.modalities["text"].tokenize(TEXTS)
    with torch.no_grad():
        wanted = theirs.encode_text(ids, normalize=True)
    torch.testing.assert_close(ours.encode(text=TEXTS)["text"], wanted, atol=1e-5, rtol=0)
    _, check = exported(tmp_path / "hub", tmp_path / "out", "open_clip", shards)
    assert set(check.cosine) == {"image", "text"}
    again, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    same_tensors(again, theirs, rtol=1e-5, atol=1e-6)
    (tmp_path / "out").rename(tmp_path / "moved")  # its settings name a folder that is gone
    moved = mmssl.load(tmp_path / "moved")
    torch.testing.assert_close(moved.encode(text=TEXTS)["text"], wanted, atol=1e-5, rtol=0)


def test_a_missing_text_model_says_where_it_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    open_clip_model(WITH_BERT, tmp_path / "hub", ROBERTA)
    (tmp_path / "hub/words/config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json of its text model 'org/words' lies neither"):
        describe_model(tmp_path / "hub")


def made_run(folder: Path, end: int = 2, **changes: Any) -> Path:
    """A run of untrained towers, whose texts end with an id: a checkpoint of step 0."""
    tokenizer(folder / "words")
    inner = json.loads((folder / "words/tokenizer.json").read_text())
    inner["post_processor"]["special_tokens"]["</s>"]["ids"] = [end]
    (folder / "words/tokenizer.json").write_text(json.dumps(inner))
    words = {"kind": "hf", "path": str(folder / "words"), "context_length": 10}
    document: dict[str, Any] = {
        "name": "made",
        "seed": 0,
        "duration": "1 steps",
        "batch_size": 4,
        "modalities": {"image": {"kind": "image", "size": 32}, "text": {"kind": "text", "tokenizer": words}},
        "data": {"shards": ["none"]},
        "objective": {
            "kind": "clip",
            "pairs": [["image", "text"]],
            "views": {"image": "crop", "text": "tokens"},
            "embedding": 16,
            "temperature": 0.07,
        },
        "optimizer": {"kind": "adamw", "lr": 1e-3},
        "schedule": {"kind": "constant"},
    } | changes
    recipe = validate_text(Recipe, json.dumps(document), "made")
    learner = recipe.build_learner(recipe.build_modalities(), Plan.unknown())
    stir(learner.encoders["text"])
    write_model(folder / "run/checkpoints/step_00000000", recipe, learner, {"step": 0})
    return folder / "run"


CLIP_TEXT = HF_CLIP["text_config"] | {"eos_token_id": 11, "bos_token_id": 1}  # type: ignore[operator]
CLIP_PICTURES = {"kind": "hf_vision", "config": HF_CLIP["vision_config"], "pool": "pooler"}
VIT = {"kind": "vit", "size": 32, "patch_size": 8, "width": 32, "depth": 1, "heads": 2}


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (CLIP_PICTURES, "CLIPModel"),
        ({"kind": "hf_vision", "config": HF_VIT, "pool": "pooler"}, "VisionTextDualEncoderModel"),
    ],
    ids=["clip", "dual"],
)
def test_towers_of_transformers_with_linear_heads(image: Any, kind: str, tmp_path: Path, shards: str) -> None:
    text = {"kind": "hf_text", "config": CLIP_TEXT, "pool": "eos", "pad_id": 0}
    run = made_run(tmp_path, 11, encoders={"image": image, "text": text})
    model, _ = exported(run, tmp_path / "out", "transformers", shards)
    again = reloaded(tmp_path / "out")
    assert type(again).__name__ == kind
    ids = model.modalities["text"].tokenize(TEXTS)
    with torch.no_grad():
        found = again.get_text_features(input_ids=ids, attention_mask=(ids != 0).long()).pooler_output
    torch.testing.assert_close(nn.functional.normalize(found), model.encode(text=TEXTS)["text"], atol=1e-5, rtol=0)
    assert float(again.logit_scale.detach().exp()) == pytest.approx(1 / 0.07, rel=1e-5)


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_open_clip_holds_a_text_model_beside_our_vision_transformer(pool: str, tmp_path: Path, shards: str) -> None:
    text = {"kind": "hf_text", "config": ROBERTA, "pool": pool, "pad_id": 0}
    run = made_run(tmp_path, encoders={"image": VIT, "text": text})
    model, _ = exported(run, tmp_path / "out", "open_clip", shards)
    again, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")(TEXTS)
    with torch.no_grad():
        found = again.eval().encode_text(tokens, normalize=True)
    torch.testing.assert_close(found, model.encode(text=TEXTS)["text"], atol=1e-5, rtol=0)


def siglip_at(shards: str, tmp_path: Path) -> Iterator[Any]:
    settings = SIGLIP | {"vision_cfg": SIGLIP["vision_cfg"] | {"timm_pool": "avg", "timm_proj": "linear"}}  # type: ignore[operator]
    open_clip_model(settings, tmp_path / "hub")
    yield exported(tmp_path / "hub", tmp_path / "out", "transformers", shards)


def bert_mean(to: str) -> Callable[[str, Path], Iterator[Any]]:
    def refused(shards: str, tmp_path: Path) -> Iterator[Any]:
        text = {"kind": "hf_text", "config": BERT, "pool": "last", "pad_id": 0}
        run = made_run(tmp_path, encoders={"image": CLIP_PICTURES, "text": text})
        yield exported(run, tmp_path / "out", to, shards)

    return refused


def largest_id(shards: str, tmp_path: Path) -> Iterator[Any]:
    text = {"kind": "hf_text", "config": CLIP_TEXT, "pool": "eos", "pad_id": 0, "eos_id": 2}
    run = made_run(tmp_path, encoders={"image": CLIP_PICTURES, "text": text})
    yield exported(run, tmp_path / "out", "transformers", shards)


def own_sigmoid(shards: str, tmp_path: Path) -> Iterator[Any]:
    text = {"kind": "text_transformer", "context_length": 10, "width": 32, "depth": 1, "heads": 2}
    run = made_run(
        tmp_path,
        encoders={"image": VIT, "text": text},
        modalities={
            "image": {"kind": "image", "size": 32},
            "text": {"kind": "text", "tokenizer": {"kind": "clip", "context_length": 10}},
        },
        objective={
            "kind": "clip", "pairs": [["image", "text"]], "views": {"image": "crop", "text": "tokens"}, "embedding": 16,
            "temperature": 0.1, "loss": "sigmoid",
        },
    )  # fmt: skip
    yield exported(run, tmp_path / "out", "transformers", shards)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (siglip_at, "pooled by attention .timm_pool: map., and this model has a VisionTransformer with another pool"),
        (bert_mean("transformers"), "got pool: pooler of image and pool: last of text, a bert"),
        (bert_mean("open_clip"), "got a bert with pool: last, wanted one of roberta"),
        (largest_id, "eos_id: got 2, for which a clip_text_model takes the largest id"),
        (own_sigmoid, "a model of the sigmoid loss, whose bias CLIPModel has not"),
    ],
    ids=["pool", "bert", "bert in open_clip", "eos", "bias"],
)
def test_what_does_not_fit_is_refused_by_name(attempt: Any, message: str, tmp_path: Path, shards: str) -> None:
    with pytest.raises(RecipeError, match=message):
        next(attempt(shards, tmp_path))
    assert not (tmp_path / "out").exists()
