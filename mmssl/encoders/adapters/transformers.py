"""Adapters to transformers: any of its text or vision models as an encoder, from a local folder or from scratch."""

from __future__ import annotations

import json
import re
from math import isqrt
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmssl.core.encoder import Encoder, Features
from mmssl.core.sample import TokenIds
from mmssl.encoders.adapters.adapter import Adapter, refuse_masks
from mmssl.encoders.adapters.transformers_loading import (
    HfConfig,
    block_count,
    block_outputs,
    build_model,
    load_tower,
    projected,
    require_complete,
)
from mmssl.encoders.pixels import OPENAI_MEAN, OPENAI_STD, ColourValues, Pixels

# SigLIP's texts fill their context with padding, which attention reads.
_ATTEND_TO_PADDING = ("siglip_text_model", "siglip2_text_model")
_POSITIONS = re.compile(r"(^|\.)(position_embeddings?|embed_positions|wpe)$")


class HfTextConfig(HfConfig):
    """Settings of a transformers text model.

    Attributes:
        pool: "eos" takes the first end-of-text token (the last real token of a text without one), "last" the last real token,
            "cls" the first token, "mean" the mean of the real tokens. "projection": what a model with two towers (CLIP, SigLIP,
            CLAP, ...) compares, after its projection; it is pooled as in that model, and wants heads: identity.
        pad_id: id of padding, which is on the right and masked in attention; None: the model's.
        eos_id: end-of-text id; None: the model's.
    """

    kind: Literal["hf_text"] = "hf_text"
    pool: Literal["eos", "last", "cls", "mean", "projection"]
    pad_id: int | None = Field(default=None, ge=0)
    eos_id: int | None = Field(default=None, ge=0)

    def build(self) -> HfTextEncoder:
        """Build the model from the folder, load our `weights` over the folder's, freeze.

        Raises:
            ValueError: the settings are not a text model's, or name code to run.
            CheckpointError: the folder or the weights do not match the model.
        """
        encoder = HfTextEncoder(self)
        load_tower(encoder, self, encoder.tower.get_input_embeddings())
        return encoder


class HfVisionConfig(HfConfig):
    """Settings of a transformers vision model.

    Attributes:
        pool: "pooler" takes the model's `pooler_output` (right for CLIP, SigLIP and convolutional networks), "cls" the first token,
            "mean" the mean of the patch tokens or cells. "projection": what a model with two towers compares, after its projection;
            it wants heads: identity.
        size: pixels of a side; None: the model's image_size. Needed for models without one (convolutional networks).
        mean, std: statistics of the channels for pixels in [0, 1]; None: those in the folder's preprocessor_config.json, and
            OpenAI's for a model from scratch.
    """

    kind: Literal["hf_vision"] = "hf_vision"
    pool: Literal["pooler", "cls", "mean", "projection"]
    size: int | None = Field(default=None, gt=0)
    mean: ColourValues | None = None
    std: ColourValues | None = None

    def build(self) -> HfVisionEncoder:
        """Build the model from the folder, load our `weights` over the folder's, freeze.

        Raises:
            ValueError: the settings are not a vision model's, or name code to run.
            CheckpointError: the folder or the weights do not match the model.
        """
        encoder = HfVisionEncoder(self)
        load_tower(encoder, self)
        return encoder


class HfTextEncoder(Adapter):
    """transformers text model: token ids [B, T], padded on the right -> pooled [B, D] of the last hidden states.

    There are no tokens. Hidden layers are zero at padding.
    """

    def __init__(self, config: HfTextConfig) -> None:
        self.pool = config.pool
        model, missing = build_model(config, "text_model", projected=self.pool == "projection")
        super().__init__(model)
        self.pad_id = _special(self.tower, "pad", config.pad_id)
        self.eos_id = _special(self.tower, "eos", config.eos_id) if config.pool == "eos" else None
        tower = self.tower
        self.masked = tower.config.model_type not in _ATTEND_TO_PADDING
        tower.config.use_cache = False  # without this, decoders keep keys and values for text generation
        example = torch.full((1, 4), 1 if self.pad_id == 0 else 0)
        self.width = self.connect(example).pooled.shape[-1]
        if self.pool != "projection":
            self.offer_hidden(example, block_count(tower), bidirectional=self._attends_ahead(example))
        self.token_ids = TokenIds(longest_text(tower), tower.get_input_embeddings().num_embeddings)
        require_complete(self, missing, config)

    @property
    def tower(self) -> Any:
        """The text model without its projection."""
        return self.model.text_model if self.pool == "projection" else self.model

    def prepare(self, x: Tensor) -> Tensor:
        """Ids as they are."""
        return x

    def forward(
        self,
        x: Tensor,
        *,
        keep: Tensor | None = None,
        replace: tuple[Tensor, Tensor] | None = None,
        hidden: int = 0,
        pooled_only: bool = False,
    ) -> Features:
        """See `Encoder.forward`.

        Raises:
            ValueError: masks are given, or `hidden` is above the depth.
        """
        refuse_masks(self, keep, replace)
        self.check_hidden(hidden)
        ids = self.prepare(x)
        mask = self.attention_mask(ids)
        if self.pool == "projection":
            return Features(projected(self.model.get_text_features(input_ids=ids, attention_mask=mask)))
        real = self._real(ids)
        out = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=hidden > 0)
        states = tuple(state * real[..., None] for state in block_outputs(out, hidden))
        return Features(self._pooled(out.last_hidden_state, ids, real), hidden=states or None)

    def attention_mask(self, ids: Tensor) -> Tensor | None:
        """Which ids [B, T] are no padding, int64 [B, T]; None: attention reads padding, too."""
        return self._real(ids).long() if self.masked else None

    def _pooled(self, states: Tensor, ids: Tensor, real: Tensor) -> Tensor:
        # [B, T, D] -> [B, D]
        if self.pool == "cls":
            return states[:, 0]
        if self.pool == "mean":
            return (states * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)
        last = (real.sum(1) - 1).clamp(min=0)
        if self.eos_id is not None:
            ends = torch.eq(ids, self.eos_id)
            last = torch.where(ends.any(1), ends.int().argmax(1), last)
        return states[torch.arange(ids.shape[0], device=ids.device), last]

    def _attends_ahead(self, ids: Tensor) -> bool:
        # Whether another last id changes the state of the first token of a text.
        other = next(number for number in range(4) if number not in (self.pad_id, self.eos_id, int(ids[0, -1])))
        changed = torch.cat([ids[:, :-1], torch.full_like(ids[:, -1:], other)], dim=1)
        self.eval()
        with torch.no_grad():
            first, second = (self.model(input_ids=x).last_hidden_state[:, 0] for x in (ids, changed))
        self.train()
        return not torch.equal(first, second)

    def _real(self, ids: Tensor) -> Tensor:
        # [B, T] bool, True up to the end of each text. If the padding id also ends texts, its first occurrence is no padding.
        padding = ids == self.pad_id
        return (padding.cumsum(1) - padding.long() == 0) if self.pad_id == self.eos_id else ~padding


class HfVisionEncoder(Adapter):
    """transformers vision model: images [B, 3, H, W] -> pooled [B, D], and patch tokens or cells [B, T, D] of equal width."""

    def __init__(self, config: HfVisionConfig) -> None:
        self.pool = config.pool
        model, missing = build_model(config, "vision_model", projected=self.pool == "projection")
        super().__init__(model)
        self.pixels = Pixels(*_statistics(config))
        tower = self.model.vision_model if self.pool == "projection" else self.model
        size = _size(tower, config.size)
        # SigLIP 2 for pictures of any shape reads rows of patches.
        self.patch_rows = tower.config.patch_size if tower.config.model_type == "siglip2_vision_model" else None
        features = self.connect(torch.zeros(1, 3, size, size))
        self.width = features.pooled.shape[-1]
        if features.tokens is not None:
            self.capabilities = frozenset({Encoder.TOKENS})
            self.grid = features.grid
            self.offer_hidden(torch.zeros(1, 3, size, size), block_count(self.model))
        require_complete(self, missing, config)

    def prepare(self, x: Tensor) -> Tensor:
        """uint8, or float in [0, 1], [B, 3, H, W] -> normalised float."""
        return self.pixels(x)  # type: ignore[no-any-return]

    def forward(
        self,
        x: Tensor,
        *,
        keep: Tensor | None = None,
        replace: tuple[Tensor, Tensor] | None = None,
        hidden: int = 0,
        pooled_only: bool = False,
    ) -> Features:
        """See `Encoder.forward`.

        Raises:
            ValueError: masks are given, `hidden` is above the depth, or the model lacks the output that `pool` takes.
        """
        refuse_masks(self, keep, replace)
        self.check_hidden(hidden)
        if self.pool == "projection":
            return Features(projected(self.model.get_image_features(**self.inputs(x))))
        out = self.model(**self.inputs(x), output_hidden_states=hidden > 0)
        tokens, grid = self._tokens(out.last_hidden_state, x)
        if self.pool == "pooler":
            if out.get("pooler_output") is None:
                raise ValueError("got pool: pooler, and this model has no pooled output; use cls or mean")
            pooled = out["pooler_output"].flatten(1)
        elif self.pool == "cls":
            if out.last_hidden_state.ndim != 3:
                raise ValueError(
                    "got pool: cls, and this model returns a feature map without a class token; use mean or pooler"
                )
            pooled = out.last_hidden_state[:, 0]
        else:
            if tokens is None:
                raise ValueError(
                    "got pool: mean, and it is unknown which of this model's tokens are patches; use cls or pooler"
                )
            pooled = tokens.mean(1)
        if tokens is None or tokens.shape[-1] != pooled.shape[-1]:
            return Features(pooled)
        states = tuple(state[:, -tokens.shape[1] :] for state in block_outputs(out, hidden))
        return Features(pooled, tokens, grid, states or None)

    def inputs(self, x: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] -> arguments of the model: normalised pictures, or rows of patches with their shapes."""
        pixels = self.prepare(x)  # [B, 3, H, W]
        if self.patch_rows is None:
            return {"pixel_values": pixels}
        size, (height, width) = self.patch_rows, pixels.shape[2:]
        rows = pixels.reshape(len(x), 3, height // size, size, width // size, size)
        rows = rows.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # [B, T, size * size * 3]
        shapes = torch.tensor([[height // size, width // size]], device=x.device).expand(len(x), 2)
        mask = torch.ones(rows.shape[:2], dtype=torch.int64, device=x.device)
        return {"pixel_values": rows, "spatial_shapes": shapes, "pixel_attention_mask": mask}

    def _tokens(self, states: Tensor, x: Tensor) -> tuple[Tensor | None, tuple[int, int] | None]:
        if states.ndim == 4:  # [B, D, rows, columns]
            return states.flatten(2).transpose(1, 2), (states.shape[2], states.shape[3])
        patch = getattr(self.model.config, "patch_size", None)
        if not isinstance(patch, int):
            return None, None
        grid = (x.shape[2] // patch, x.shape[3] // patch)
        prefix = states.shape[1] - grid[0] * grid[1]
        return (states[:, prefix:], grid) if prefix >= 0 else (None, None)


def _special(model: Any, name: str, given: int | None) -> int:
    value = given if given is not None else getattr(model.config, f"{name}_token_id", None)
    if not isinstance(value, int):
        raise ValueError(
            f"got {name}_token_id {value!r} from the model, wanted one number; set {name}_id to the tokenizer's"
        )
    return value


def longest_text(model: nn.Module) -> int | None:
    """Largest number of tokens of a text, for a model with position embeddings; None: positions are relative or rotary."""
    for name, table in model.named_modules():
        if isinstance(table, nn.Embedding) and _POSITIONS.search(name):
            longest: int = model.config.max_position_embeddings  # type: ignore[union-attr, assignment]
            # RoBERTa and similar models count positions from the padding id on.
            return longest if table.padding_idx is None else longest - table.padding_idx - 1
    return None


def _size(model: Any, given: int | None) -> int:
    own: Any = getattr(model.config, "image_size", None)
    if own is None and (count := getattr(model.config, "num_patches", None)) is not None:
        return given or isqrt(count) * int(model.config.patch_size)  # position embeddings are resized in the model
    own = own[0] if isinstance(own, list | tuple) else own
    if own is None and given is None:
        raise ValueError(
            "got no size, and this model has no image_size; set size to the pixels of a side of the images"
        )
    if own is not None and given not in (None, own):
        raise ValueError(
            f"size: got {given}, wanted this model's image_size {own}; leave size out, or change image_size in its config"
        )
    return int(own) if given is None else given


def _statistics(config: HfVisionConfig) -> tuple[ColourValues, ColourValues]:
    if config.mean is not None and config.std is not None:
        return config.mean, config.std
    if config.path is None:
        return config.mean or OPENAI_MEAN, config.std or OPENAI_STD
    file = config.path / "preprocessor_config.json"
    try:
        values = json.loads(file.read_text("utf-8"))
        return config.mean or tuple(values["image_mean"]), config.std or tuple(values["image_std"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{str(file)!r} has no image_mean and image_std; set mean and std") from error
