"""Write two towers as a folder that open_clip loads (`local-dir:`), and embed real inputs with it."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.hf_configs import arch_dict
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from mmssl.data.modalities.tokenizers import HfTokenizer
from mmssl.encoders.adapters.open_clip import OpenClipConfig, model_settings
from mmssl.interop.clip_parts import clip_parts
from mmssl.interop.described import PlainValues
from mmssl.interop.open_clip import (
    ImageEncoderConfig,
    State,
    open_clip_config,
    to_open_clip,
    vision_settings,
    visual_to_open_clip,
)
from mmssl.interop.towers import Inputs, Towers
from mmssl.interop.transformers_processor import tokenizer_of, written_tokenizer

CONFIG, WEIGHTS, TEXT_MODEL = "open_clip_config.json", "open_clip_model.safetensors", "text"
_POOLERS = {"mean": "mean_pooler", "cls": "cls_last_hidden_state_pooler"}


def write_open_clip(towers: Towers, folder: Path, home: Path) -> dict[str, str]:
    """Write `open_clip_config.json` and `open_clip_model.safetensors`; and what a text model of transformers needs.

    Args:
        towers: to write.
        folder: gets the files.
        home: where the folder will stand in the end, which its settings name as the place of a text model of transformers.

    Returns:
        What a user of the folder must know, by topic.

    Raises:
        ValueError: open_clip's towers lack a setting; names it.
    """
    kinds = towers.kinds()
    if kinds == ("open_clip", "open_clip"):
        settings, state = _as_they_are(towers, folder, home)
    elif kinds[1] == "hf_text":
        settings, state = _with_text_model(towers, folder, home)
    else:
        parts = clip_parts(towers)
        settings = open_clip_config(parts.image_config, parts.text_config, len(parts.state["heads"]["text"]))
        state = to_open_clip(parts.state)
    if towers.logit_bias is not None:
        settings["init_logit_bias"] = float(towers.logit_bias)
        state["logit_bias"] = towers.logit_bias
    state["logit_scale"] = towers.logit_scale
    tokenizer = tokenizer_of(towers)
    text = settings["text_cfg"] = dict(settings["text_cfg"])
    for key in ("hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode"):
        text.pop(key, None)
    if isinstance(tokenizer, HfTokenizer):
        written_tokenizer(tokenizer, folder, masked=True).save_pretrained(folder)
        text["hf_tokenizer_name"] = "."  # open_clip reads the tokenizer beside the settings, whatever stands here
        text["tokenizer_kwargs"] = {"clean": tokenizer.clean or "whitespace"}
    if "hf_model_name" in text:
        text["context_length"] = tokenizer.context_length
    view, pixels = towers.picture_view(), _statistics(towers)
    preprocess = {
        **pixels,
        "interpolation": view.interpolation,
        "resize_mode": "squash" if view.fit == "squash" else "shortest",
    }
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in state.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": preprocess}, indent=2) + "\n")
    moved = f"model_cfg.text_cfg.hf_model_name in {CONFIG} names this folder: change it when you move it"
    return {"place": moved} if "hf_model_name" in text else {}


def _statistics(towers: Towers) -> PlainValues:
    config = towers.configs[towers.first]
    if isinstance(config, ImageEncoderConfig):
        return {"mean": list(config.mean), "std": list(config.std)}
    pixels = towers.encoder(towers.first).pixels
    return {name: [float(f"{x:.8g}") for x in getattr(pixels, name).flatten().tolist()] for name in ("mean", "std")}


def _as_they_are(towers: Towers, folder: Path, home: Path) -> tuple[PlainValues, State]:
    """Settings and tensors of two towers of open_clip."""
    image, text = (towers.configs[name] for name in (towers.first, towers.text))
    assert isinstance(image, OpenClipConfig)
    assert isinstance(text, OpenClipConfig)
    settings, other = model_settings(image.model), model_settings(text.model)
    if "multimodal_cfg" in settings:
        raise ValueError(
            f"encoders.{towers.first}.model: got a CoCa, whose decoder this run does not have; export --to onnx"
        )
    for name in (towers.first, towers.text):
        if not towers.ends_in_space(name):
            raise ValueError(
                f"heads of {name}: wanted kind: identity behind a tower of open_clip, which ends in a projection"
            )
    settings |= {"text_cfg": other["text_cfg"], "custom_text": True}
    if settings.get("quick_gelu", False) != other.get("quick_gelu", False):
        raise ValueError(
            "encoders: got towers of open_clip of which one has quick_gelu, wanted the same activation in both"
        )
    state = {f"visual.{name}": x for name, x in towers.encoder(towers.first).model.state_dict().items()}
    model = towers.encoder(towers.text).model
    if text.text_config is not None:
        settings["text_cfg"]["hf_model_name"] = _write_text_model(model.config, folder, home)
    return settings, state | {f"text.{name}": x for name, x in model.state_dict().items()}


def _with_text_model(towers: Towers, folder: Path, home: Path) -> tuple[PlainValues, State]:
    """Settings and tensors of a picture tower beside a text model of transformers with a linear head."""
    encoder, pool = towers.encoder(towers.text), towers.encoder(towers.text).pool
    config, kind = encoder.model.config, encoder.model.config.model_type
    if pool not in _POOLERS or kind not in arch_dict:
        raise ValueError(
            f"encoders.{towers.text}: got a {kind} with pool: {pool}, wanted one of {', '.join(arch_dict)} with pool: "
            f"{' or '.join(_POOLERS)}, which open_clip has; export --to transformers or onnx"
        )
    head = towers.projection(towers.text)
    image = towers.configs[towers.first]
    if isinstance(image, ImageEncoderConfig):
        quick = getattr(image, "activation", "gelu") == "quick_gelu"
        settings: PlainValues = {"embed_dim": len(head), "quick_gelu": quick, "vision_cfg": vision_settings(image)}
        state = visual_to_open_clip(towers.encoder(towers.first).state_dict(), towers.projection(towers.first))
    elif isinstance(image, OpenClipConfig) and towers.ends_in_space(towers.first):
        settings = model_settings(image.model)
        state = {f"visual.{name}": x for name, x in towers.encoder(towers.first).model.state_dict().items()}
    else:
        raise ValueError(
            f"encoders.{towers.first}: got {towers.kinds()[0]}, wanted vit, resnet, or open_clip without a further head, which "
            "open_clip has; export --to onnx or safetensors"
        )
    config.pad_token_id = encoder.pad_id
    settings["text_cfg"] = {
        "hf_model_name": _write_text_model(config, folder, home),
        "hf_model_pretrained": False,
        "hf_proj_type": "linear",
        "hf_pooler_type": _POOLERS[pool],
    }
    state["text.proj.weight"] = head
    words = encoder.model.state_dict().items()
    state |= {f"text.transformer.{name}": x for name, x in words if not name.startswith("pooler.")}
    return settings, state


def _write_text_model(config: Any, folder: Path, home: Path) -> str:
    """Write config.json of a text model; returns its folder's place in the end."""
    config.save_pretrained(folder / TEXT_MODEL)
    return str(home.absolute() / TEXT_MODEL)


@torch.no_grad()
def embed_open_clip(towers: Towers, folder: Path, given: Inputs) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Unit-norm embeddings of a written folder: of our views, and of files through open_clip's own preprocessing."""
    words = json.loads((folder / CONFIG).read_text("utf-8"))["model_cfg"]["text_cfg"]
    place = {"hf_model_name": str(folder / TEXT_MODEL), "hf_model_pretrained": False}
    here = {"text_cfg": words | place} if "hf_model_name" in words else {}
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}", **here)
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    first, text = towers.first, towers.text
    pixels = towers.encoder(first).prepare(given.views[first])
    pictures = torch.stack([preprocess(Image.open(BytesIO(data))) for data in given.raw[first]])
    ids = tokenize([data.decode("utf-8-sig").strip() for data in given.raw[text]])
    return (
        {
            first: model.encode_image(pixels, normalize=True),
            text: model.encode_text(given.views[text], normalize=True),
        },
        {first: model.encode_image(pictures, normalize=True), text: model.encode_text(ids, normalize=True)},
    )
