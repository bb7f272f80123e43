"""Adapter to timm: any of its image models as an encoder."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmssl.core.encoder import Encoder, EncoderConfig, Features
from mmssl.core.errors import did_you_mean
from mmssl.encoders.adapters.adapter import Adapter, refuse_checkpointing, refuse_masks
from mmssl.encoders.pixels import ColourValues, Pixels
from mmssl.encoders.weight_files import State
from mmssl.encoders.weights import load_and_freeze

if TYPE_CHECKING:
    from timm.models import PretrainedCfg


class TimmConfig(EncoderConfig):
    """Settings of a timm model. Nothing is downloaded: `weights` names a local file in timm's format, or one of ours.

    Attributes:
        model: timm's name, such as "convnext_tiny" or "vit_small_patch16_224".
        size: pixels of a side of the images; None: timm's default for the model.
        pool: timm's `global_pool`, such as "avg", "token" or "map"; None: the model's default.
        drop_path: stochastic depth, if the model has it.
        checkpointing: recompute blocks in backward, if the model can: less memory, a third more work.
        mean, std: statistics of the channels for pixels in [0, 1]; None: timm's for the model.
    """

    kind: Literal["timm"] = "timm"
    model: str
    size: int | None = Field(default=None, gt=0)
    pool: str | None = None
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    checkpointing: bool = False
    mean: ColourValues | None = None
    std: ColourValues | None = None

    def build(self) -> TimmEncoder:
        """Build the model, load `weights` without the classifier (positions resampled to this size), freeze.

        Raises:
            ValueError: timm has no such model, or the model lacks an option that is set.
            CheckpointError: the weights do not fit.
        """
        encoder = TimmEncoder(self)
        load_and_freeze(encoder, self, module=encoder.model, ignore=encoder.classifier, adapt=encoder.fit_positions)
        return encoder


class TimmEncoder(Adapter):
    """timm image model: images [B, 3, H, W] -> timm's pooled output [B, D], and patch tokens or feature-map cells [B, T, D].

    There are no tokens where their size differs from that of `pooled` (MobileNetV3 and similar models). There are hidden
    layers where all blocks have this size (vision transformers).
    """

    def __init__(self, config: TimmConfig) -> None:
        defaults = _defaults(config.model)
        size = config.size or defaults.input_size[-1]
        super().__init__(_create(config, size if defaults.fixed_input_size else None))
        self.pixels = Pixels(config.mean or defaults.mean, config.std or defaults.std)
        classifier = defaults.classifier or ()
        self.classifier = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        self.maps_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        self.prefix = int(getattr(self.model, "num_prefix_tokens", 0))
        features = self.connect(torch.zeros(1, 3, size, size))
        self.width = features.pooled.shape[-1]
        if features.tokens is not None and features.tokens.shape[-1] == self.width:
            self.capabilities = frozenset({Encoder.TOKENS})
            side = round(features.tokens.shape[1] ** 0.5)
            self.grid = features.grid or ((side, side) if side**2 == features.tokens.shape[1] else None)
            self.offer_hidden(torch.zeros(1, 3, size, size), len(self.model.feature_info))
        if config.checkpointing:
            refuse_checkpointing(self.model, config.model)
            try:
                self.model.set_grad_checkpointing(True)
            except (AssertionError, AttributeError) as error:
                raise ValueError(
                    f"got checkpointing: true, which timm's {config.model!r} lacks; set it to false"
                ) from error

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
            ValueError: masks are given, `hidden` is above the depth, or the model's pooling does not give one vector for each
                image.
        """
        refuse_masks(self, keep, replace)
        self.check_hidden(hidden)
        states: list[Tensor] = []
        if hidden:
            maps, states = self.model.forward_intermediates(self.prepare(x), indices=hidden, output_fmt="NLC")
        else:
            maps = self.model.forward_features(self.prepare(x))
        pooled = self.model.forward_head(maps)
        if pooled.ndim != 2:
            raise ValueError(
                f"got {list(pooled.shape)} from the model, wanted [B, D]: choose a `pool` that gives one vector"
            )
        grid: tuple[int, ...] | None = None
        if maps.ndim == 4:
            maps = maps if self.maps_last else maps.permute(0, 2, 3, 1)
            grid = (maps.shape[1], maps.shape[2])
            tokens = maps.flatten(1, 2)
        else:
            tokens = maps[:, self.prefix :]
            grid = self.grid if self.grid is not None and tokens.shape[1] == prod(self.grid) else None
        if tokens.shape[-1] != pooled.shape[-1]:
            return Features(pooled)
        return Features(pooled, tokens, grid, tuple(states) or None)

    def fit_positions(self, state: State) -> None:
        """Resample the position table of a timm vision transformer in `state` to this size, in place."""
        from timm.layers.pos_embed import resample_abs_pos_embed

        own = self.model.state_dict()
        if "pos_embed" not in state or "pos_embed" not in own or state["pos_embed"].shape == own["pos_embed"].shape:
            return
        if own["pos_embed"].ndim == 3 and self.grid is not None:
            prefix = own["pos_embed"].shape[1] - prod(self.grid)
            state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], list(self.grid), num_prefix_tokens=prefix)


def fit_channels(state: dict[str, Tensor], name: str, channels: int) -> None:
    """Fit the first convolution `state[name]` [D, 3, h, w], in place, to other channels, as timm does; leave anything else alone.

    One channel: the sum of the three. More, or two: the three repeated in order and scaled by 3 / channels, so that an input with
    equal channels gives what a grey picture gave.
    """
    weight = state.get(name)
    if weight is not None and weight.ndim == 4 and weight.shape[1] == 3 != channels:
        from timm.models import adapt_input_conv

        state[name] = adapt_input_conv(channels, weight)


def _defaults(name: str) -> PretrainedCfg:
    import timm

    if not timm.is_model(name):
        near = did_you_mean(name, timm.list_models())
        raise ValueError(f"got model {name!r}, wanted the name of a timm model{near} (see timm.list_models())")
    defaults = timm.get_pretrained_cfg(name)
    if defaults is None:
        raise ValueError(f"got model {name!r}, for which timm has no default settings; choose another model")
    return defaults


def _create(config: TimmConfig, size: int | None) -> Any:
    import timm

    options: dict[str, Any] = {"img_size": size, "global_pool": config.pool, "drop_path_rate": config.drop_path or None}
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return timm.create_model(config.model, pretrained=False, num_classes=0, **given)
    except (TypeError, AssertionError) as error:
        raise ValueError(f"timm's {config.model!r} does not take {given}: {error}") from error
