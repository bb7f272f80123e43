"""Where a run runs: device, processes, precision and trackers. With step.py the only place that knows Accelerate.

Accelerate finds the processes (`accelerate launch`, `torchrun`), wraps the learner for data parallelism and opens trackers. Data
loading, the schedule, precision and checkpoints stay ours: they must be exact, and are a few lines each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from mmssl.core.errors import RecipeError, did_you_mean
from mmssl.core.objective import Learner
from mmssl.training.console import say

Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Launch:
    """This process' place in the run.

    Args:
        precision: of matrix products in the forward pass (autocast); weights, criterion and updates are float32 always.
        device: "auto" takes CUDA where there is some.
        trackers: names of Accelerate trackers to log to.

    Attributes:
        device: of this process.
        scaler: scales the loss in fp16, where small gradients would vanish; None otherwise.

    Raises:
        RecipeError: the device, the precision, a tracker or the launcher's settings cannot be had.
    """

    def __init__(self, precision: Precision = "fp32", device: Device = "auto", trackers: Sequence[str] = ()) -> None:
        cuda = torch.cuda.is_available()
        if device == "cuda" and not cuda:
            raise RecipeError("device: got 'cuda', and torch sees no CUDA device here; set device to auto or cpu")
        on_cpu = device == "cpu" or not cuda
        if on_cpu and precision == "fp16":
            raise RecipeError("precision: fp16 is for CUDA devices; on a CPU choose fp32 or bf16")
        check_trackers(trackers)
        _check_launcher(precision)
        self._owns_group = not dist.is_initialized()
        _announce_group()
        _forget_other_device(on_cpu)
        parallel = DistributedDataParallelKwargs(find_unused_parameters=False, gradient_as_bucket_view=True)
        # `mixed_precision="no"`: Accelerate would patch the learner's forward; `autocast` below is open to see instead.
        self._accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=[parallel])
        _check_accelerator(self._accelerator)
        self.device: torch.device = self._accelerator.device
        self.precision = precision
        self.scaler = GradScaler(self.device.type) if precision == "fp16" else None
        self._names = tuple(dict.fromkeys(trackers))
        self._trackers: list[GeneralTracker] = []

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return bool(self._accelerator.is_main_process)

    def autocast(self) -> AbstractContextManager[None]:
        """The context of a forward pass."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_DTYPES[self.precision])

    def wrap(self, learner: Learner) -> nn.Module:
        """Move the learner to the device; on several processes wrap it, so that its gradients are averaged over them.

        Every trainable parameter must get a gradient in every step. Buffers follow the main process at each forward pass.
        """
        module: nn.Module = self._accelerator.prepare_model(learner)
        return module

    def without_averaging(self, module: nn.Module) -> AbstractContextManager[None]:
        """The context of a forward and backward pass whose gradients only pile up, for all but the last of several."""
        if isinstance(module, DistributedDataParallel):
            return module.no_sync()
        return nullcontext()

    def start_trackers(self, folder: Path, step: int) -> None:
        """Open the trackers; file-based ones write below `folder`, and forget what an earlier try logged after `step`."""
        if not self.is_main:
            return
        for name in self._names:
            tracker = LOGGER_TYPE_TO_CLASS[name]
            place = [folder / name] if tracker.requires_logging_directory else []
            settings = {"purge_step": step + 1} if name == "tensorboard" and step > 0 else {}
            self._trackers.append(tracker("mmssl", *place, **settings))
            self._trackers[-1].start()

    def track(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers to the trackers. One that fails is reported and left out from then on: the JSON lines have it all."""
        self._each(lambda tracker: tracker.log(dict(values), step=step))

    def stop_trackers(self) -> None:
        """Flush and close the trackers."""
        self._each(lambda tracker: tracker.finish())
        self._trackers.clear()

    def _each(self, action: Callable[[GeneralTracker], object]) -> None:
        for tracker in list(self._trackers):
            try:
                action(tracker)
            except Exception as error:  # any error of a foreign service; training is worth more than its curve
                say(f"tracker {tracker.name!r} failed and is left out from here on: {type(error).__name__}: {error}")
                self._trackers.remove(tracker)

    def close(self) -> None:
        """Leave the process group, if it was formed here. Call once, at the end of the program."""
        if self._owns_group and dist.is_initialized():
            dist.destroy_process_group()


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that do not exist or are not installed.

    Raises:
        RecipeError: names the tracker and what can be used.
    """
    installed = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise RecipeError(
                f"trackers: got {name!r}{did_you_mean(name, LOGGER_TYPE_TO_CLASS)}; known: {sorted(LOGGER_TYPE_TO_CLASS)}"
            )
        if name not in installed:
            raise RecipeError(
                f"trackers: {name!r} is not installed here: install its package, or remove it from the recipe"
            )


def _announce_group() -> None:
    """Accelerate knows processes by environment variables only: tell it of a group that was formed without them."""
    if dist.is_initialized():
        rank, world = str(dist.get_rank()), str(dist.get_world_size())
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}.items():
            os.environ.setdefault(name, value)


def _forget_other_device(on_cpu: bool) -> None:
    """Accelerate remembers the device of a program's first run; a later run may be on another one."""
    if PartialState._shared_state and (PartialState().device.type == "cpu") != on_cpu:
        AcceleratorState._reset_state(reset_partial_state=True)


def _check_launcher(precision: Precision) -> None:
    """Refuse settings of `accelerate launch` that this project decides in the recipe."""
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", precision):
        raise RecipeError(
            f"the launcher asks for mixed precision {asked!r}, and the recipe for {precision!r}: "
            "the recipe decides; set its precision, and launch without --mixed_precision"
        )
    accumulation = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulation != "1":
        raise RecipeError(
            f"the launcher asks for {accumulation} accumulation steps, which the recipe decides: launch without "
            "--gradient_accumulation_steps"
        )
    # Its launcher for CPUs starts one process whatever number it is given, unless it is given MPI too (accelerate #2741); an
    # address to meet at, without a rank, is the trace that several were asked for.
    alone = not any(
        name in os.environ for name in ("RANK", "LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    )
    if alone and "MASTER_ADDR" in os.environ and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        raise RecipeError(
            "accelerate launch --cpu was asked for several processes and has started one, as it does without MPI: use torchrun "
            "--nproc_per_node N, or accelerate launch --multi_gpu --num_processes N, which work on CPUs too"
        )


def _check_accelerator(accelerator: Accelerator) -> None:
    kind = accelerator.distributed_type
    if kind not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise RecipeError(
            f"the launcher asks for {kind.value}; this version trains on one process or with data parallelism: "
            "launch with --multi_gpu, --cpu or torchrun"
        )
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != wanted:
        raise RecipeError(
            f"the launcher started {wanted} processes, and {accelerator.num_processes} found each other: "
            "check that every process sees the same kind of device"
        )
