"""Describe ImageBind's checkpoint (arXiv:2305.05665) as parts of a recipe: its towers of pictures and of texts are our own."""

from __future__ import annotations

from math import isqrt
from pathlib import Path

from mmssl.core.errors import CheckpointError
from mmssl.encoders.adapters.imagebind_names import EXTRA, TRUNKS, imagebind_to_open_clip
from mmssl.encoders.weight_files import State
from mmssl.interop.described import Described, PlainValues, image_modality, pair_objective

HEADS = 16
"""Attention heads of both towers of the published model, which no tensor says."""
EPS = 1e-6


def describe_imagebind(file: Path, state: State) -> Described:
    """Describe ImageBind's towers of pictures and of texts; the settings follow from the shapes.

    The others are left out: their attention has a learned key and value (`bias_k`, `bias_v`), which our towers lack.

    Raises:
        CheckpointError: a tensor is missing.
    """
    found = {name: tensor for name, (tensor, _) in imagebind_to_open_clip(state).items()}
    try:
        patches, positions = found["visual.conv1.weight"], found["visual.positional_embedding"]
        words, places = found["token_embedding.weight"], found["positional_embedding"]
        embedding = found["visual.proj"].shape[1]
        ratios = [found[f"{root}transformer.resblocks.0.mlp.c_fc.weight"] for root in ("visual.", "")]
    except KeyError as error:
        raise CheckpointError(
            f"{str(file)!r} has no tensor for {error.args[0]}, wanted ImageBind's towers vision and text"
        ) from error
    size = isqrt(len(positions) - 1) * patches.shape[-1]
    image, text = (
        {
            "width": up.shape[1],
            "depth": len(
                {name for name in found if name.startswith(f"{root}transformer.") and name.endswith("c_fc.weight")}
            ),
            "heads": HEADS,
            "mlp_ratio": up.shape[0] / up.shape[1],
            "norm_eps": EPS,
        }
        for root, up in zip(("visual.", ""), ratios, strict=True)
    )
    encoders: dict[str, PlainValues] = {
        "image": {"kind": "vit", "size": size, "patch_size": patches.shape[-1], **image},
        "text": {"kind": "text_transformer", "vocab_size": len(words), "context_length": len(places), **text},
    }
    others = sorted(
        {name.removeprefix(TRUNKS).split(".")[0] for name in state if name.startswith(TRUNKS) and name.endswith(EXTRA)}
    )
    left = f"left out are {', '.join(others)}: their attention has bias_k and bias_v, a learned key and value, which ours lack"
    return Described(
        file,
        {
            "image": image_modality(size, squash=False, interpolation="bicubic"),
            "text": {"kind": "text", "tokenizer": {"kind": "clip", "context_length": len(places)}},
        },
        encoders,
        pair_objective(file, ("image", "text"), embedding, ()),
        (left,) if others else (),
    )
