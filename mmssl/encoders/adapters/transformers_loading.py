"""Load transformers models from a local folder, or build them from scratch: no downloads, and no code of a folder is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from mmssl.core.config import LocalPath
from mmssl.core.encoder import Encoder, EncoderConfig
from mmssl.core.errors import CheckpointError, did_you_mean, os_words
from mmssl.core.start import Start
from mmssl.encoders.adapters.adapter import Adapter, refuse_checkpointing
from mmssl.encoders.adapters.transformers_names import to_transformers_names
from mmssl.encoders.weight_files import State
from mmssl.encoders.weights import load_and_freeze


class HfConfig(EncoderConfig):
    """Settings of every transformers model. Nothing is downloaded and no code of a model folder is run.

    Attributes:
        path: folder of a pretrained model, with config.json and safetensors. Of a model with two towers (CLIP, SigLIP, CLAP, ...)
            or with encoder and decoder (T5, ...) the matching part is loaded.
        config: settings of a model from scratch, as in a config.json with its "model_type", or the path of such a file.
        checkpointing: recompute blocks in backward: less memory, a third more work.
    """

    path: LocalPath | None = None
    config: dict[str, Any] | LocalPath | None = None
    checkpointing: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.config is None):
            raise ValueError(
                "wanted exactly one of path (folder of a pretrained model) and config (a model from scratch)"
            )
        return self

    @property
    def pretrained(self) -> bool:
        """Whether weights come from a folder."""
        return self.path is not None or super().pretrained


# Parts of models with two towers: tower, its projection and what belongs to neither.
_TOWERS = {"text_model": "text_projection", "vision_model": "visual_projection", "audio_model": "audio_projection"}
_BESIDE = ("logit_scale", "logit_scale_a", "logit_scale_t", "logit_bias")
# Constants that some versions of transformers save.
FIXED = ("position_ids", "token_type_ids", "relative_position_index")


def build_model(
    config: HfConfig, part: str = "", *, projected: bool = False, settings: Any = None, model_class: Any = None
) -> tuple[Any, set[int]]:
    """Build the model; returns it and the `id`s of its parameters and buffers that the folder has no weights for.

    Args:
        config: folder or settings.
        part: name of the tower to take from a model with several.
        projected: take the tower together with its projection: the whole model without its other towers.
        settings: transformers' config of the model; None: from `config`.
        model_class: class of the model; None: the one in its config.

    Raises:
        ValueError: the settings are not such a model's, or name code to run.
        CheckpointError: the folder does not match the settings.
    """
    import transformers

    settings = settings or read_settings(config)
    auto: Any = transformers.AutoModel
    missing: set[int] = set()
    if config.path is None:
        model = (
            model_class(settings)
            if model_class
            else auto.from_config(settings, dtype=torch.float32, trust_remote_code=False)
        )
    else:
        try:
            model, info = (model_class or auto).from_pretrained(
                config.path,
                config=settings,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"cannot load the model in {str(config.path)!r}: {os_words(error)}") from error
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        missing = {id(tensors[name]) for name in info["missing_keys"] if name in tensors}
    model = _without_others(model, part) if projected else _part(model, part)
    if config.checkpointing:
        refuse_checkpointing(model, settings.model_type)
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model, missing


def read_settings(config: HfConfig) -> Any:
    """Read transformers' config of the model.

    Raises:
        ValueError: transformers has no such model, or it needs code of the folder.
        CheckpointError: there is no config.json.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    if isinstance(config.config, dict):
        values, where = dict(config.config), "config"
    else:
        file = config.config or Path(config.path or "") / "config.json"
        where = str(file)
        try:
            values = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {where!r}: {os_words(error)}; wanted a model's config.json") from error
    if "auto_map" in values:
        raise ValueError(
            f"{where} has auto_map: this model runs code from its folder, which is refused; choose another model"
        )
    kind = values.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        near = did_you_mean(str(kind), CONFIG_MAPPING.keys())
        raise ValueError(f"got model_type {kind!r} in {where}, wanted one of transformers{near}")
    return AutoConfig.for_model(kind, **values)


def load_tower(encoder: Adapter, config: HfConfig, words: nn.Embedding | None = None) -> None:
    """Load our `weights` over the folder's, from transformers' files or LAION-CLAP's, and freeze; see `load_and_freeze`.

    Args:
        words: embeddings of token ids, to which tokens may have been added.
    """
    others = tuple(
        f"{name}."
        for pair in _TOWERS.items()
        if not {*pair} & {name for name, _ in encoder.model.named_children()}
        for name in pair
    )
    table = next((name for name, part in encoder.model.named_modules() if part is words), "")
    size = 0 if words is None else words.num_embeddings
    load_and_freeze(
        encoder,
        config,
        module=encoder.model,
        translate=to_transformers_names,
        ignore=(*others, *_BESIDE),
        fixed=FIXED,
        adapt=lambda state: _fit_vocabulary(state, f"{table}.weight", size),
    )


def _fit_vocabulary(state: State, name: str, size: int) -> None:
    """Append a row for each token that the file lacks, in place: the mean of the others, as transformers does."""
    if name in state and (new := size - len(state[name])) > 0:
        rows = state[name]
        state[name] = torch.cat([rows, rows.float().mean(0, keepdim=True).to(rows.dtype).expand(new, -1)])


def projected(output: Any) -> Tensor:
    """The projected vectors [B, E] of `get_text_features` and its kin, as any version of transformers returns them."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _without_others(model: Any, part: str) -> Any:
    """The model without its other towers, their projections and temperatures; `get_text_features` and its kin still work."""
    children = {name for name, _ in model.named_children()}
    if part not in children or not hasattr(model, "get_text_features"):
        raise ValueError(
            f"got pool: projection for a {model.config.model_type} model, wanted one with two towers, such as clip or siglip; "
            "choose another pool"
        )
    for tower, projection in _TOWERS.items():
        for name in (tower, projection):
            if name in children and tower != part:
                delattr(model, name)
    for name in _BESIDE:
        model.register_parameter(name, None)
    return model


def _part(model: Any, part: str) -> Any:
    if model.config.is_encoder_decoder:
        return model.get_encoder()
    if len(model.config.sub_configs) > 1:
        towers = dict(model.named_children())
        if part not in towers:
            raise ValueError(f"got a {model.config.model_type} model of {sorted(towers)}, wanted one with a {part}")
        return towers[part]
    return model


def require_complete(encoder: Encoder, missing: set[int], config: HfConfig) -> None:
    """Refuse a folder without weights for a trainable parameter; `connect` has frozen those that do not reach the output.

    Notes in the encoder what was loaded.

    Raises:
        CheckpointError: says which are missing.
    """
    tensors = [*((n, p) for n, p in encoder.named_parameters() if p.requires_grad), *encoder.named_buffers()]
    names = [name for name, tensor in tensors if id(tensor) in missing]
    if names:
        raise CheckpointError(
            f"the folder {str(config.path)!r} has no weights for {len(names)} tensors of this encoder, among them {names[:5]}; "
            "choose another pool, or another folder"
        )
    if config.path is not None:
        exact = (name for name, tensor in encoder.state_dict(keep_vars=True).items() if id(tensor) not in missing)
        encoder.start = Start(str(config.path), tuple(exact))


def block_count(model: Any) -> int:
    """Number of a model's blocks, from its config; 0 where that names none, as in convolutional networks."""
    count = getattr(model.config, "num_hidden_layers", 0)
    return count if isinstance(count, int) else 0


def block_outputs(out: Any, count: int) -> tuple[Tensor, ...]:
    """The last `count` hidden states [B, T, D] of a model's output, from early to late; empty for 0."""
    return tuple(out.hidden_states[-count:]) if count else ()


def read_preprocessor(config: HfConfig) -> dict[str, Any]:
    """Read the preprocessor_config.json of a folder.

    Raises:
        ValueError: it cannot be read.
    """
    file = Path(config.path or "") / "preprocessor_config.json"
    try:
        values: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot read {str(file)!r}: {os_words(error)}; set front_end to that of the model's training"
        ) from error
    return values
