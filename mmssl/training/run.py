"""Training settings, and a `Run` built from them: the optimizer, steps, checkpoints and logs of one training."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from mmssl.core.batch_norm import SyncBatchNorm, synchronise_batch_norm
from mmssl.core.compat import BatchNorm
from mmssl.core.config import Config, Duration, PositiveDuration
from mmssl.core.distributed import world_size
from mmssl.core.errors import RecipeError
from mmssl.core.evaluator import Evaluator, Score
from mmssl.core.objective import Learner
from mmssl.core.plan import Plan
from mmssl.core.schedules import Bounds, ScheduleConfig
from mmssl.training.beats import BestConfig, EvaluateBeat, Every, SaveBeat
from mmssl.training.checkpoints.manifest import replace_text
from mmssl.training.checkpoints.write import CheckpointStore
from mmssl.training.log import LogBeat
from mmssl.training.loop import train
from mmssl.training.refresh import Reading, Refresh
from mmssl.training.runtime.console import say, show_drawn
from mmssl.training.runtime.jsonl import JsonLines
from mmssl.training.runtime.launch import Device, Launch
from mmssl.training.runtime.launcher import Parallel, Precision
from mmssl.training.runtime.lock import RunLock, on_main
from mmssl.training.steps.cached import CachedStepConfig
from mmssl.training.steps.compilation import CompileMode, compile_encoders
from mmssl.training.steps.ema import EmaConfig
from mmssl.training.steps.optim import OptimizerUnion, UpdateSchedule
from mmssl.training.steps.plain import AccumulatedStepConfig, GradientStep, PlainStepConfig
from mmssl.training.steps.prefetch import DeviceStream, Unfinished
from mmssl.training.steps.profile import ProfileConfig, StepProfiler
from mmssl.training.steps.resolution import ResolutionStage, build_resolution
from mmssl.training.steps.state import Stream, TrainState

StepConfig = Annotated[PlainStepConfig | AccumulatedStepConfig | CachedStepConfig, Field(discriminator="kind")]


class SaveConfig(Config):
    """When to save checkpoints, and which to keep.

    Attributes:
        every: training between two checkpoints; None: by the clock or at the end only.
        minutes: time between two checkpoints.
        keep_last: number of newest checkpoints to keep.
        best: metric whose best checkpoint is kept too.
    """

    every: PositiveDuration | None = None
    minutes: float | None = Field(default=30.0, gt=0)
    keep_last: int = Field(default=3, ge=2)
    best: BestConfig | None = None

    def build(self, plan: Plan, store: CheckpointStore, background: bool) -> SaveBeat:
        """The periodic action; `background`: the run goes on while a checkpoint is written."""
        return SaveBeat(Every(plan.steps(self.every) if self.every else None, self.minutes), store, background)


class LogConfig(Config):
    """When to log, and trackers besides `metrics.jsonl` and the console.

    Attributes:
        every: training between two log lines.
        minutes: time between two log lines, whichever comes first; None: by `every` alone.
        trackers: names of Accelerate trackers that get the metrics too, such as tensorboard, wandb, trackio or mlflow. A resumed
            run goes on in its run there.
        project: project of wandb and trackio, experiment of mlflow.
        tags: of the run there.
        pictures: whether the figures of the report, curves and a map of the embeddings, go to the trackers too, at the end, and as
            PNG into `figures` of the run folder. Trackers without pictures get none.
    """

    every: PositiveDuration = Duration("20 steps")
    minutes: float | None = Field(default=None, gt=0)
    trackers: tuple[str, ...] = ("tensorboard",)
    project: str = "mmssl"
    tags: tuple[str, ...] = ()
    pictures: bool = False


class TrainingConfig(Config):
    """Training settings: optimizer, schedule, precision, parallel mode, checkpoints and logs.

    Attributes:
        schedule: learning rate over the run, as a share of the optimizer's peak rate, from 0 to 1.
        optimizer: how gradients move the weights, and at which peak rate.
        step: how the gradient of a batch is computed: at once, or in micro-batches that need less memory.
        ema: exponential moving average of the weights, evaluated and exported; None: none.
        precision: of matrix products in the forward pass (autocast); weights, criterion and updates are float32 always. "tf32":
            no autocast, but all float32 products on tensor cores, of 10 bits, in the criterion too; "fp32": float32 proper.
        device: "auto" takes CUDA if available.
        deterministic: on a GPU, take deterministic kernels only, which are slower: then a resumed run has the same bits.
        compile: torch.compile of the encoders, exact up to rounding. "blocks": their repeated blocks, which compile in seconds;
            "default" and "max-autotune-no-cudagraphs": whole encoders, in these modes.
        resolution: modality -> stages of smaller pictures, in order; full size after the last. It changes the result.
        parallel: what several processes share: "ddp": nothing, each has all weights; "zero2": gradients and moments are split;
            "fsdp2": weights too. "auto": what the launcher asks for, else "ddp". All give the same numbers.
        sync_batch_norm: let batch normalisation in encoders see the batches of all processes, as if they were one (SyncBN).
        distributed_timeout: minutes that a process waits for the others before it gives up.
        clip_norm: largest gradient norm; None: no limit.
        save: when checkpoints are written, and which are kept.
        log: when metrics are logged, and trackers besides `metrics.jsonl` and the console.
        max_bad_steps: number of steps in a row with a non-finite loss or gradient (skipped) after which the run ends.
        profile: profile some steps, into `profile/` in the run folder; None: none.
    """

    schedule: Annotated[ScheduleConfig, Field(discriminator="kind"), Bounds(ge=0, le=1)]
    optimizer: OptimizerUnion
    step: StepConfig = PlainStepConfig()
    ema: EmaConfig | None = None
    precision: Precision = "fp32"
    device: Device = "auto"
    deterministic: bool = False
    compile: CompileMode = "off"
    resolution: dict[str, Annotated[tuple[ResolutionStage, ...], Field(min_length=1)]] = Field(default_factory=dict)
    parallel: Parallel = "auto"
    sync_batch_norm: bool = False
    distributed_timeout: float = Field(default=10.0, gt=0)
    clip_norm: float | None = Field(default=None, gt=0)
    save: SaveConfig = SaveConfig()
    log: LogConfig = LogConfig()
    max_bad_steps: int = Field(default=10, ge=1)
    profile: ProfileConfig | None = None

    def launch(self) -> Launch:
        """Set up device, processes and precision; call it before anything moves to a device."""
        return Launch(
            self.precision,
            self.device,
            self.log.trackers,
            self.parallel,
            self.distributed_timeout,
            self.deterministic,
            self.log.project,
            self.log.tags,
        )

    def build(
        self,
        learner: Learner,
        stream: Stream,
        evaluators: Mapping[str, tuple[Evaluator, Duration | None]],
        launch: Launch,
        folder: Path,
        recipe: str,
        *,
        seed: int,
        plan: Plan,
        reading: Reading | None = None,
        unfinished: Unfinished | None = None,
    ) -> Run:
        """Build a run: learner on its device, optimizer, step, checkpoints and periodic actions.

        Args:
            learner: on any device; it is moved.
            stream, unfinished: training batches; views of them that are finished on the device.
            reading: training samples in order, for objectives that are refreshed.
            evaluators: name -> (what to run, how often; None: at the end only).
            launch, folder: from `launch()`; run folder, made when the run starts.
            recipe: the resolved recipe, as YAML, for the checkpoints.
            seed, plan: of the run; its length, batch size and number of samples.

        Raises:
            RecipeError: settings that contradict each other.
        """
        best = self.save.best.build() if self.save.best is not None else None
        if best is not None and best.evaluator not in evaluators:
            raise RecipeError(
                f"save.best.metric: got {best.metric!r}, wanted '<evaluator>/<metric>' of an evaluator of this recipe: "
                f"{sorted(evaluators) or 'it has none'}"
            )
        if self.sync_batch_norm:
            _synchronise(learner)
        else:
            _mention_batch_statistics(learner)
        launch.place(learner)
        ema = self.ema.build(learner) if self.ema is not None else None
        if self.resolution:
            learner.adapt = build_resolution(self.resolution, learner, plan)
        compile_encoders(learner, self.compile)
        wrapped = launch.wrap(learner)
        if ema is not None:
            launch.split(ema.module)
        stream = DeviceStream(stream, learner, launch.device, unfinished)
        state = TrainState(learner, self.optimizer.build(learner), stream, plan.total_steps, ema, launch.scaler)
        metrics = JsonLines(folder / "metrics.jsonl")
        step = self.step.build(learner, wrapped, launch, seed, self.clip_norm)
        if self.profile is not None:
            step.profiler = StepProfiler(self.profile, folder, launch.device)
        return Run(
            folder=folder,
            state=state,
            step=step,
            updates=UpdateSchedule(
                plan.schedule(self.schedule, "schedule"),
                plan.schedule(self.optimizer.weight_decay, "optimizer.weight_decay"),
            ),
            refresh=Refresh(learner.objective.refresh_every(), reading, launch, unfinished),
            log=LogBeat(Every(plan.steps(self.log.every), self.log.minutes), metrics, launch),
            evaluations=tuple(
                EvaluateBeat(Every(plan.steps(when) if when else None), name, evaluator, metrics, launch, best)
                for name, (evaluator, when) in evaluators.items()
            ),
            save=self.save.build(plan, CheckpointStore(folder, recipe, self.save.keep_last), launch.asynchronous),
            launch=launch,
            max_bad_steps=self.max_bad_steps,
        )


@dataclass(frozen=True)
class Run:
    """A run that is built and not yet started."""

    folder: Path
    state: TrainState
    step: GradientStep
    updates: UpdateSchedule
    refresh: Refresh
    log: LogBeat
    evaluations: tuple[EvaluateBeat, ...]
    save: SaveBeat
    launch: Launch
    max_bad_steps: int

    def train(self, resume: str = "auto") -> dict[str, Score]:
        """Resume or start, train to the end, and return the latest scores, "<evaluator>/<metric>".

        Args:
            resume: "auto", "never", or the path of a checkpoint or run folder, see `CheckpointStore.restore`.

        Raises:
            DataError: shards of an evaluator cannot be used.
            RecipeError: the folder is in use, cannot be written, or holds a run and `resume` is "never"; the disk is too small.
            others: see `train` and `CheckpointStore.restore`.
        """
        say(self.launch.describe())
        self.open_evaluators()
        bad_batches = JsonLines(self.folder / "bad_batches.jsonl")
        with RunLock(self.folder):
            self.save.store.restore(self.state, resume)
            finished = self.state.step >= self.state.total_steps
            if finished:
                say(
                    f"{self.folder}: has trained {self.state.step} of {self.state.total_steps} steps: nothing to train; "
                    "set a longer duration to go on"
                )
            on_main(lambda: self.save.store.check_space(self.state))
            on_main(lambda: self._write_recipe(finished))
            on_main(lambda: self.log.metrics.rewind(self.state.step))
            on_main(lambda: bad_batches.rewind(self.state.step))
            self.state.ledger = ledger = JsonLines(self.folder / "faults.jsonl")
            on_main(lambda: ledger.rewind(self.state.step))
            on_main(lambda: self.launch.start_trackers(self.folder, self.state.step))
            try:
                with self.launch.naming_lost_processes(), self.step.profiler or nullcontext():
                    train(
                        self.state,
                        self.step,
                        self.updates,
                        self.refresh,
                        self.log,
                        self.save,
                        self.evaluations,
                        bad_batches,
                        self.max_bad_steps,
                    )
                show_drawn(self.state.stream.drawn())
            finally:
                self.save.store.close()
                self.state.stream.close()
                for evaluation in self.evaluations:
                    evaluation.close()
                self.launch.stop_trackers()
        return self.state.scores

    def open_evaluators(self) -> None:
        """Open the shards of all evaluators.

        Raises:
            DataError, RecipeError: see `Evaluator.open`.
        """
        for evaluation in self.evaluations:
            evaluation.open()

    def _write_recipe(self, finished: bool) -> None:
        """Write the recipe into the run folder; a finished run keeps the recipe that trained it."""
        path = self.folder / "recipe.yaml"
        if not (finished and path.exists()):
            replace_text(path, self.save.store.recipe)


def _synchronise(learner: Learner) -> None:
    try:
        if synchronise_batch_norm(learner) == 0:
            raise RecipeError(
                "sync_batch_norm has no effect: nothing in the learner normalises by the batch; remove it"
            )
    except ValueError as error:
        raise RecipeError(f"sync_batch_norm: {error}; use another encoder, or set sync_batch_norm=false") from error


def _mention_batch_statistics(learner: Learner) -> None:
    """Warn if batch normalisation makes the result depend on the number of processes."""
    trained = {
        name: encoder
        for name, encoder in learner.encoders.items()
        if any(p.requires_grad for p in encoder.parameters())
    }
    apart = [
        name
        for name, encoder in trained.items()
        if any(isinstance(layer, BatchNorm) and not isinstance(layer, SyncBatchNorm) for layer in encoder.modules())
    ]
    if apart and world_size() > 1:
        say(
            f"batch normalisation in {apart} sees the samples of one process at a time, so that the result depends on how many "
            "processes there are; running statistics of the main process are evaluated and saved; sync_batch_norm=true lets it "
            "see the samples of all"
        )
