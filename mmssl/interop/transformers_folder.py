"""Write two towers as a model folder of transformers with its processor, and embed real inputs with it.

Own towers become a `CLIPModel`; open_clip's SigLIP a `SiglipModel`; towers of transformers are saved back as they are, in the model
that they come from, or in a `CLIPModel` or `VisionTextDualEncoderModel` that puts their heads behind its own pooling.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers.models.auto import processing_auto
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from mmssl.encoders.adapters.transformers_audio import HfClapAudioConfig
from mmssl.encoders.adapters.transformers_loading import projected
from mmssl.interop.siglip import siglip_model
from mmssl.interop.towers import Inputs, Towers
from mmssl.interop.transformers_clip import clip_model
from mmssl.interop.transformers_processor import (
    cleaned,
    tokenizer_of,
    written_patches,
    written_pictures,
    written_sounds,
    written_tokenizer,
)

_UNMASKED = ("siglip", "siglip2")
"""Models whose attention reads the padding of texts."""
_LARGEST = 2
"""End-of-text id of the first CLIP configs of transformers, which was wrong in them and is not looked for."""


def write_transformers(towers: Towers, folder: Path) -> dict[str, str]:
    """Write config, weights and processor; `AutoModel` and `AutoProcessor` load them.

    Returns:
        What a user of the folder must know, by topic.

    Raises:
        ValueError: transformers has no model with such towers; names what it lacks.
    """
    make = _MODELS.get(towers.kinds())
    if make is None:
        first, text = towers.kinds()
        raise ValueError(
            f"got encoders {towers.first} ({first}) and {towers.text} ({text}), wanted one of "
            f"{', '.join(f'{a} with {b}' for a, b in _MODELS)}; export --to onnx or safetensors"
        )
    model = make(towers)
    if towers.logit_bias is not None and not hasattr(model, "logit_bias"):
        raise ValueError(
            f"got a model of the sigmoid loss, whose bias {type(model).__name__} has not; export --to open_clip or onnx"
        )
    for name, parameter in model.named_parameters():
        if name.startswith("logit_"):
            value = towers.logit_scale if name.startswith("logit_scale") else towers.logit_bias
            parameter.data.fill_(0.0 if value is None else float(value))
    kind = model.config.model_type
    model.eval().save_pretrained(folder)
    config = towers.configs[towers.first]
    if isinstance(config, HfClapAudioConfig):
        reader = written_sounds(config, towers.encoder(towers.first).fused, folder)
    else:
        reader = _pictures(towers)
    words = written_tokenizer(tokenizer_of(towers), folder, masked=kind not in _UNMASKED)
    names: Any = processing_auto.PROCESSOR_MAPPING_NAMES  # type: ignore[attr-defined]
    getattr(transformers, names[kind])(reader, words).save_pretrained(folder)
    length = words.model_max_length
    facts = {"model": type(model).__name__, "texts": f'padding="max_length", truncation=True, max_length={length}'}
    if isinstance(config, HfClapAudioConfig):
        facts["sounds"] = (
            f"{config.rate} Hz, one channel, cut to at most {reader.max_length_s} s: of longer ones the extractor takes random "
            "parts; set is_longer to False, which it sets at random"
        )
    elif isinstance(reader, Siglip2ImageProcessorPil):
        facts["pictures"] = (
            f"give the processor patch_size={reader.patch_size}, max_num_patches={reader.max_num_patches} (the class has sizes of "
            f"its own); it keeps their proportions, and the run read squares of {towers.picture_view().size} pixels: only of those "
            "are features the same"
        )
    return facts


def _pictures(towers: Towers) -> Any:
    """The image processor of a tower: SigLIP 2 for pictures of any shape has its own, which makes no squares of them."""
    view, encoder = towers.picture_view(), towers.encoder(towers.first)
    if _any_shape(encoder):
        return written_patches(encoder.pixels, view.size, encoder.patch_rows)
    return written_pictures(view, encoder.pixels, view.size)


def _any_shape(encoder: Any) -> bool:
    return getattr(encoder, "patch_rows", None) is not None


def _as_they_are(towers: Towers) -> Any:
    """The model of two towers of transformers."""
    pools = [getattr(towers.configs[name], "pool", "") for name in (towers.first, towers.text)]
    if pools == ["projection", "projection"]:
        return _original(towers)
    text = towers.encoder(towers.text).model.config.model_type
    if pools != ["pooler", "eos"] or text != "clip_text_model":
        raise ValueError(
            f"encoders: got pool: {pools[0]} of {towers.first} and pool: {pools[1]} of {towers.text}, a {text}; transformers' "
            "two-tower models take pool: projection of both, or pool: pooler with pool: eos of a clip_text_model; export --to "
            "open_clip or onnx"
        )
    return _with_heads(towers)


def _original(towers: Towers) -> Any:
    """The model that both towers, with their projections, come from."""
    first, text = (towers.encoder(name).model for name in (towers.first, towers.text))
    for name in (towers.first, towers.text):
        if not towers.ends_in_space(name):
            raise ValueError(
                f"heads of {name}: wanted kind: identity behind pool: projection, and this model has a second projection"
            )
    auto: Any = transformers.AutoModel
    model = auto.from_config(copy.deepcopy(text.config))
    state = {**first.state_dict(), **text.state_dict()}
    own = {name for name in model.state_dict() if not name.startswith("logit_")}
    if own != set(state):
        raise ValueError(
            f"encoders.{towers.first}: got a {first.config.model_type} tower beside a {text.config.model_type} tower, wanted both "
            "of one model"
        )
    _load(model, state)
    return model


def _with_heads(towers: Towers) -> Any:
    """A model with linear heads behind the pooled outputs of a vision and of a CLIP text model."""
    vision, text = (towers.encoder(name).model for name in (towers.first, towers.text))
    heads = {"visual_projection.weight": towers.first, "text_projection.weight": towers.text}
    weights = {name: towers.projection(modality) for name, modality in heads.items()}
    settings = [copy.deepcopy(tower.config) for tower in (vision, text)]
    size = len(weights["visual_projection.weight"])
    settings[1].eos_token_id = end = towers.encoder(towers.text).eos_id
    if end == _LARGEST:
        raise ValueError(
            f"encoders.{towers.text}.eos_id: got {end}, for which a clip_text_model takes the largest id of a text; use onnx"
        )
    if not hasattr(vision.config, "hidden_size"):
        raise ValueError(
            f"encoders.{towers.first}: a {vision.config.model_type} has no hidden_size, which the model needs"
        )
    if vision.config.model_type == "clip_vision_model":
        both = {name: one.to_dict() for name, one in zip(("vision_config", "text_config"), settings, strict=True)}
        model: Any = transformers.CLIPModel(transformers.CLIPConfig(**both, projection_dim=size))
    else:
        make: Any = transformers.VisionTextDualEncoderConfig.from_vision_text_configs
        model = transformers.VisionTextDualEncoderModel(make(*settings, projection_dim=size))
    for prefix, tower in (("vision_model.", vision), ("text_model.", text)):
        weights |= {prefix + name: tensor for name, tensor in tower.state_dict().items()}
    _load(model, weights)
    return model


def _load(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load all tensors but temperatures.

    Raises:
        ValueError: names or shapes differ.
    """
    beside = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("logit_")}
    try:
        model.load_state_dict({name: tensor.detach().clone() for name, tensor in state.items()} | beside)
    except RuntimeError as error:
        raise ValueError(f"the towers do not fit one {type(model).__name__}: {error}") from error


_MODELS: dict[tuple[str, str], Callable[[Towers], Any]] = {
    ("vit", "text_transformer"): clip_model,
    ("hf_vision", "hf_text"): _as_they_are,
    ("hf_clap_audio", "hf_text"): _as_they_are,
    ("open_clip", "open_clip"): siglip_model,
}
"""Kinds of the two encoders -> what makes their model."""


@torch.no_grad()
def embed_transformers(towers: Towers, folder: Path, given: Inputs) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Unit-norm embeddings of a written folder: of our views, and of files through the library's own processor.

    Sounds go into the extractor as they were decoded; of longer ones the middle, as the view "eval" takes it. Where even that is
    longer than the extractor's length, none go, because it would cut random parts.
    """
    auto: Any = transformers.AutoModel
    model = auto.from_pretrained(folder, local_files_only=True).eval()
    auto = transformers.AutoProcessor
    processor = auto.from_pretrained(folder, local_files_only=True, backend="pil")
    first, text = towers.first, towers.text
    encoder, reader = towers.encoder(first), towers.encoder(text)
    ids = given.views[text]
    mask = getattr(reader, "attention_mask", lambda ids: None)(ids)
    of_views = {text: projected(model.get_text_features(input_ids=ids, attention_mask=mask))}
    tokenizer = tokenizer_of(towers)
    words = [cleaned(tokenizer, data.decode("utf-8-sig").strip()) for data in given.raw[text]]
    tokens = processor.tokenizer(words, return_tensors="pt", padding="max_length", truncation=True)
    taken = {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
    of_files = {text: projected(model.get_text_features(**taken))}
    config = towers.configs[first]
    if isinstance(config, HfClapAudioConfig):
        if given.views[first].ndim != 3:
            raise ValueError(f"modalities.{first}.eval_windows: got several, and ClapModel hears one; set it to 1")
        of_views[first] = projected(model.get_audio_features(**encoder.inputs(given.views[first])))
        length = given.views[first].shape[2]
        if length <= encoder.front_end.samples:
            waves = [_middle(value.mean(0), length) for value in given.values[first]]
            made = processor.feature_extractor(waves, sampling_rate=config.rate, return_tensors="pt")["input_features"]
            # The extractor calls one sound of each batch longer, at random.
            none = torch.zeros(len(waves), 1, dtype=torch.bool)
            of_files[first] = projected(model.get_audio_features(input_features=made.float(), is_longer=none))
    else:
        views = given.views[first]
        inputs: dict[str, Tensor]
        pictures: Any
        if _any_shape(encoder):
            inputs, pictures = encoder.inputs(views), views  # squares, as the run reads them
        else:
            inputs, pictures = {"pixel_values": encoder.prepare(views)}, [_picture(data) for data in given.raw[first]]
        of_views[first] = projected(model.get_image_features(**inputs))
        of_files[first] = projected(
            model.get_image_features(**processor.image_processor(pictures, return_tensors="pt"))
        )
    of_views, of_files = ({name: F.normalize(x, dim=-1) for name, x in one.items()} for one in (of_views, of_files))
    return of_views, of_files


def _middle(wave: np.ndarray, length: int) -> np.ndarray:
    start = max(0, (len(wave) - length) // 2)
    return wave[start : start + length]


def _picture(data: bytes) -> Any:
    return Image.open(BytesIO(data)).convert("RGB")
