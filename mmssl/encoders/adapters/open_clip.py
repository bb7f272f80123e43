"""Adapter to open_clip: the image or text tower of any of its models as an encoder."""

from __future__ import annotations

import copy
import json
import logging
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmssl.core.config import LocalPath
from mmssl.core.encoder import EncoderConfig, Features
from mmssl.core.errors import did_you_mean
from mmssl.core.sample import TokenIds
from mmssl.encoders.adapters.adapter import Adapter, refuse_checkpointing, refuse_masks
from mmssl.encoders.adapters.transformers import longest_text
from mmssl.encoders.adapters.transformers_loading import FIXED, HfConfig, read_settings
from mmssl.encoders.pixels import ColourValues, Pixels
from mmssl.encoders.weights import load_and_freeze

# The smallest towers that open_clip makes: its models always have two, and only one is used.
_NO_IMAGE = {"layers": 1, "width": 64, "image_size": 8, "patch_size": 8}
_NO_TEXT = {"layers": 1, "width": 8, "heads": 1, "vocab_size": 8, "context_length": 8}

# Parameters that are registered first and used last.
_OUTPUT = ("proj", "text_projection", "ln_post", "ln_final", "attn_pool", "attnpool")

# Names of a checkpoint in the old layout that are not the text tower's.
_BESIDE = ("visual.", "logit_scale", "logit_bias")


class OpenClipConfig(EncoderConfig):
    """Settings of an open_clip tower. Nothing is downloaded: `weights` is a local checkpoint of the whole model or the tower.

    Attributes:
        model: open_clip's name, such as "ViT-B-32"; or "local-dir:FOLDER" for a folder with open_clip_config.json (only this file
            is read); or the settings of a model, as `model_cfg` in such a file.
        tower: "image" or "text".
        text_config: settings of the text model of transformers that `model` names by hf_model_name, as in its config.json, or the
            path of such a file; None: open_clip's own text transformer.
        checkpointing: recompute blocks in backward: less memory, a third more work.
        mean, std: statistics of the channels for pixels in [0, 1], for the image tower; None: open_clip's for this model. Set
            them for weights that were trained with others (SigLIP: 0.5 each), since a weights file does not contain them.
    """

    kind: Literal["open_clip"] = "open_clip"
    model: str | dict[str, Any]
    tower: Literal["image", "text"]
    text_config: dict[str, Any] | LocalPath | None = None
    checkpointing: bool = False
    mean: ColourValues | None = None
    std: ColourValues | None = None

    def build(self) -> OpenClipEncoder:
        """Build the tower, load `weights`, freeze.

        Raises:
            ValueError: open_clip has no such model, or the tower lacks an option that is set.
            CheckpointError: the weights do not fit.
        """
        if self.tower == "text" and not (self.mean is None and self.std is None):
            raise ValueError("got mean or std for a text tower, which has no pixels to normalise; leave them out")
        encoder = OpenClipEncoder(self)
        load_and_freeze(encoder, self, module=encoder.model, ignore=_BESIDE, fixed=FIXED)
        return encoder


class OpenClipEncoder(Adapter):
    """open_clip tower: images [B, 3, H, W] or token ids [B, T] -> pooled [B, D], after its projection (D is embed_dim).

    `pooled` is the output of `encode_image` or `encode_text`, not normalised: a pretrained tower stays aligned with its partner.
    There are no tokens and hidden layers, whose size is that before the projection.
    """

    def __init__(self, config: OpenClipConfig) -> None:
        model = _create(config)
        super().__init__(model.text if config.tower == "text" else model.visual)
        if config.tower == "text":
            self.pixels = None
            words = getattr(self.model, "config", None)  # of a text model of transformers
            longest = self.model.context_length if words is None else longest_text(self.model.transformer)
            self.token_ids = TokenIds(longest, self.model.vocab_size)
            padding = None if words is None else words.pad_token_id
            example = torch.full((1, longest or 8), 1 if padding == 0 else 0)
        else:
            size = model.visual.image_size
            height, width = (size, size) if isinstance(size, int) else size
            self.pixels = Pixels(config.mean or model.visual.image_mean, config.std or model.visual.image_std)
            example = torch.zeros(1, 3, height, width)
        self.width = self.connect(example, last=_OUTPUT).pooled.shape[-1]
        if config.checkpointing:
            refuse_checkpointing(self.model, str(config.model))
            self.model.set_grad_checkpointing(True)

    def prepare(self, x: Tensor) -> Tensor:
        """Images: uint8, or float in [0, 1], -> normalised float. Ids: as they are."""
        return x if self.pixels is None else self.pixels(x)

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
            ValueError: masks or hidden layers are asked for.
        """
        refuse_masks(self, keep, replace)
        self.check_hidden(hidden)
        out = self.model(self.prepare(x))
        return Features(out[0] if isinstance(out, tuple) else out)  # CoCa's towers return tokens too, of another size


def model_settings(model: str | dict[str, Any]) -> dict[str, Any]:
    """open_clip's settings of a model (`model_cfg`), as `OpenClipConfig.model` names it.

    Raises:
        ValueError: there is no such model, or the folder has no settings.
    """
    import open_clip

    if not isinstance(model, str):
        return copy.deepcopy(model)
    if model.startswith("local-dir:"):
        file = Path(model.removeprefix("local-dir:")) / "open_clip_config.json"
        try:
            settings = dict(json.loads(file.read_text("utf-8"))["model_cfg"])
            return settings | {"text_cfg": dict(settings["text_cfg"])}
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"cannot use model {model!r}: {file} is missing or has no model_cfg with a text_cfg"
            ) from error
    name = model.replace("/", "-")
    if name not in open_clip.list_models():  # checked first, because open_clip looks for unknown names on a hub
        near = did_you_mean(model, open_clip.list_models())
        raise ValueError(
            f"got model {model!r}, wanted the name of an open_clip model{near} (see open_clip.list_models()), or "
            "local-dir:FOLDER; nothing is downloaded"
        )
    return dict(open_clip.get_model_config(name))


def _create(config: OpenClipConfig) -> Any:
    settings = model_settings(config.model)
    with tempfile.TemporaryDirectory() as folder:  # open_clip takes settings from files
        if config.tower == "text":
            _name_text_model(config, settings.get("text_cfg") or {}, Path(folder))
        elif config.text_config is not None:
            raise ValueError("got text_config for a picture tower; leave it out")
        if isinstance(config.model, str) and config.text_config is None:
            return _create_model(config, config.model)  # with what open_clip knows of this name, such as its statistics
        values = {"model_cfg": settings, "preprocess_cfg": {}}
        (Path(folder) / "open_clip_config.json").write_text(json.dumps(values), "utf-8")
        try:
            return _create_model(config, f"local-dir:{folder}")
        except (TypeError, KeyError, RuntimeError) as error:
            raise ValueError(f"model: open_clip makes no model of these settings: {error}") from error


def _name_text_model(config: OpenClipConfig, text: dict[str, Any], folder: Path) -> None:
    """Write the settings of a text model of transformers into a folder, and name it in the settings of open_clip."""
    name = text.get("hf_model_name")
    if (name is None) != (config.text_config is None):
        raise ValueError(
            f"open_clip's model has the text tower {name!r} of transformers, and nothing is downloaded: set text_config to the "
            "path of its config.json, or to what stands there, or use kind: hf_text with a local folder"
            if name
            else "got text_config for a model of open_clip with a text transformer of its own; leave it out"
        )
    if name is not None:
        settings = read_settings(HfConfig(config=config.text_config))  # refuses code and unknown models
        (folder / "config.json").write_text(json.dumps(settings.to_dict()), "utf-8")
        text["hf_model_name"] = str(folder)


def _create_model(config: OpenClipConfig, name: str) -> Any:
    import open_clip

    unused = {"vision_cfg": _NO_IMAGE} if config.tower == "text" else {"text_cfg": _NO_TEXT}
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it would warn of random weights, which are intended here
    try:
        return open_clip.create_model(
            name,
            pretrained=None,
            load_weights=False,
            pretrained_image=False,
            pretrained_text=False,
            force_custom_text=True,
            **unused,
        )
    finally:
        logging.disable(disabled)
