"""Cross-field checks of a recipe: contradictions between keys, and between the built objects."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch

from mmssl.core.batch import Needs, merge_needs
from mmssl.core.encoder import Encoder, EncoderConfig
from mmssl.core.errors import RecipeError, did_you_mean
from mmssl.core.objective import Learner, Objective
from mmssl.data.modality import Modality, ModalityConfig, View
from mmssl.data.stream.config import DataConfig
from mmssl.data.synchronized.chain import mistakes
from mmssl.data.synchronized.mix import Dropout
from mmssl.data.synchronized.space import Flip
from mmssl.data.synchronized.time import TimeCrop
from mmssl.encoders.transformer import TransformerConfig
from mmssl.objectives.clip import ClipObjective
from mmssl.recipe.blank import blank_batch
from mmssl.training.steps.resolution import ResolutionStage

HINTS = {
    "rate": ": at another rate the filters of its front-end stand at wrong frequencies",
    "channels": ": of sounds, set channels: stereo, or channel: mean in its front-end; of others, give mean and std of the "
    "encoder a number a channel",
}
"""Advice for a key in which a modality and its encoder differ."""


def check_keys(
    modalities: Mapping[str, ModalityConfig],
    encoders: Mapping[str, EncoderConfig],
    resolution: Mapping[str, Sequence[ResolutionStage]],
) -> None:
    """Raise an error for encoders and resolution stages that do not match the modalities.

    Raises:
        ValueError: with every mistake, one a line.
    """
    wrong = [*_strangers(modalities, encoders), *_inputs(modalities, encoders), *_stages(modalities, resolution)]
    if wrong:
        raise ValueError("\n  ".join(wrong))


def check_lora(lora: Collection[str], encoders: Mapping[str, EncoderConfig], layer_decay: float | None) -> None:
    """Raise an error for adapters of no encoder, or of one that other settings freeze or rate by its layers.

    Raises:
        ValueError: the first mistake.
    """
    for name in lora:
        if name not in encoders:
            raise ValueError(
                f"lora.{name}: got no encoder of this name{did_you_mean(name, encoders)}, wanted one of {sorted(encoders)}"
            )
        if encoders[name].frozen:
            raise ValueError(
                f"lora.{name}: got frozen: true of the same encoder, wanted one of both; with lora its weights stay, too"
            )
    if lora and layer_decay is not None:
        raise ValueError(
            "optimizer.layer_decay: got a rate by layers with lora, wanted one of both; adapters start at zero in all layers"
        )


def check_compile(compiled: bool, encoders: Mapping[str, EncoderConfig]) -> None:
    """Raise an error for a compiled encoder of which some operations are kept: compiled code has no single ones.

    Raises:
        ValueError: the first such encoder.
    """
    for name, encoder in encoders.items():
        if compiled and isinstance(encoder, TransformerConfig) and encoder.checkpointing == "selective":
            raise ValueError(
                f"encoders.{name}.checkpointing: got selective with compile, wanted one of both; set it to true"
            )


def check_parts(
    data: DataConfig,
    configs: Mapping[str, ModalityConfig],
    learner: Learner,
    modalities: Mapping[str, Modality],
) -> None:
    """Raise an error for parts that do not fit the objective or each other, or have no effect.

    Args:
        data: how samples are read and augmented.
        configs: modality configs, by name.
        learner: encoders and objective, built.
        modalities: built from `configs`.

    Raises:
        RecipeError: with every mistake, one a line.
    """
    encoders, objective = learner.context().encoders, learner.objective
    wrong = [
        *_views(data, configs, encoders, all_needs(objective), modalities),
        *_mirrors(data, configs, objective),
        *_windows(data, configs, objective, modalities),
        *_absences(data, objective),
        *_tokens(encoders, modalities),
    ]
    if wrong:
        raise RecipeError("\n  ".join(["the recipe's parts do not fit", *wrong]))


def _strangers(modalities: Mapping[str, ModalityConfig], encoders: Mapping[str, EncoderConfig]) -> Iterator[str]:
    """Errors of encoders without a modality."""
    for name in sorted(encoders.keys() - modalities.keys()):
        yield (
            f"encoders.{name} has no modality of that name{did_you_mean(name, modalities)}; "
            f"modalities: {', '.join(modalities)}"
        )


def _inputs(modalities: Mapping[str, ModalityConfig], encoders: Mapping[str, EncoderConfig]) -> Iterator[str]:
    """Errors of modalities whose views do not match their encoder's input."""
    for name in (name for name in encoders if name in modalities):
        for key, (got, wanted) in modalities[name].input_spec().misfits(encoders[name].wants()).items():
            yield f"modalities.{name}.{key}: got {got}, and encoders.{name} takes {wanted}{HINTS.get(key, '')}"


def _stages(
    modalities: Mapping[str, ModalityConfig], resolution: Mapping[str, Sequence[ResolutionStage]]
) -> Iterator[str]:
    """Errors of resolution stages above the size of the pictures."""
    for name, stages in resolution.items():
        pixels = modalities[name].input_spec().pixels if name in modalities else None
        largest = max(stage.size for stage in stages)
        if pixels is not None and largest > pixels:
            yield (
                f"resolution.{name}: got a stage of {largest} pixels, and modalities.{name}.size is {pixels}: stages "
                "make pictures smaller only; lower it, or raise the modality's size"
            )


def all_needs(objective: Objective) -> Needs:
    """Views of training and of refreshes."""
    refreshed = objective.refresh_every() is not None
    return merge_needs(objective.needs(), objective.refresh_needs() if refreshed else {})


def _views(
    data: DataConfig,
    configs: Mapping[str, ModalityConfig],
    encoders: Collection[str],
    needs: Needs,
    modalities: Mapping[str, Modality],
) -> Iterator[str]:
    """Errors of missing views, and of views and encoders without effect."""
    used = {name: modalities[name] for name in needs}
    yield from (f"data.synchronized: {mistake}" for mistake in mistakes(data.synchronized, used))
    for name in sorted(set(encoders) - needs.keys()):
        yield f"encoders.{name}: the objective does not use it: remove it, or add it to the objective"
    for name, kinds in needs.items():
        for kind in sorted(kinds.keys() - modalities[name].views.keys()):
            yield (
                f"modalities.{name}.views: the objective needs {kind!r}{did_you_mean(kind, modalities[name].views)}; "
                f"there are: {', '.join(sorted(modalities[name].views))}"
            )
    for name, config in configs.items():
        unused = (config.model_dump().get("views") or {}).keys() - needs.get(name, {}).keys() - {"eval"}
        if unused and name not in needs:
            yield f"modalities.{name}: the objective does not use it: remove it, or, for evaluators, give it `views: {{}}`"
            continue
        for kind in sorted(unused):
            yield f"modalities.{name}.views.{kind}: the objective does not use it, so it would have no effect: remove it"


def check_views(learner: Learner, modalities: Mapping[str, Modality]) -> None:
    """Run `check_views` of the objective on one blank sample, and encoders on views whose size differs from the modality's.

    Misfits then show before the first step.

    Raises:
        RecipeError: they do not fit.
    """
    try:
        learner.objective.check_views(blank_batch(learner, modalities, 1), learner.context())
    except ValueError as error:
        raise RecipeError(f"objective: {error}") from error
    for name, kinds in learner.objective.needs().items():
        for kind in kinds:
            view, tokens = modalities[name].view(kind), learner.context().encoders[name].grid or ()
            sides = tuple(side for side in tokens if side > 1)
            if view.grid is not None and math.prod(view.grid) == math.prod(sides) and view.grid != sides:
                got, wanted = (" x ".join(map(str, grid)) for grid in (view.grid, tokens))
                raise RecipeError(
                    f"modalities.{name}.views.{kind}: got a grid of {got} tokens, wanted {wanted}, that of encoders.{name}"
                )
            if view.pixels not in (None, modalities[name].view("eval").pixels):
                _encode_blank(learner.context().encoders[name], view, f"modalities.{name}.views.{kind}.size")


@torch.no_grad()
def _encode_blank(encoder: Encoder, view: View, where: str) -> None:
    training, device = encoder.training, next(encoder.parameters()).device
    encoder.eval()
    try:
        encoder(view.blank()[None].to(device), pooled_only=True)
    except (ValueError, RuntimeError, AssertionError) as error:  # foreign models assert
        raise RecipeError(
            f"{where}: got {view.pixels}, which the encoder does not take ({error}): leave it out, or take another"
        ) from error
    finally:
        encoder.train(training)


def _tokens(encoders: Mapping[str, Encoder], modalities: Mapping[str, Modality]) -> Iterator[str]:
    """Errors of tokenizers that exceed the context length or vocabulary of their encoder."""
    for name, encoder in encoders.items():
        made, taken = modalities[name].token_ids, encoder.token_ids
        if made is None or taken is None:
            continue
        longest = taken.context_length
        if longest is not None and (made.context_length is None or made.context_length > longest):
            yield (
                f"modalities.{name}.tokenizer.context_length: got {made.context_length}, wanted at most {longest}, the context "
                f"length of encoders.{name}: lower it, or take an encoder of longer texts"
            )
        if made.vocab_size > taken.vocab_size:
            yield (
                f"modalities.{name}.tokenizer: got one of {made.vocab_size} token ids, wanted at most {taken.vocab_size}, the "
                f"vocabulary size of encoders.{name}: take the tokenizer that belongs to the encoder"
            )


def _mirrors(data: DataConfig, modalities: Mapping[str, ModalityConfig], objective: Objective) -> Iterator[str]:
    """Errors of views with an independent flip beside the synchronized flip."""
    flips = [one for one in data.synchronized if isinstance(one, Flip) and one.probability > 0]
    if not flips:
        return
    paired = {
        (name, kind)
        for one in objective.modules()
        if isinstance(one, ClipObjective)
        for name in one.needs()
        for kind in one.needs()[name]
    }
    for name, kind in sorted(paired):
        view = (modalities[name].model_dump().get("views") or {}).get(kind) or {}
        for key in ("flip", "turns"):
            if view.get(key) and not all(name in flip.without_sides for flip in flips):
                yield (
                    f"modalities.{name}.views.{kind}.{key}: got {json.dumps(view[key])} beside the flip of data.synchronized, "
                    "which keeps left and right of all modalities together: this one would be turned alone; leave it out"
                )


def _windows(
    data: DataConfig, configs: Mapping[str, ModalityConfig], objective: Objective, modalities: Mapping[str, Modality]
) -> Iterator[str]:
    """Errors of views longer or shorter than the synchronized time_crop."""
    seconds = {name: config.input_spec().seconds for name, config in configs.items()}
    crop = next((one for one in data.synchronized if isinstance(one, TimeCrop)), None)
    if crop is not None:
        yield from _short_windows(crop, seconds, objective)
        yield from _windows_apart(crop, seconds, objective, modalities)


def _short_windows(crop: TimeCrop, seconds: Mapping[str, float | None], objective: Objective) -> Iterator[str]:
    """Errors of views longer than the synchronized time_crop, which would be padded."""
    for name in sorted(objective.needs()):
        if (seconds[name] or 0.0) > crop.seconds:
            yield (
                f"modalities.{name}.seconds: got {seconds[name]:g}, and time_crop of data.synchronized leaves {crop.seconds:g} s "
                "of every sample, so that all views would be padded: raise time_crop.seconds, or lower this"
            )


def _windows_apart(
    crop: TimeCrop, seconds: Mapping[str, float | None], objective: Objective, modalities: Mapping[str, Modality]
) -> Iterator[str]:
    """Errors of compared views that crop the synchronized window to different moments."""
    for one in objective.modules():
        if not isinstance(one, ClipObjective):
            continue
        parts = {
            name: length
            for name, views in sorted(one.needs().items())
            if (length := seconds[name]) is not None
            and length < crop.seconds
            and any(modalities[name].views[kind].random_time for kind in views if kind in modalities[name].views)
        }
        if len(parts) > 1:
            got = ", ".join(f"modalities.{name}.seconds {length:g}" for name, length in parts.items())
            yield (
                f"{got}: each view would crop its own part of the {crop.seconds:g} s that time_crop of data.synchronized cuts, "
                "so the views would show different moments: set all of them to one length"
            )


def optional_modalities(data: DataConfig) -> dict[str, str]:
    """Modality that samples of a batch may lack -> the key that says so."""
    dropped = {
        name: f"data.synchronized[{number}].modalities"
        for number, one in enumerate(data.synchronized)
        if isinstance(one, Dropout) and one.probability > 0
        for name, probability in one.modalities.items()
        if probability > 0
    }
    return dropped | dict.fromkeys(data.optional, "data.optional")


def _absences(data: DataConfig, objective: Objective) -> Iterator[str]:
    """Errors of objectives that need every sample to have a modality which samples may lack."""
    causes = optional_modalities(data).items()
    for path, part in objective.named_modules():
        inside = [one for one in part.modules() if isinstance(one, Objective)] if not objective.accepts_absent else []
        if inside != [part] or part.accepts_absent:
            continue
        where = ".".join(["objective", *path.replace("parts.", "objectives.").split(".")]).rstrip(".")
        for name, cause in causes:
            if name in part.needs():
                yield (
                    f"{cause}: got {name!r}, and {where} ({type(part).__name__}) needs it of every sample of a batch: remove it "
                    "there, or use an objective that accepts absent samples"
                )
