"""Models of other libraries become runs: the same embeddings and logits as in the library that they come from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn

import mmssl
from mmssl.core.errors import CheckpointError, DataError
from mmssl.interop.describe_open_clip import usual_preprocessing
from mmssl.recipe.imported import describe_model, write_imported_run
from tests.encoders.adapters.test_two_towers import MODELS, TEXTS
from tests.encoders.kinds import stir

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "a", "cat", "dog", "red", "photo", "of", "bark", "loud"]
CAPTIONS = ["a photo of a cat", "red dog"]
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
SIZES = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
WORDS_OF = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
PREPROCESS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
CLIPS = {
    "vit": {"embed_dim": 16, "quick_gelu": True, "vision_cfg": SIZES, "text_cfg": WORDS_OF},
    "resnet": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32},
        "text_cfg": WORDS_OF,
    },
    # As SigLIP: other towers, a bias, and pictures that are squashed.
    "siglip": {
        "embed_dim": 32,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear"},
        "text_cfg": WORDS_OF | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    },
}


def tokenizer(folder: Path, pad: str = "<pad>", **special: str) -> None:
    """A tokenizer of whole words, as transformers saves it."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": pad} | special
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)


def pieces() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary of letters and of the words that merges make of them, as SigLIP 2's tokenizer has."""
    vocabulary = {
        word: number for number, word in enumerate([*WORDS[:4], "<mask>", *sorted({"▁", *"".join(WORDS[4:])})])
    }
    merges = []
    for word in (start + word for word in WORDS[4:] for start in ("", "▁")):
        for end in range(1, len(word)):
            if word[: end + 1] not in vocabulary:
                vocabulary[word[: end + 1]] = len(vocabulary)
                merges.append((word[:end], word[end]))
    return vocabulary, merges


def piece_tokenizer(folder: Path) -> None:
    """A tokenizer of pieces as it lies beside SigLIP 2, whose files do not say that it makes lower case."""
    vocabulary, merges = pieces()
    inner = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True))
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    names = {
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    }
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)


def in_cache(cache: Path, repository: str, made: Path) -> None:
    """Lay a folder out as the hub's cache has it."""
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs/main").write_text("0" * 40)
    shutil.copytree(made, root / "snapshots" / ("0" * 40))


def open_clip_folder(name: str, folder: Path) -> nn.Module:
    torch.manual_seed(0)
    kind = open_clip.CustomTextCLIP if CLIPS[name].get("custom_text") else open_clip.CLIP
    settings = {key: value for key, value in CLIPS[name].items() if key != "custom_text"}
    model = kind(**settings).eval()
    stir(model)
    with torch.no_grad():
        model.logit_scale.fill_(3.5)
    folder.mkdir(parents=True)
    save_file({key: x.contiguous() for key, x in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    preprocess = PREPROCESS | ({"resize_mode": "squash"} if name == "siglip" else {})
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIPS[name], "preprocess_cfg": preprocess}))
    return model


def same(found: Tensor, wanted: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, wanted, atol=atol, rtol=1e-5)


def normalised(model: Any) -> Tensor:
    """`PIXELS` in the view "eval", with the statistics of the test's models."""
    mean, std = (torch.tensor(PREPROCESS[key])[:, None, None] for key in ("mean", "std"))
    return (model.modalities["image"].view("eval")(PIXELS, {})[None].float() / 255 - mean) / std


def check(
    model: Any, scale: Tensor, bias: Tensor | None, first: Tensor, second: Tensor, inputs: dict[str, Any]
) -> None:
    """Embeddings and the temperature are those of the other library."""
    ours = model.encode(**inputs)
    for found, wanted in zip(ours.values(), (first, second), strict=True):
        same(found, nn.functional.normalize(wanted, dim=-1))
    (own,) = model.logit_scales.values()
    same(torch.tensor(own), scale.exp().detach().reshape(()))
    assert (model.recipe.objective.loss == "sigmoid") == (bias is not None)
    if bias is not None:
        assert model.recipe.objective.bias == pytest.approx(float(bias.detach()), abs=1e-5)


@pytest.mark.parametrize("name", CLIPS)
def test_open_clips_hub_folders_become_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_clip_folder(name, tmp_path / "hub")
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'hub'}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'hub'}")(CAPTIONS)
    pixels = normalised(mmssl.load(tmp_path / "hub"))
    same(preprocess(Image.fromarray(PIXELS)), pixels[0], atol=1.01 / 255 / min(PREPROCESS["std"]))
    with torch.no_grad():
        wanted = theirs.eval().encode_image(pixels), theirs.encode_text(tokens)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    in_cache(tmp_path / "cache", "org/model", tmp_path / "hub")
    write_imported_run(describe_model(Path("hf-hub:org/model")), tmp_path / "run")
    for source in ("hf-hub:org/model", tmp_path / "run"):
        model = mmssl.load(source)
        bias = getattr(theirs, "logit_bias", None)
        check(model, theirs.logit_scale, bias, *wanted, {"image": PIXELS, "text": CAPTIONS})
        assert {encoder.kind for encoder in model.recipe.encoders.values()} == (
            {"open_clip"} if name == "siglip" else {"vit" if name == "vit" else "resnet", "text_transformer"}
        )


def test_files_and_tags_of_open_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_clip_folder("vit", tmp_path / "hub")
    torch.save({"state_dict": {f"module.{n}": x for n, x in model.state_dict().items()}}, tmp_path / "epoch_3.pt")
    with pytest.raises(CheckpointError, match="does not say which model it is, wanted open_clip's name"):
        describe_model(tmp_path / "epoch_3.pt")
    with pytest.raises(CheckpointError, match=r"got arch 'ViT-B-33', wanted .* did you mean 'ViT-B-32'"):
        describe_model(tmp_path / "epoch_3.pt", "ViT-B-33")
    monkeypatch.setattr("open_clip.get_model_config", lambda name: CLIPS["vit"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    ours = mmssl.load(tmp_path / "epoch_3.pt", arch="ViT-B-32")
    same(ours.embedding.heads["text"].linear.weight.detach(), model.text_projection.T)  # type: ignore[union-attr, operator]
    tag = "ViT-B-32:laion2b_s34b_b79k"
    with pytest.raises(
        CheckpointError, match=r"file is not here, and nothing is downloaded: wanted .*models--laion--CLIP"
    ):
        mmssl.load(tag)
    in_cache(tmp_path / "cache", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", tmp_path / "hub")
    other = mmssl.load(tag)
    same(other.encode(text=CAPTIONS)["text"], ours.encode(text=CAPTIONS)["text"])
    with pytest.raises(CheckpointError, match=r"which is no file; wanted one of its tags .*laion2b_s34b_b79k"):
        mmssl.load("ViT-B-32:laion3b")
    with pytest.raises(CheckpointError, match="it has laion/CLIP-ViT-B-32-laion2B-s34B-b79K"):
        mmssl.load("hf-hub:org/none")


def test_pictures_are_prepared_as_published_weights_of_the_model_want() -> None:
    assert usual_preprocessing("ViT-B-16-SigLIP2") == {
        "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "resize_mode": "squash",
    }  # fmt: skip
    assert usual_preprocessing("ViT-B/32")["mean"] == open_clip.OPENAI_DATASET_MEAN
    assert usual_preprocessing("no such model") == {}


def transformers_folder(name: str, folder: Path) -> Any:
    """A model, its tokenizer and its image processor, as on the hub."""
    torch.manual_seed(0)
    count = len(pieces()[0]) if name == "Siglip2" else len(WORDS) + 4
    texts = TEXTS | {"vocab_size": count, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 80}
    texts |= {"project_dim": 32} if name == "AltCLIP" else {"projection_size": 32} if "Siglip" in name else {}
    settings = MODELS[name] | {"text_config": texts}
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**settings)).eval()
    stir(model)
    with torch.no_grad():
        model.logit_scale.fill_(3.5)
    model.save_pretrained(folder)
    (piece_tokenizer if name == "Siglip2" else tokenizer)(folder)
    square = "Siglip" in name or name == "ChineseCLIP"
    size = {"height": 32, "width": 32} if square else {"shortest_edge": 32}
    values = {"image_mean": PREPROCESS["mean"], "image_std": PREPROCESS["std"], "size": size, "resample": 3 - square}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_transformers_folders_become_runs(name: str, tmp_path: Path) -> None:
    theirs = transformers_folder(name, tmp_path / "hub")
    write_imported_run(describe_model(tmp_path / "hub"), tmp_path / "run")
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "hub", padding_side="right")
    shutil.rmtree(tmp_path / "hub")
    model = mmssl.load(tmp_path / "run")
    view = model.modalities["image"].view("eval")(PIXELS, {})
    square = "Siglip" in name or name == "ChineseCLIP"
    how = Image.Resampling.BILINEAR if square else Image.Resampling.BICUBIC
    sides = (32, 32) if square else (44, 32)
    wanted = np.asarray(Image.fromarray(PIXELS).resize(sides, how))[:, 0 if square else 6 :][:, :32]
    assert np.abs(view.permute(1, 2, 0).numpy().astype(int) - wanted).max() <= 1
    inputs = {"pixel_values": normalised(model)}
    if name == "Siglip2":
        rows = inputs["pixel_values"].unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(1, 16, 192)
        inputs = {
            "pixel_values": rows,
            "pixel_attention_mask": torch.ones(1, 16),
            "spatial_shapes": torch.tensor([[4, 4]]),
        }
    ids = model.modalities["text"].tokenize(CAPTIONS)  # type: ignore[attr-defined]
    texts = [*CAPTIONS, "A red DOG"]
    wanted = reader(texts, padding="max_length", max_length=ids.shape[1], return_tensors="pt")["input_ids"]
    torch.testing.assert_close(model.modalities["text"].tokenize(texts), wanted)  # type: ignore[attr-defined]
    lower = model.modalities["text"].tokenize([text.lower() for text in texts])  # type: ignore[attr-defined]
    assert torch.equal(lower, wanted) == (name == "Siglip2")  # its class makes lower case, which its files do not say
    masks = {} if "Siglip" in name else {"attention_mask": (ids != 0).long()}
    with torch.no_grad():
        out = theirs(input_ids=ids, **masks, **inputs)
    found = {"image": PIXELS, "text": CAPTIONS}
    check(model, theirs.logit_scale, getattr(theirs, "logit_bias", None), out.image_embeds, out.text_embeds, found)
    bias = getattr(theirs, "logit_bias", torch.zeros(()))
    (scale,) = model.logit_scales.values()
    same(model.similarity(**found) * scale + bias, out.logits_per_image)


CLAP_TEXT = TEXTS | {"vocab_size": len(WORDS), "pad_token_id": 1, "bos_token_id": 0, "max_position_embeddings": 82}
CLAP = {
    "text_config": CLAP_TEXT | {"eos_token_id": 2, "hidden_size": 64, "num_attention_heads": 1},
    "audio_config": {
        "patch_embeds_hidden_size": 16, "hidden_size": 64, "depths": [1, 1, 2], "num_attention_heads": [2, 2, 4],
        "num_hidden_layers": 3,
    },
    "projection_dim": 32,
}  # fmt: skip


def clap_folder(folder: Path, fused: bool) -> Any:
    torch.manual_seed(0)
    audio = CLAP["audio_config"] | {"enable_fusion": fused, "enable_patch_fusion": fused, "fusion_type": "aff_2d"}
    model = transformers.ClapModel(transformers.ClapConfig(**CLAP | {"audio_config": audio})).eval()  # type: ignore[operator]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer(folder, pad="<s>", bos_token="<pad>")
    extractor = transformers.ClapFeatureExtractor(truncation="fusion" if fused else "rand_trunc", frequency_min=50)
    extractor.save_pretrained(folder)
    return model


def laion_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as LAION-CLAP's training saves them."""
    pairs = [
        ("audio_model.audio_encoder.", "audio_branch."), (".attention.self.", ".attn."),
        (".attention.output.dense.", ".attn.proj."), (".intermediate.dense.", ".mlp.fc1."),
        (".output.dense.", ".mlp.fc2."), (".layernorm_before.", ".norm1."), (".layernorm_after.", ".norm2."),
        (".batch_norm.", ".bn0."),
    ]  # fmt: skip
    made: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("text_model."):
            made[name.replace("text_model.", "text_branch.")] = tensor
        elif ".query." in name:
            parts = torch.cat([state[name.replace(".query.", f".{part}.")] for part in ("query", "key", "value")])
            made[replaced(name, pairs).replace(".query.", ".qkv.")] = parts
        elif not (".key." in name or ".value." in name):
            made[replaced(name, pairs).replace("linear1", "0").replace("linear2", "2")] = tensor
    return {f"module.{name}": tensor for name, tensor in made.items() if not name.endswith("token_type_ids")}


def replaced(name: str, pairs: list[tuple[str, str]]) -> str:
    for old, new in pairs:
        name = name.replace(old, new)
    return name


@pytest.mark.parametrize("fused", [False, True])
def test_clap_becomes_a_run_from_transformers_and_from_laion(fused: bool, tmp_path: Path) -> None:
    theirs = clap_folder(tmp_path / "hub", fused)
    extras = {
        "module.audio_branch.spectrogram_extractor.stft.conv_real.weight": torch.ones(2),
        "module.logit_scale_x": torch.ones(2),
    }
    torch.save({"epoch": 3, "state_dict": laion_names(theirs.state_dict()) | extras}, tmp_path / "laion.pt")
    noise = np.random.default_rng(0).integers(-3000, 3000, 480_000).astype(np.int16)
    models = mmssl.load(tmp_path / "hub"), mmssl.load(tmp_path / "laion.pt", tokenizer=tmp_path / "hub")
    mel = models[0].embedding.encoders["audio"].prepare(torch.from_numpy(noise)[None, None])  # type: ignore[operator]
    extractor = transformers.ClapFeatureExtractor.from_pretrained(tmp_path / "hub")
    theirs_mel = extractor((noise / 32768).astype(np.float32), sampling_rate=48_000, return_tensors="pt").input_features
    torch.testing.assert_close(mel, theirs_mel, atol=2e-3, rtol=1e-4)  # dB
    ids = models[0].modalities["text"].tokenize(CAPTIONS)  # type: ignore[attr-defined]
    with torch.no_grad():
        out = theirs(
            input_ids=ids, attention_mask=(ids != 1).long(), input_features=mel, is_longer=torch.zeros(1, 1) > 0
        )
    for model in models:
        ours = model.encode(audio=noise, text=CAPTIONS)
        same(ours["text"], out.text_embeds)
        same(ours["audio"], out.audio_embeds)
        (scale,) = model.logit_scales.values()
        same(torch.tensor(scale), theirs.logit_scale_a.exp().detach())
    same(models[0].encode(audio=noise)["audio"], models[1].encode(audio=noise)["audio"])


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def set_key(name: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("preprocessor_config.json"), "no preprocessor_config.json with image_mean"),
        (set_key("preprocessor_config.json", resample=0), r"got resample 0, wanted 2 \(bilinear\)"),
        (set_key("config.json", model_type="blip"), "got a blip model in .* wanted one of clip, siglip"),
        (set_key("config.json", auto_map={"AutoModel": "x.py"}), "runs code of its folder"),
        (drop("model.safetensors"), "a folder without weights"),
        (
            lambda folder: [(folder / n).unlink() for n in ("tokenizer.json", "tokenizer_config.json")],
            "--tokenizer DIR",
        ),
        (set_key("config.json", projection_dim=8), r"visual_projection.weight: got \[16, 32\], wanted \[8, 32\]"),
    ],
    ids=["statistics", "filter", "kind", "code", "weights", "tokenizer", "shapes"],
)
def test_folders_that_cannot_be_imported_say_why(change: Any, message: str, tmp_path: Path) -> None:
    transformers_folder("ChineseCLIP", tmp_path / "hub")
    change(tmp_path / "hub")
    with pytest.raises(CheckpointError, match=message):
        write_imported_run(describe_model(tmp_path / "hub"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_not_written(tmp_path: Path) -> None:
    open_clip_folder("vit", tmp_path / "hub")
    with pytest.raises(DataError, match="holds files already"):
        write_imported_run(describe_model(tmp_path / "hub"), tmp_path / "hub")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-SigLIP2"])
def test_real_sizes_are_at_par(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = open_clip.create_model(name, pretrained=None).eval()
    tokenizer(tmp_path)
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    ours = mmssl.load(tmp_path / "weights.pt", arch=name)
    x = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    ids = torch.randint(1, 9, (2, theirs.context_length), generator=torch.Generator().manual_seed(2))
    ids[:, 5] = 49407
    with torch.no_grad():
        prepared = ours.embedding.encoders["image"].prepare(x)  # type: ignore[operator]
        same(ours.embedding.embed("image", x), theirs.encode_image(prepared, normalize=True))
        same(ours.embedding.embed("text", ids), theirs.encode_text(ids, normalize=True))
    (scale,) = ours.logit_scales.values()
    same(torch.tensor(scale), theirs.logit_scale.exp().detach())
