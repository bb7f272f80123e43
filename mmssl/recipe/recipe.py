"""The recipe of a training run (one YAML file), and the objects built from it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from mmssl.core.config import Config, Duration, LocalPath, PositiveDuration
from mmssl.core.distributed import world_size
from mmssl.core.encoder import Encoder
from mmssl.core.errors import DataError, RecipeError
from mmssl.core.evaluator import Evaluator
from mmssl.core.objective import Learner
from mmssl.core.plan import Plan
from mmssl.core.torch_seeding import seeded
from mmssl.data.modality import Modality
from mmssl.data.stream.config import DataConfig
from mmssl.encoders.lora import LoraConfig, add_lora
from mmssl.recipe.blank import blank_batch, unfinished_views
from mmssl.recipe.checks import (
    check_compile,
    check_keys,
    check_lora,
    check_parts,
    check_views,
    optional_modalities,
)
from mmssl.recipe.flat import FLAT, flatten_keys
from mmssl.recipe.gradients import SAMPLES, check_gradients
from mmssl.recipe.inputs import check_inputs
from mmssl.recipe.keep import KeepConfig
from mmssl.recipe.start import (
    change_encoders,
    encoder_start,
    from_scratch,
    inner_start,
    places,
    start_learner,
    start_lines,
    weights_file,
)
from mmssl.recipe.strict_yaml import dump_yaml
from mmssl.recipe.suite import evaluation_modalities, read_as
from mmssl.recipe.unions import EncoderUnion, EvaluatorUnion, ModalityUnion, ObjectiveUnion
from mmssl.recipe.validate import read_recipe_text, validate_text
from mmssl.training.checkpoints.read import FOLDER, checkpoints, read_recipe
from mmssl.training.run import Run, TrainingConfig
from mmssl.training.runtime.console import say
from mmssl.training.runtime.launch import Launch

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


class Recipe(Config):
    """A complete training run: data, modalities, encoders, objective, evaluators and training settings.

    Attributes:
        training: how to train; its keys (optimizer, schedule, precision, save, log, ...) are at the top level of the YAML.
        name: name of the run, and of its folder below `output`.
        seed: seed of weights, order of samples, augmentations and dropout.
        duration: length of the run, e.g. "32 epochs" or "12.8e6 samples".
        batch_size: samples of the global batch, over all processes.
        modalities: name -> how its bytes are decoded and which views can be made.
        data: the training shards and how they are read.
        encoders: modality -> network that encodes it.
        lora: modality -> low-rank adapters that are trained in place of its encoder (extra `peft`). Without, an encoder is trained
            in full, or kept as it is by `frozen`.
        objective: what is learned: one objective, or a weighted sum.
        evaluators: name -> what is measured, and how often.
        keep: after fine-tuning, which weights between start and end keep old tasks (WiSE-FT); null: the end is the result.
        weights: whole trained model to start from: a run or checkpoint folder, or a model of another library, as a file, a model
            folder, hf-hub:ORG/NAME or MODEL:TAG of open_clip (both from the local cache). `mmssl import` writes the recipe that
            fits such a model. Encoders that set their `weights` load those instead.
        partial: start with what fits in `weights`; what it lacks, or has in another shape, starts at random, and is listed.
        output: folder that holds run folders.
    """

    training: Annotated[TrainingConfig, FLAT]
    name: str
    seed: int = Field(default=0, ge=0)
    duration: PositiveDuration
    batch_size: int = Field(ge=1)
    modalities: dict[str, ModalityUnion] = Field(min_length=1)
    data: DataConfig
    encoders: dict[str, EncoderUnion] = Field(min_length=1)
    lora: dict[str, LoraConfig] = Field(default_factory=dict)
    objective: ObjectiveUnion
    evaluators: dict[str, EvaluatorUnion] = Field(default_factory=dict)
    keep: KeepConfig | None = None
    weights: LocalPath | None = None
    partial: bool = False
    output: LocalPath = Field(default=Path("runs"), validate_default=False)

    @field_validator("name")
    @classmethod
    def _folder_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(f"got {name!r}, wanted letters, digits, '_', '.' and '-' only: it becomes a folder")
        return name

    @field_validator("duration")
    @classmethod
    def _has_a_length(cls, duration: Duration) -> Duration:
        if duration.unit == "percent":
            raise ValueError(
                f"got '{duration}', and the length of a run cannot be a percentage of itself: give steps, samples or epochs"
            )
        return duration

    @field_validator("modalities", "encoders", "evaluators")
    @classmethod
    def _words(cls, mapping: dict[str, Any]) -> dict[str, Any]:
        for name in mapping:
            if not WORD.fullmatch(name):
                raise ValueError(
                    f"got the name {name!r}, wanted letters, digits and '_', so that key paths and metrics stay readable"
                )
        return mapping

    @model_validator(mode="after")
    def _keys_fit(self) -> Recipe:
        check_keys(self.modalities, self.encoders, self.training.resolution)
        if self.keep is not None:
            if self.weights is None and not any(config.pretrained for config in self.encoders.values()):
                raise ValueError(
                    "keep: got no weights to start from, and there are no old tasks then; set weights, or leave keep out"
                )
            self.keep.suite(self.evaluators)
        check_compile(self.training.compile != "off", self.encoders)
        check_lora(self.lora, self.encoders, self.training.optimizer.layer_decay)
        if self.partial and self.weights is None:
            raise ValueError("partial: got true without weights, wanted both; set weights, or leave partial out")
        return self

    @model_serializer(mode="wrap")
    def _document(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return flatten_keys(type(self), handler(self))

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.output / self.name

    def to_yaml(self) -> str:
        """The resolved recipe as YAML; parsing it gives an equal recipe."""
        return dump_yaml(self.model_dump(mode="json"))

    def from_scratch(self) -> Recipe:
        """The recipe without initial weights, whose files may be gone: for a model whose tensors a checkpoint has."""
        plain: Recipe = change_encoders(self, from_scratch).model_copy(update={"weights": None, "partial": False})
        return plain

    def build_modalities(self) -> dict[str, Modality]:
        """Decoders and views, by name."""
        return {name: config.build(name) for name, config in self.modalities.items()}

    def build_learner(self, modalities: Mapping[str, Modality], plan: Plan) -> Learner:
        """Encoders and objective with initial (or loaded) weights: a pure function of the recipe.

        The caller's random generators stay as they are.

        Args:
            modalities: from `build_modalities`; must make the views that the objective needs.
            plan: of the run; `Plan.unknown()` for a model that is not trained.

        Raises:
            RecipeError: parts that do not fit each other, or that would have no effect.
            CheckpointError: `weights` that cannot be loaded.
        """
        start = weights_file(self.weights) if self.weights is not None else None
        found = places(start, self.encoders) if start is not None else {}
        encoders: dict[str, Encoder] = {}
        for name, config in self.encoders.items():
            config = config.model_copy(update={key: change_encoders(value, inner_start) for key, value in config})
            if config.weights is not None:
                file, place = encoder_start(config.weights, name)
                config = config.model_copy(update={"weights": file, "place": config.place or place})
            elif start is not None:
                changes = {"place": config.place or found.get(name), "partial": config.partial or self.partial}
                config = config.model_copy(update={"weights": start, **changes})
            try:
                with seeded(self.seed, "weights", "encoders", name):
                    encoders[name] = config.build()
                    if name in self.lora:
                        add_lora(encoders[name], self.lora[name])
            except ValueError as error:
                raise RecipeError(f"encoders.{name}: {error}") from error
        try:
            with seeded(self.seed, "weights", "objective"):
                objective = change_encoders(self.objective, inner_start).build(encoders, plan.below("objective"))
            learner = Learner(encoders, objective, optional=optional_modalities(self.data), seed=self.seed)
        except ValueError as error:
            raise RecipeError(f"objective: {error}") from error
        if start is not None:
            taken = [name for name, config in self.encoders.items() if config.weights is None]
            start_learner(learner, start, taken, partial=self.partial)
        check_parts(self.data, self.modalities, learner, modalities)
        return learner

    def build_evaluators(self, modalities: Mapping[str, Modality]) -> dict[str, tuple[Evaluator, Duration | None]]:
        """Evaluators by name, and how often each runs (None: at the end only).

        Raises:
            RecipeError: one names a modality that the recipe lacks, or a file that cannot be read.
        """
        available = evaluation_modalities(modalities)
        built: dict[str, tuple[Evaluator, Duration | None]] = {}
        for name, config in self.evaluators.items():
            try:
                built[name] = (read_as(config, self.data).build(available), config.every)
            except RecipeError as error:
                raise RecipeError(f"evaluators.{name}: {error}") from error
        return built

    def build(self, launch: Launch) -> Run:
        """Build this process' run: modalities, learner, data stream and evaluators; not yet started.

        Args:
            launch: from `training.launch()`.

        Raises:
            RecipeError: parts that do not fit each other. DataError: shards that cannot be used. CheckpointError: `weights`.
        """
        if self.batch_size % world_size():
            raise RecipeError(
                f"batch_size: got {self.batch_size} for {world_size()} processes, wanted a multiple of their number: "
                "it is the global batch, and every process takes an equal share"
            )
        sources = self.data.open()
        samples = sum(len(source.index) for source in sources)
        plan = Plan.of(self.duration, self.batch_size, samples)
        modalities = self.build_modalities()
        begun = bool(checkpoints(self.folder / FOLDER))  # a run goes on as it began
        learner = (self.from_scratch() if begun else self).build_learner(modalities, plan)
        if not begun:
            check_inputs(self.encoders, self.modalities)
            for line in start_lines(learner, self.seed):
                say(line)
        check_views(learner, modalities)
        least = learner.objective.least_samples
        if self.batch_size < least:
            raise RecipeError(
                f"batch_size: got {self.batch_size}, wanted at least {least}: the objective compares the samples of a batch"
            )
        if samples < least:
            raise DataError(
                f"the shards hold {samples} sample(s), wanted at least {least}: the objective compares the samples of a batch; "
                "add shards"
            )
        blank = blank_batch(learner, modalities, max(SAMPLES, least))
        check_gradients(learner, blank, launch)
        needs = learner.objective.needs()
        stream = self.data.stream(
            sources, modalities, needs, batch_size=self.batch_size, seed=self.seed, folder=self.folder
        )
        reading = None
        if learner.objective.refresh_every() is not None:
            reading = self.data.pass_over(
                sources,
                modalities,
                learner.objective.refresh_needs(),
                batch_size=self.batch_size // world_size(),
                seed=self.seed,
            )
        return self.training.build(
            learner,
            stream,
            self.build_evaluators(modalities),
            launch,
            self.folder,
            self.to_yaml(),
            seed=self.seed,
            plan=plan,
            reading=reading,
            unfinished=unfinished_views(modalities),
        )


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and validate a recipe file; paths that begin with `{folder}` are relative to its folder.

    Raises:
        RecipeError: with every mistake, one a line.
    """
    return validate_text(Recipe, read_recipe_text(path), str(path), overrides, path.parent)


def saved_recipe(checkpoint: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that stands in a checkpoint, with overrides."""
    return validate_text(Recipe, read_recipe(checkpoint), str(checkpoint / "recipe.yaml"), overrides, checkpoint)
