"""A trained model, ready for use: encoders, heads, and how raw inputs become embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmssl.core.encoder import EmbeddingModel, EncoderConfig
from mmssl.core.errors import RecipeError
from mmssl.core.objective import Learner
from mmssl.data.modality import DecodeError, Modality
from mmssl.recipe.recipe import Recipe, saved_recipe
from mmssl.training.checkpoints.read import load_weights, resolve, step_of
from mmssl.training.checkpoints.tensors import load_exactly
from mmssl.training.run import Run
from mmssl.training.steps.compilation import uncompile_encoders

# What may be changed of a trained model: how samples are read, and what is measured.
READING = ("modalities.", "evaluators.")


class Model:
    """A trained model: encoders, heads, and the decoders and evaluation views that go with them.

    Attributes:
        recipe: what it was trained with.
        checkpoint: folder that it was loaded from; None for one that has not been trained.
        embedding: the encoders and heads, for evaluators.
        modalities: name -> decoder and views.
    """

    def __init__(self, recipe: Recipe, checkpoint: Path | None, embedding: EmbeddingModel) -> None:
        self.recipe = recipe
        self.checkpoint = checkpoint
        self.embedding = embedding
        self.modalities: Mapping[str, Modality] = recipe.build_modalities()

    @torch.inference_mode()
    def encode(self, *, batch_size: int = 64, **inputs: Any) -> dict[str, Tensor]:
        """Unit-norm embeddings of raw inputs in the shared space.

        Args:
            batch_size: how many inputs pass the encoder at once.
            **inputs: modality -> list of inputs (or one): file paths of any extension, bytes, or what the modality decodes to
                (for pictures uint8 [H, W, 3] arrays, for sounds float32 [channels, samples] at its rate, for text strings).

        Returns:
            modality -> float32 [B, E] on the CPU.

        Raises:
            ValueError: unknown modality, no input, or one that cannot be decoded (named by its position).
        """
        return {name: self._encode_one(name, values, batch_size) for name, values in inputs.items()}

    def _encode_one(self, name: str, values: Any, batch_size: int) -> Tensor:
        if name not in self.recipe.encoders:
            raise ValueError(f"no encoder for {name!r}; this model has {', '.join(self.recipe.encoders)}")
        modality = self.modalities[name]
        items = list(values) if isinstance(values, list | tuple) else [values]
        if not items:
            raise ValueError(f"{name}: got an empty list, wanted one input or more")
        views = []
        for i, item in enumerate(items):
            try:
                views.append(_single_view(modality, _decoded(modality, item)))
            except (DecodeError, OSError) as error:
                raise ValueError(f"{name} input {i}: {error}") from error
            except (AttributeError, TypeError) as error:  # views know only what their modality decodes to
                raise ValueError(
                    f"{name} input {i}: got {type(item).__module__}.{type(item).__name__}, wanted a file path, bytes, or what the "
                    f"modality decodes to, such as a numpy array: {error}"
                ) from error
        parts = [
            self.embedding.embed(name, torch.stack(views[i : i + batch_size])).cpu()
            for i in range(0, len(views), batch_size)
        ]
        return torch.cat(parts)


def _decoded(modality: Modality, item: Any) -> Any:
    """What a file path, bytes or a string hold; anything else counts as decoded already."""
    if isinstance(item, str) and modality.language and not _is_file_of(modality, item):
        item = item.encode()
    if isinstance(item, str | Path):
        return modality.decode(Path(item).read_bytes(), Path(item).suffix[1:].lower())
    return modality.decode(item, modality.extensions[0]) if isinstance(item, bytes) else item


def _is_file_of(modality: Modality, text: str) -> bool:
    return Path(text).suffix[1:].lower() in modality.extensions and Path(text).is_file()


def _single_view(modality: Modality, value: Any) -> Tensor:
    view = modality.view("eval")
    x = view(value, {})
    return x[0] if view.ragged else x


def load(
    path: str | Path,
    *,
    which: Literal["best", "last"] = "best",
    device: str | torch.device = "cpu",
    ema: bool = True,
    overrides: Sequence[str] = (),
) -> Model:
    """Load a trained model from a run folder or a checkpoint folder.

    Args:
        path: run folder (its best checkpoint, or the last if there is no best) or checkpoint folder.
        which: "best" or "last", for run folders.
        device: where the model goes.
        ema: take the averaged weights if the run kept them.
        overrides: changes to how samples are read and what is measured, such as "modalities.text.captions=lines".

    Raises:
        CheckpointError: missing, damaged or unreadable checkpoint.
        RecipeError: overrides that are mistaken, or of what was trained.
    """
    for override in overrides:
        if not override.startswith(READING):
            raise RecipeError(
                f"got {override!r} for a trained model, which stays as it is: wanted a key below {' or '.join(READING)}"
            )
    checkpoint = resolve(Path(path), which)
    recipe = saved_recipe(checkpoint, overrides)
    from_scratch = {name: _from_scratch(config) for name, config in recipe.encoders.items()}
    learner = recipe.model_copy(update={"encoders": from_scratch, "weights": None}).build_learner(
        recipe.build_modalities()
    )
    load_exactly(learner, load_weights(checkpoint, use_ema=ema), checkpoint)
    return Model(recipe, checkpoint, _ready(learner, device))


def trained(recipe: Recipe, run: Run) -> Model:
    """The model that `load(run.folder)` gives, made of the modules of a run that has ended: nothing is built again.

    Args:
        recipe: of the run.
        run: ended; its modules stop learning and belong to the model from here on.

    Raises:
        CheckpointError: the run has no valid checkpoint.
    """
    if run.launch.parallel != "ddp":  # its modules are split over processes, which need not be there any more
        return load(run.folder, device=run.launch.device)
    checkpoint, state = resolve(run.folder), run.state
    learner = state.ema.module if state.ema is not None else state.learner
    if step_of(checkpoint) != state.step:
        load_exactly(learner, load_weights(checkpoint), checkpoint)
    uncompile_encoders(learner)
    return Model(recipe, checkpoint, _ready(learner, run.launch.device))


def _from_scratch(config: EncoderConfig) -> EncoderConfig:
    """Without weights to start from, which may be gone from where they were; nor do encoders inside have any."""
    inside = {name: _from_scratch(value) for name, value in config if isinstance(value, EncoderConfig)}
    return config.model_copy(update={"weights": None, "place": None, **inside})


def start_of(recipe: Recipe, *, device: str | torch.device = "cpu") -> Model:
    """The model as training would find it: freshly drawn weights, or those that the recipe starts from.

    Raises:
        RecipeError, CheckpointError: see `Recipe.build_learner`.
    """
    return Model(recipe, None, _ready(recipe.build_learner(recipe.build_modalities()), device))


def _ready(learner: Learner, device: str | torch.device) -> EmbeddingModel:
    embedding = EmbeddingModel(dict(learner.encoders.items()), learner.objective.heads())
    return embedding.requires_grad_(False).eval().to(device)
