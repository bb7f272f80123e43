"""Write a two-tower model as a folder of transformers' `CLIPModel` with its processor, and embed real inputs with it.

Packed queries, keys and values become three layers; both activations are written, because the library's default is another
(quick_gelu); special tokens have the library's names; pictures are resized by PIL, as in training.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

from mmssl.encoders.vit import VisionTransformerConfig
from mmssl.interop.clip_parts import ClipParts
from mmssl.interop.described import BICUBIC, BILINEAR

START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_WORDS = 49408
_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attention.out": "self_attn.out_proj",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}
_VISION = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "patch_embedding": "embeddings.patch_embedding",
    "norm_pre": "pre_layrnorm",
    "norm_post": "post_layernorm",
}
_TEXT = {
    "token_embedding": "embeddings.token_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "norm_final": "final_layer_norm",
}


def transformers_config(parts: ClipParts) -> dict[str, Any]:
    """Settings of `CLIPConfig`.

    Raises:
        ValueError: CLIPModel's towers lack a setting; names it.
    """
    image, text = parts.image_config, parts.text_config
    if not isinstance(image, VisionTransformerConfig):
        raise ValueError(
            "got a residual network, wanted encoders of kind vit and text_transformer, which CLIPModel has"
        )
    wrong = {
        f"{parts.image}: class_token": not image.class_token,
        f"{parts.image}: pool": image.pool != "cls",
        f"{parts.image}: pre_norm": not image.pre_norm,
        f"{parts.image}: layer_scale": image.layer_scale is not None,
        f"{parts.image}: mean": len(image.mean) != 3,
        f"{parts.text}: layer_scale": text.layer_scale is not None,
        f"{parts.text}: pool": text.pool != "eot",
        f"{parts.text}: causal": not text.causal,
        f"{parts.text}: vocab_size": text.vocab_size != CLIP_WORDS,
    }
    if found := [name for name, bad in wrong.items() if bad]:
        raise ValueError(
            f"encoders.{found[0]}: CLIPModel has another; wanted class_token: true, pool: cls, pre_norm: true, no layer_scale, "
            f"three channels, and a causal text tower with pool: eot and vocab_size: {CLIP_WORDS}"
        )
    size = len(parts.state["heads"]["text"])
    return {
        "projection_dim": size,
        "logit_scale_init_value": float(parts.state["logit_scale"]),
        "vision_config": {
            **_tower(image.width, image.depth, image.heads, image.mlp_ratio, image.activation, size),
            "image_size": image.size,
            "patch_size": image.patch_size,
        },
        "text_config": {
            **_tower(text.width, text.depth, text.heads, text.mlp_ratio, text.activation, size),
            "max_position_embeddings": text.context_length,
            "vocab_size": text.vocab_size,
            "bos_token_id": CLIP_WORDS - 2,
            "eos_token_id": CLIP_WORDS - 1,
            "pad_token_id": CLIP_WORDS - 1,
        },
    }


def _tower(width: int, depth: int, heads: int, ratio: float, activation: str, projection: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": int(width * ratio),
        "hidden_act": activation,
        "layer_norm_eps": 1e-5,
        "projection_dim": projection,
    }


def to_transformers(parts: ClipParts) -> dict[str, Tensor]:
    """Tensors by the names of `CLIPModel`."""
    state = parts.state
    return {
        "logit_scale": state["logit_scale"],
        "visual_projection.weight": state["heads"]["image"],
        "text_projection.weight": state["heads"]["text"],
        **_renamed("vision_model", state["image"], _VISION),
        **_renamed("text_model", state["text"], _TEXT),
    }


def _renamed(tower: str, state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            stem, _, end = rest.rpartition(".")
            place = f"{tower}.encoder.layers.{number}"
            if stem == "attention.qkv":
                for part, letter in zip(tensor.chunk(3), "qkv", strict=True):
                    made[f"{place}.self_attn.{letter}_proj.{end}"] = part
            else:
                made[f"{place}.{_BLOCK[stem]}.{end}"] = tensor
        elif name in names:
            made[f"{tower}.{names[name]}"] = tensor
        else:
            stem, _, end = name.rpartition(".")
            made[f"{tower}.{names[stem]}.{end}"] = tensor
    return made


def write_transformers(parts: ClipParts, folder: Path) -> None:
    """Write config, weights, tokenizer and image processor; `AutoModel` and `AutoProcessor` load them.

    Raises:
        ValueError: CLIPModel's towers lack a setting; names it.
    """
    if parts.state["logit_bias"] is not None:
        raise ValueError("got a model of the sigmoid loss, whose bias CLIPModel has not; export --to open_clip or onnx")
    model = CLIPModel(CLIPConfig(**transformers_config(parts)))
    tensors = {name: tensor.detach().clone() for name, tensor in to_transformers(parts).items()}
    model.load_state_dict(tensors)
    model.save_pretrained(folder)
    _processor(parts, folder).save_pretrained(folder)


def _processor(parts: ClipParts, folder: Path) -> Any:
    """CLIP's tokenizer and an image processor like our view "eval"."""
    size, image = parts.image_config.size, parts.image_config
    square = {"height": size, "width": size}
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": size} if parts.fit == "crop" else square,
        do_center_crop=parts.fit == "crop",
        resample=BICUBIC if parts.interpolation == "bicubic" else BILINEAR,
        crop_size=square,
        image_mean=list(image.mean),
        image_std=list(image.std),
    )
    vocabulary, merges = _vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    pairs: Any = [tuple(merge.split()) for merge in merges]
    make: Any = CLIPProcessor
    words = CLIPTokenizer(
        vocab=vocabulary, merges=pairs,
        unk_token=END, bos_token=START, eos_token=END, pad_token=END, model_max_length=parts.text_config.context_length,
    )  # fmt: skip
    return make(image_processor=pictures, tokenizer=words)


def _vocabulary() -> tuple[dict[str, int], list[str]]:
    """CLIP's words and merges, from the file that open_clip ships, with the special tokens as transformers names them."""
    path = Path(open_clip.tokenizer.default_bpe())
    merges = gzip.decompress(path.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    ids = {word: number for word, number in tokenizer.encoder.items() if number < CLIP_WORDS - 2}
    return ids | {START: CLIP_WORDS - 2, END: CLIP_WORDS - 1}, merges


@torch.no_grad()
def embed_transformers(
    parts: ClipParts, folder: Path, views: Mapping[str, Tensor], raw: Mapping[str, Sequence[bytes]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Unit-norm embeddings of a written folder: of our views, and of files through the library's own processor."""
    model: Any = CLIPModel.from_pretrained(folder, local_files_only=True)
    model.eval()
    processor = CLIPProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    encoder = parts.embedding.encoders[parts.image]
    pixels = encoder.prepare(views[parts.image])  # type: ignore[operator]
    # This library repairs neither HTML entities nor broken encodings, as our tokenizer does.
    given = processor(
        text=[open_clip.tokenizer.basic_clean(data.decode("utf-8-sig")) for data in raw[parts.text]],
        images=[Image.open(BytesIO(data)).convert("RGB") for data in raw[parts.image]],
        return_tensors="pt", padding=True, truncation=True,
    )  # fmt: skip
    ours = _features(model, pixels, {"input_ids": views[parts.text]})
    theirs = _features(model, given["pixel_values"], {k: given[k] for k in ("input_ids", "attention_mask")})
    names = (parts.image, parts.text)
    return dict(zip(names, ours, strict=True)), dict(zip(names, theirs, strict=True))


def _features(model: Any, pixels: Tensor, words: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    images = model.get_image_features(pixel_values=pixels)
    texts = model.get_text_features(**words)
    # A tensor in transformers 4, an output with `pooler_output` in transformers 5.
    both = [x if isinstance(x, Tensor) else x.pooler_output for x in (images, texts)]
    return F.normalize(both[0], dim=-1), F.normalize(both[1], dim=-1)
