"""Describe transformers' two-tower models, and LAION-CLAP's checkpoints, as parts of a recipe."""

from __future__ import annotations

import re
from math import isqrt
from pathlib import Path
from typing import Any

from mmssl.core.errors import CheckpointError, os_words
from mmssl.encoders.adapters.hubs import HUB, local_copy
from mmssl.encoders.adapters.transformers_audio import HfClapAudioConfig
from mmssl.encoders.clap_front_end import ClapFrontEndConfig
from mmssl.encoders.norms import USUAL_EPS
from mmssl.encoders.weight_files import State
from mmssl.interop.described import (
    BICUBIC,
    BILINEAR,
    Described,
    PlainValues,
    has_tokenizer,
    hf_tokenizer,
    image_modality,
    pair_objective,
    read_json,
)

KINDS = ("clip", "siglip", "siglip2", "altclip", "chinese_clip", "clap")
"""`model_type` of models that can be described."""
USUAL_LENGTH = 77
"""Tokens of a text in the training of models whose tables of positions are longer."""
_ROBERTA = "FacebookAI/roberta-base", "roberta-base"
_DROPPED = ("transformers_version", "architectures", "torch_dtype", "dtype")


def describe_transformers(folder: Path, tokenizer: Path | None) -> Described:
    """Describe the model in a folder of transformers.

    Args:
        folder: with config.json, weights, and the settings of its preprocessing.
        tokenizer: folder of its tokenizer; None: the same.

    Raises:
        CheckpointError: a model of another kind, or a missing file.
    """
    settings = _public(read_json(folder / "config.json"))
    if "auto_map" in settings:
        raise CheckpointError(
            f"{str(folder)!r} runs code of its folder (auto_map), which is refused; choose another model"
        )
    kind = settings.get("model_type")
    if kind not in KINDS:
        raise CheckpointError(
            f"got a {kind} model in {str(folder)!r}, wanted one of {', '.join(KINDS)}; use single towers by encoders of kind "
            "hf_text, hf_vision, hf_ast"
        )
    if tokenizer is None and not has_tokenizer(folder):
        raise CheckpointError(
            f"{str(folder)!r} has no tokenizer (tokenizer.json, ...); give its folder: --tokenizer DIR"
        )
    tokens = tokenizer or folder
    full = _complete(settings)
    if kind == "clap":
        front_end = HfClapAudioConfig(path=folder).spectrogram(fused=full.audio_config.enable_fusion)
        return _clap(folder, settings, full, front_end, tokens)
    text, pictures = full.text_config, _pictures(folder)
    size = int(
        getattr(full.vision_config, "image_size", 0)
        or isqrt(full.vision_config.num_patches) * full.vision_config.patch_size
    )
    found, notes = _image(pictures, size, folder)
    statistics = {"mean": list(pictures["image_mean"]), "std": list(pictures["image_std"])}
    length = text.max_position_embeddings if kind.startswith(("clip", "siglip")) else USUAL_LENGTH
    modalities = {"image": found, "text": {"kind": "text", "tokenizer": hf_tokenizer(tokens, length)}}
    if kind == "clip" and (own := _own_towers(full, statistics)) is not None:
        if _is_clips(tokens):
            modalities["text"] = {"kind": "text", "tokenizer": {"kind": "clip", "context_length": length}}
        objective = pair_objective(folder, ("image", "text"), full.projection_dim, ())
        return Described(folder, modalities, own, objective, notes)
    encoders: dict[str, PlainValues] = {
        "image": {"kind": "hf_vision", "config": settings, "pool": "projection", **statistics},
        "text": {"kind": "hf_text", "config": settings, "pool": "projection", "pad_id": _pad_id(tokens)},
    }
    width = full.vision_config.hidden_size if kind.startswith("siglip") else full.projection_dim
    return Described(
        folder, modalities, encoders, pair_objective(folder, ("image", "text"), width, ("image", "text")), notes
    )


def describe_laion_clap(file: Path, state: State, tokenizer: Path | None) -> Described:
    """Describe a checkpoint of LAION-CLAP with an HTSAT and a RoBERTa tower; the settings follow from the shapes.

    Raises:
        CheckpointError: other towers, or no tokenizer.
    """
    audio, text = "audio_branch.", "text_branch."
    depths = _count(state, rf"{audio}layers\.(\d+)\.blocks\.(\d+)\.")
    layers = _count(state, rf"{text}encoder\.layer\.(\d+)\.()")
    if not depths or not layers or f"{audio}patch_embed.proj.weight" not in state:
        raise CheckpointError(
            f"{str(file)!r} is no CLAP with an HTSAT and a RoBERTa tower, which mmssl has for these files"
        )
    width = state[f"{audio}patch_embed.proj.weight"].shape[0]
    tables = [state[f"{audio}layers.{n}.blocks.0.attn.relative_position_bias_table"] for n in range(len(depths))]
    fused = f"{audio}patch_embed.mel_conv2d.weight" in state
    words = state[f"{text}embeddings.word_embeddings.weight"]
    hidden, projection = width * 2 ** (len(depths) - 1), state["audio_projection.2.weight"].shape[0]
    settings: PlainValues = {
        "model_type": "clap",
        "projection_dim": projection,
        "hidden_size": words.shape[1],
        "text_config": {
            "vocab_size": words.shape[0],
            "hidden_size": words.shape[1],
            "num_hidden_layers": len(layers),
            "num_attention_heads": max(1, words.shape[1] // 64),
            "intermediate_size": state[f"{text}encoder.layer.0.intermediate.dense.weight"].shape[0],
            "max_position_embeddings": state[f"{text}embeddings.position_embeddings.weight"].shape[0],
            "projection_dim": projection,
        },
        "audio_config": {
            "patch_embeds_hidden_size": width,
            "hidden_size": hidden,
            "depths": [depths[n] for n in sorted(depths)],
            "num_hidden_layers": len(depths),
            "num_attention_heads": [table.shape[1] for table in tables],
            "window_size": (isqrt(tables[0].shape[0]) + 1) // 2,
            "enable_fusion": fused,
            "enable_patch_fusion": fused,
            "fusion_type": "aff_2d" if fused else None,
            "enable_patch_layer_norm": f"{audio}patch_embed.norm.weight" in state,
            "projection_dim": projection,
        },
    }
    front_end = ClapFrontEndConfig(kind="clap_htsat_fused" if fused else "clap_htsat_unfused")
    return _clap(file, settings, _complete(settings), front_end, tokenizer or _roberta(file))


def _clap(weights: Path, settings: PlainValues, full: Any, front_end: ClapFrontEndConfig, tokens: Path) -> Described:
    sound: PlainValues = {
        "kind": "audio",
        "rate": front_end.settings.rate,
        "seconds": front_end.seconds,
        "channels": "mono",
    }
    return Described(
        weights,
        {
            "audio": sound | {"views": {"crop": {"kind": "random_window"}}},
            "text": {"kind": "text", "tokenizer": hf_tokenizer(tokens, USUAL_LENGTH)},
        },
        {
            "audio": {
                "kind": "hf_clap_audio",
                "config": settings,
                "pool": "projection",
                "seconds": front_end.seconds,
                "front_end": {"kind": front_end.kind, **front_end.model_dump(mode="json", exclude_defaults=True)},
            },
            "text": {"kind": "hf_text", "config": settings, "pool": "projection", "pad_id": _pad_id(tokens)},
        },
        pair_objective(weights, ("audio", "text"), full.projection_dim, ("audio", "text")),
        (f"texts are cut after {USUAL_LENGTH} tokens, as in training (modalities.text.tokenizer.context_length)",),
    )


def _public(settings: PlainValues) -> PlainValues:
    """Settings of the model alone, at every depth: private ones may name code."""
    return {
        key: _public(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if key not in _DROPPED and not key.startswith("_")
    }


def _complete(settings: PlainValues) -> Any:
    """transformers' config object, with its defaults."""
    from transformers import AutoConfig

    return AutoConfig.for_model(settings["model_type"], **{k: v for k, v in settings.items() if k != "model_type"})


def _own_towers(full: Any, statistics: PlainValues) -> dict[str, PlainValues] | None:
    """A CLIPModel as our towers; None: it has what they lack."""
    vision, text = full.vision_config, full.text_config
    # transformers takes the largest id where the config has 2, as its first version did.
    ends_texts = text.eos_token_id in (2, text.vocab_size - 1)
    plain = all(tower.hidden_act in ("gelu", "quick_gelu") for tower in (vision, text))
    if not (ends_texts and plain and isinstance(vision.image_size, int) and vision.num_channels == 3):
        return None

    def common(tower: Any) -> PlainValues:
        return {
            "width": tower.hidden_size,
            "depth": tower.num_hidden_layers,
            "heads": tower.num_attention_heads,
            "mlp_ratio": tower.intermediate_size / tower.hidden_size,
            "activation": tower.hidden_act,
            **({} if tower.layer_norm_eps == USUAL_EPS else {"norm_eps": tower.layer_norm_eps}),
        }

    image = {"kind": "vit", "size": vision.image_size, "patch_size": vision.patch_size, **common(vision), **statistics}
    sizes = {"vocab_size": text.vocab_size, "context_length": text.max_position_embeddings}
    return {"image": image, "text": {"kind": "text_transformer", **sizes, **common(text)}}


def _pictures(folder: Path) -> PlainValues:
    """Settings of the image processor of a folder."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            values = read_json(folder / name)
            inner = values.get("image_processor")
            values = inner if isinstance(inner, dict) else values
            if "image_mean" in values and "image_std" in values:
                return values
    raise CheckpointError(
        f"{str(folder)!r} has no preprocessor_config.json with image_mean and image_std: copy the one of the model"
    )


def _image(values: PlainValues, size: int, folder: Path) -> tuple[PlainValues, tuple[str, ...]]:
    filters = {BICUBIC: "bicubic", BILINEAR: "bilinear"}
    resample = values.get("resample", BICUBIC)
    if resample not in filters:
        raise CheckpointError(
            f"{str(folder)!r}: got resample {resample}, wanted {BILINEAR} (bilinear) or {BICUBIC} (bicubic)"
        )
    wanted = values.get("size")
    crops = isinstance(wanted, int) or (isinstance(wanted, dict) and "shortest_edge" in wanted)
    shortest = wanted if isinstance(wanted, int) else (wanted or {}).get("shortest_edge", size)
    notes: tuple[str, ...] = ()
    if crops and shortest != size:
        notes = (f"pictures are resized to {size} pixels and not to {shortest} before the centre crop",)
    return image_modality(size, squash=not crops, interpolation=filters[resample]), notes


def _tokenizer_in(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{str(folder)!r} holds no tokenizer that transformers can load: {os_words(error)}"
        ) from error


def _pad_id(folder: Path) -> int:
    found = _tokenizer_in(folder).pad_token_id
    if found is None:
        raise CheckpointError(
            f"the tokenizer in {str(folder)!r} has no padding token: set one (`pad_token`) and save it again"
        )
    return int(found)


def _is_clips(folder: Path) -> bool:
    """Whether the tokenizer has the vocabulary of CLIP's, whose special tokens have other names in open_clip."""
    from open_clip.tokenizer import SimpleTokenizer

    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    own = {names.get(token, token): number for token, number in SimpleTokenizer().encoder.items()}
    return bool(_tokenizer_in(folder).get_vocab() == own)


def _roberta(file: Path) -> Path:
    for name in _ROBERTA:
        try:
            return local_copy(Path(HUB + name))
        except CheckpointError:
            continue
    raise CheckpointError(
        f"{str(file)!r} reads texts with the tokenizer {_ROBERTA[0]!r}, which is not in the cache; give its folder: --tokenizer DIR"
    )


def _count(state: State, pattern: str) -> dict[int, int]:
    """Number of the first group -> how many numbers of the second group it has."""
    found = {match.groups() for name in state if (match := re.match(pattern, name))}
    return {int(first): sum(other == first for other, _ in found) for first, _ in found}
