"""Write a two-tower model as a folder that open_clip loads (`local-dir:`), and embed real inputs with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from mmssl.interop.clip_parts import ClipParts
from mmssl.interop.open_clip import open_clip_config, to_open_clip

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


def write_open_clip(parts: ClipParts, folder: Path) -> None:
    """Write `open_clip_config.json` and `open_clip_model.safetensors`.

    Raises:
        ValueError: open_clip's towers lack a setting; names it.
    """
    state = parts.state
    settings = open_clip_config(parts.image_config, parts.text_config, len(state["heads"]["text"]))
    if state["logit_bias"] is not None:
        settings["init_logit_bias"] = float(state["logit_bias"])
    pixels = {
        "mean": list(parts.image_config.mean),
        "std": list(parts.image_config.std),
        "interpolation": parts.interpolation,
        "resize_mode": "squash" if parts.fit == "squash" else "shortest",
    }
    save_file({name: tensor.contiguous() for name, tensor in to_open_clip(state).items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": pixels}, indent=2) + "\n")


@torch.no_grad()
def embed_open_clip(
    parts: ClipParts, folder: Path, views: Mapping[str, Tensor], raw: Mapping[str, Sequence[bytes]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Unit-norm embeddings of a written folder: of our views, and of files through open_clip's own preprocessing."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    encoder = parts.embedding.encoders[parts.image]
    pixels = encoder.prepare(views[parts.image])  # type: ignore[operator]
    pictures = torch.stack([preprocess(Image.open(BytesIO(data))) for data in raw[parts.image]])
    ids = tokenize([data.decode("utf-8-sig").strip() for data in raw[parts.text]])
    return (
        {
            parts.image: model.encode_image(pixels, normalize=True),
            parts.text: model.encode_text(views[parts.text], normalize=True),
        },
        {parts.image: model.encode_image(pictures, normalize=True), parts.text: model.encode_text(ids, normalize=True)},
    )
