"""LoRA of any encoder through peft: low-rank adapters beside frozen layers, and their merge into plain weights."""

from __future__ import annotations

import re

from pydantic import Field
from torch import nn

from mmssl.core.config import Config
from mmssl.core.encoder import Encoder

INSTALL = "LoRA needs peft: install it with `pip install mmssl[peft]`"


class LoraConfig(Config):
    """LoRA (Hu et al. 2021, arXiv:2106.09685): a trained update of low rank beside frozen layers of an encoder.

    Attributes:
        rank: of the update of each layer.
        alpha: factor of the update, over the rank; null: twice the rank.
        targets: ends of the names of layers that get an update, such as [qkv, out] in our transformers or [q_proj, v_proj] in those
            of transformers; null: every linear layer that is not inside `nn.MultiheadAttention`.
        dropout: dropout probability of the inputs of an update.
        dora: learn the norm of each layer's outputs apart (DoRA, Liu et al. 2024, arXiv:2402.09353).
    """

    rank: int = Field(default=8, ge=1)
    alpha: float | None = Field(default=None, gt=0)
    targets: tuple[str, ...] | None = Field(default=None, min_length=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    dora: bool = False


def add_lora(encoder: Encoder, config: LoraConfig) -> None:
    """Freeze an encoder and add trainable adapters to its target layers, in place; they change no output yet.

    Raises:
        ValueError: peft is not installed, or a target fits no layer; says which layers there are.
    """
    try:
        import peft
    except ImportError as error:
        raise ValueError(INSTALL) from error
    names = target_layers(encoder, config.targets)
    encoder.requires_grad_(False)
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha if config.alpha is not None else 2 * config.rank,  # type: ignore[arg-type]
        target_modules="|".join(map(re.escape, names)),
        lora_dropout=config.dropout,
        use_dora=config.dora,
    )
    peft.inject_adapter_in_model(settings, encoder)


def merge_lora(module: nn.Module) -> None:
    """Add the updates of all adapters to the weights of their layers, in place, and remove them: names are the plain ones again."""
    adapted = [(name, layer) for name, layer in module.named_modules() if hasattr(layer, "lora_A")]
    for name, layer in adapted:
        layer.merge(safe_merge=True)
        module.set_submodule(name, layer.get_base_layer())


def target_layers(encoder: nn.Module, targets: tuple[str, ...] | None) -> list[str]:
    """Names of the layers that get an adapter: linear, trainable, and called as modules.

    Raises:
        ValueError: a target fits none.
    """
    inside = [f"{name}." for name, module in encoder.named_modules() if isinstance(module, nn.MultiheadAttention)]
    linear = [
        name
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear) and module.weight.requires_grad and not name.startswith(tuple(inside))
    ]
    found = linear if targets is None else [n for n in linear if any(f".{n}".endswith(f".{t}") for t in targets)]
    unused = [target for target in targets or () if not any(f".{name}".endswith(f".{target}") for name in found)]
    if unused or not found:
        ends = sorted({name.rpartition(".")[2] for name in linear})
        raise ValueError(
            f"targets: got {unused or 'none'}, which fit no linear layer; wanted ends of names such as {', '.join(ends) or 'none'}"
        )
    return found
