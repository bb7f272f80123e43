"""Describe open_clip's models as parts of a recipe: our towers where they are equal, else towers of kind open_clip."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from mmssl.core.errors import CheckpointError, did_you_mean
from mmssl.encoders.adapters.hubs import HUB, local_copy
from mmssl.encoders.pixels import OPENAI_MEAN, OPENAI_STD
from mmssl.interop.described import (
    Described,
    PlainValues,
    has_tokenizer,
    hf_tokenizer,
    image_modality,
    pair_objective,
    read_json,
)
from mmssl.interop.open_clip import encoder_configs

CONFIG = "open_clip_config.json"


def named_model(name: str) -> PlainValues:
    """open_clip's settings of a model.

    Raises:
        CheckpointError: it has none of this name.
    """
    import open_clip

    known = name.replace("/", "-")
    if known not in open_clip.list_models():
        near = did_you_mean(name, open_clip.list_models())
        raise CheckpointError(f"got arch {name!r}, wanted the name of an open_clip model{near}, such as ViT-B-32")
    return dict(open_clip.get_model_config(known))


def usual_preprocessing(name: str) -> PlainValues:
    """Statistics and resizing of pictures on which all published weights of a model agree; empty if they do not."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    keys = "mean", "std", "interpolation", "resize_mode"
    known = name.replace("/", "-")
    found = [get_pretrained_cfg(known, tag) for tag in list_pretrained_tags_by_model(known)]
    agreed = [{key: settings.get(key) for key in keys} for settings in found]
    return agreed[0] if agreed and all(settings == agreed[0] for settings in agreed) else {}


def describe_open_clip(weights: Path, model: PlainValues, preprocess: PlainValues, tokenizer: Path | None) -> Described:
    """Describe a model.

    Args:
        weights: its file or folder.
        model, preprocess: `model_cfg` and `preprocess_cfg` of its open_clip_config.json.
        tokenizer: folder of its tokenizer; None: beside the weights, or in the cache of the hub.

    Raises:
        CheckpointError: a part that mmssl cannot build or find.
    """
    statistics: dict[str, Any] = {
        "mean": tuple(preprocess.get("mean") or OPENAI_MEAN),
        "std": tuple(preprocess.get("std") or OPENAI_STD),
    }
    try:
        image, text = encoder_configs(model, **statistics)
    except ValueError:  # settings that our towers lack
        both = {"kind": "open_clip", "model": model}
        encoders: dict[str, PlainValues] = {
            "image": both | {"tower": "image"} | {key: list(value) for key, value in statistics.items()},
            "text": both | {"tower": "text"} | _text_model(weights, model["text_cfg"], tokenizer),
        }
        identity: tuple[str, ...] = ("image", "text")
    else:
        encoders = {
            name: {"kind": config.kind, **config.model_dump(mode="json", exclude_defaults=True)}
            for name, config in (("image", image), ("text", text))
        }
        identity = ("image",) if image.kind == "resnet" else ()  # its attention pooling ends in the projection
    size, mode = model["vision_cfg"].get("image_size", 224), preprocess.get("resize_mode") or "shortest"
    if not isinstance(size, int) or mode not in ("shortest", "squash"):
        raise CheckpointError(
            f"{str(weights)!r}: got image_size {size} and resize_mode {mode}, wanted squares, not padded"
        )
    interpolation = preprocess.get("interpolation") or "bicubic"
    return Described(
        weights,
        {
            "image": image_modality(size, squash=mode == "squash", interpolation=interpolation),
            "text": {"kind": "text", "tokenizer": _tokenizer(weights, model["text_cfg"], tokenizer)},
        },
        encoders,
        pair_objective(weights, ("image", "text"), model["embed_dim"], identity),
    )


def _text_model(weights: Path, text: PlainValues, tokenizer: Path | None) -> PlainValues:
    """Settings of a text model of transformers; empty: the text transformer is open_clip's own.

    Raises:
        CheckpointError: its config.json is not found.
    """
    from open_clip.hf_configs import arch_dict

    name = text.get("hf_model_name")
    if not name:
        return {}
    beside = weights if weights.is_dir() else weights.parent
    places = [Path(name), beside / Path(name).name, *([tokenizer] if tokenizer is not None else []), beside]
    with suppress(CheckpointError):
        places.append(local_copy(Path(HUB + name)))
    for place in places:
        if (place / "config.json").is_file():
            settings = read_json(place / "config.json")
            if settings.get("model_type") in arch_dict:
                return {"text_config": settings}
    raise CheckpointError(
        f"{str(weights)!r}: the config.json of its text model {name!r} lies neither beside it nor in the cache; put it into "
        f"{str(beside / Path(name).name)!r}, or into the folder of --tokenizer"
    )


def _tokenizer(weights: Path, text: PlainValues, given: Path | None) -> PlainValues:
    settings, length = dict(text.get("tokenizer_kwargs") or {}), text.get("context_length", 77)
    name = text.get("hf_tokenizer_name")
    clean = settings.pop("clean", "whitespace" if name or given else "lower")
    settings = {key: value for key, value in settings.items() if value}
    if text.get("tokenizer_mode") or settings:
        raise CheckpointError(
            f"{str(weights)!r}: got a tokenizer with {sorted(settings) or 'tokenizer_mode'}, which mmssl lacks"
        )
    if given is not None:
        return hf_tokenizer(given, length, clean)
    if not name:
        return {"kind": "clip", "context_length": length}
    beside = weights if weights.is_dir() else weights.parent
    if has_tokenizer(beside):
        return hf_tokenizer(beside, length, clean)
    try:
        return hf_tokenizer(local_copy(Path(HUB + name)), length, clean)
    except CheckpointError as error:
        raise CheckpointError(
            f"{str(weights)!r} reads texts with the tokenizer {name!r}, which lies neither beside it nor in the cache; give its "
            "folder: --tokenizer DIR"
        ) from error
