"""`mmssl export`: write a trained image-text model as a folder that open_clip loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.outputs import local_path

if TYPE_CHECKING:
    from torch import Tensor

    from mmssl.interop.open_clip import ClipState
    from mmssl.recipe.model import Model

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


def export(
    checkpoint: Annotated[Path, typer.Argument(callback=local_path, help="A run folder or a checkpoint folder.")],
    out: Annotated[Path, typer.Option(metavar="DIR", callback=local_path, help="Folder to write; made if needed.")],
    which: Annotated[str, typer.Option(metavar="best|last", help="Which checkpoint of a run folder.")] = "best",
    ema: Annotated[bool, typer.Option(help="Use the EMA weights if the run kept them.")] = True,
) -> None:
    """Write the image and the text tower for open_clip: `open_clip.create_model_and_transforms("local-dir:DIR")` has the same
    embeddings. Other modalities of the model are left out.

    Example:

    `mmssl export runs/vit_b_32 --out vit_b_32_open_clip`
    """
    from safetensors.torch import save_file

    from mmssl.core.errors import DataError
    from mmssl.interop.open_clip import to_open_clip
    from mmssl.recipe.load import load
    from mmssl.training.runtime.console import say
    from pipelines.command import one_of

    if (out / CONFIG).exists():
        raise DataError(f"{out} holds a model already: choose another folder, or remove it")
    model = load(checkpoint, which=one_of("--which", which, ("best", "last")), ema=ema)
    config, state = open_clip_form(model, ema)
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in to_open_clip(state).items()}, out / WEIGHTS)
        (out / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    except OSError as error:
        raise DataError(f"cannot write {out}: {error}; choose another folder") from error
    say(f"{model.checkpoint} written for open_clip: local-dir:{out}")


def open_clip_form(model: Model, ema: bool) -> tuple[dict[str, Any], ClipState]:
    """Contents of `open_clip_config.json`, and the tensors.

    Raises:
        RecipeError: open_clip's CLIP cannot express the model; says which part.
    """
    from mmssl.core.errors import RecipeError
    from mmssl.encoders.text_transformer import TextTransformerConfig
    from mmssl.interop.open_clip import ClipState, ImageEncoderConfig, open_clip_config
    from mmssl.training.checkpoints.read import load_weights

    encoders, heads = model.recipe.encoders, model.embedding.heads
    images = {name: config for name in heads if isinstance(config := encoders[name], ImageEncoderConfig)}
    texts = {name: config for name in heads if isinstance(config := encoders[name], TextTransformerConfig)}
    if len(images) != 1 or len(texts) != 1:
        kinds = ", ".join(f"{name} ({encoders[name].kind})" for name in heads) or "none"
        raise RecipeError(
            f"open_clip's CLIP has one `vit` or `resnet` and one `text_transformer` in a shared space, and this model has {kinds}"
        )
    image, image_config = next(iter(images.items()))
    text, text_config = next(iter(texts.items()))
    if model.recipe.modalities[text].input_spec().tokenizer != "clip":
        raise RecipeError(f"modalities.{text}: open_clip reads texts with CLIP's tokenizer, and this model has another")
    assert model.checkpoint is not None  # a trained model has one
    tensors = load_weights(model.checkpoint, ema)
    bias = _of_pair(tensors, "logit_bias", image, text)
    projections = {"image": _projection(model, image), "text": _projection(model, text)}
    try:
        settings = open_clip_config(image_config, text_config, len(projections["text"]))
    except ValueError as error:
        raise RecipeError(f"this model cannot be exported: {error}") from error
    if bias is not None:
        settings["init_logit_bias"] = float(bias)
    scale = _of_pair(tensors, "logit_scale", image, text)
    if scale is None:
        raise RecipeError(f"this model has no temperature for {image} and {text}: the objective does not pair them")
    state = ClipState(
        image=_below(tensors, f"encoders.{image}."),
        text=_below(tensors, f"encoders.{text}."),
        heads=projections,
        logit_scale=scale,
        logit_bias=bias,
    )
    return {
        "model_cfg": settings,
        "preprocess_cfg": {"mean": list(image_config.mean), "std": list(image_config.std)},
    }, state


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _of_pair(tensors: dict[str, Tensor], kind: str, image: str, text: str) -> Tensor | None:
    """The pair's parameter or the shared one, at any depth of the objective."""
    ends = tuple(f".{kind}.{name}" for name in (f"{image}-{text}", f"{text}-{image}", "all"))
    return next((tensor.reshape(()) for name, tensor in tensors.items() if name.endswith(ends)), None)


def _projection(model: Model, name: str) -> Tensor:
    """[E, D] of a linear head; the identity where there is none."""
    import torch

    from mmssl.core.encoder import Encoder
    from mmssl.core.errors import RecipeError
    from mmssl.heads.projection import LinearProjection

    head, encoder = model.embedding.heads[name], model.embedding.encoders[name]
    if isinstance(head, LinearProjection):
        return head.linear.weight.detach()
    if isinstance(head, torch.nn.Identity) and isinstance(encoder, Encoder):
        return torch.eye(encoder.width)
    raise RecipeError(
        f"heads of {name}: open_clip's CLIP has linear projections, and this model has {type(head).__name__}"
    )
