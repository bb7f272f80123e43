"""Device, processes, precision and trackers of a run. Only this room and core/compat.py use Accelerate.

Accelerate finds the processes (`accelerate launch`, `torchrun`, `srun`), wraps the learner for data parallelism and opens
trackers. Data loading, the schedule, precision and checkpoints stay ours: they must be exact, and are a few lines each.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from mmssl.core.compat import forget_accelerator, remembered_device
from mmssl.core.distributed import follow_main
from mmssl.core.errors import MmsslError, RecipeError
from mmssl.core.objective import Learner
from mmssl.training.runtime import sharding
from mmssl.training.runtime.console import say
from mmssl.training.runtime.kernels import choose_kernels, weights_channels_last
from mmssl.training.runtime.launcher import (
    Parallel,
    Precision,
    asked_cpu,
    asked_parallel,
    check_launcher,
    sharding_is_ours,
)
from mmssl.training.runtime.signals import default_signals
from mmssl.training.runtime.slurm import adopt_slurm
from mmssl.training.runtime.trackers import check_trackers, open_tracker

Device = Literal["auto", "cpu", "cuda"]
_LOST = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset)|timed out|timeout|pair closure|broken pipe", re.IGNORECASE
)
_SHARED = {
    "ddp": "each has all weights",
    "zero2": "gradients and moments are split",
    "fsdp2": "weights, gradients and moments are split",
}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Launch:
    """Device, rank, precision and parallel mode of this process.

    Args:
        precision: of matrix products in the forward pass (autocast); weights, criterion and updates are float32 always. "tf32":
            no autocast, but all float32 products on tensor cores, of 10 bits, in the criterion too; "fp32": products and
            convolutions in float32 proper.
        device: "auto" takes CUDA if available.
        trackers: names of Accelerate trackers to log to.
        parallel: what several processes share: "ddp": nothing, each has all weights; "zero2": gradients and moments are split;
            "fsdp2": weights too. "auto": what the launcher asks for, else "ddp". All give the same numbers.
        timeout: minutes that a process waits for the others in a collective before it gives up.
        deterministic: same bits in each run on the same device: deterministic kernels only, which are slower.
        project, tags: of the run in the trackers.

    Attributes:
        device: of this process.
        parallel: "ddp", "zero2" or "fsdp2"; "ddp" in one process.
        scaler: scales the loss in fp16, where small gradients would vanish; None otherwise.

    Raises:
        RecipeError: the device, the precision, a tracker or the launcher's settings are unavailable.
    """

    def __init__(
        self,
        precision: Precision = "fp32",
        device: Device = "auto",
        trackers: Sequence[str] = (),
        parallel: Parallel = "auto",
        timeout: float = 10.0,
        deterministic: bool = False,
        project: str = "mmssl",
        tags: Sequence[str] = (),
    ) -> None:
        cuda = torch.cuda.is_available()
        if device == "cuda" and not cuda:
            raise RecipeError("device: got 'cuda', and torch sees no CUDA device here; set device to auto or cpu")
        on_cpu = asked_cpu(device) or not cuda
        if on_cpu and precision == "fp16":
            raise RecipeError("precision: fp16 is for CUDA devices; on a CPU choose fp32 or bf16")
        if on_cpu and precision == "tf32":
            raise RecipeError("precision: tf32 is for CUDA devices; on a CPU choose fp32 or bf16")
        choose_kernels(precision, deterministic)
        check_trackers(trackers)
        adopt_slurm()
        check_launcher(precision)
        wanted = asked_parallel(parallel)
        self._timeout = timeout
        self._owns_group = not dist.is_initialized()
        _announce_group()
        _forget_other_device(on_cpu)
        # Buffers are equal from the start (`place`): queues, centres and EMA networks stay so, because objectives move them by
        # what all processes have seen. Broadcasting them in every forward pass would cost time, and hide one that does not.
        ddp = DistributedDataParallelKwargs(
            find_unused_parameters=False, gradient_as_bucket_view=True, broadcast_buffers=False
        )
        # `mixed_precision="no"`: Accelerate would patch the learner's forward; `autocast` below is open to see instead.
        with sharding_is_ours(), default_signals():
            handlers = [ddp, InitProcessGroupKwargs(timeout=timedelta(minutes=timeout))]
            self._accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=handlers)
        _check_accelerator(self._accelerator)
        self.parallel = wanted if self._accelerator.num_processes > 1 else "ddp"
        if self.parallel != "ddp" and precision == "fp16":
            raise RecipeError(
                f"precision: fp16 does not work with parallel {self.parallel!r}: each process would scale the loss by "
                "another factor; choose bf16"
            )
        self.device: torch.device = self._accelerator.device
        self.precision = precision
        self.scaler = GradScaler(self.device.type) if precision == "fp16" else None
        self._names, self._project, self._tags = tuple(dict.fromkeys(trackers)), project, tuple(tags)
        self._trackers: list[GeneralTracker] = []

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return bool(self._accelerator.is_main_process)

    @property
    def asynchronous(self) -> bool:
        """Whether the device works through a queue that the host fills, so that reading a value from it waits."""
        return self.device.type == "cuda"

    def describe(self) -> str:
        """Processes, device, precision and parallel mode, in one line."""
        count = self._accelerator.num_processes
        processes = (
            f"{count} processes, parallel {self.parallel} ({_SHARED[self.parallel]})" if count > 1 else "1 process"
        )
        return f"{processes}, device {self.device.type}, precision {self.precision}"

    def autocast(self) -> AbstractContextManager[None]:
        """The context of a forward pass."""
        if self.precision in ("fp32", "tf32"):
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_DTYPES[self.precision])

    def place(self, learner: Learner) -> None:
        """Move the learner to the device, and broadcast the main process' weights."""
        learner.to(self.device)
        if self.device.type == "cuda" and self.parallel == "ddp":  # shards must be contiguous
            weights_channels_last(learner)
        follow_main([*learner.parameters(), *learner.buffers()])

    def wrap(self, learner: Learner) -> nn.Module:
        """Wrap a placed learner in DDP on several processes; or shard it in place (ZeRO-2, FSDP2).

        Every trainable parameter must get a gradient in every step. Buffers are not broadcast. The running statistics of
        batch normalisation without SyncBN therefore differ: each process averages those of its share of the batches, and those
        of the main process are evaluated and saved, in every parallel mode.
        """
        if self.parallel != "ddp":
            self.split(learner)
            return learner
        module: nn.Module = self._accelerator.prepare_model(learner)
        return module

    def split(self, learner: Learner) -> None:
        """Shard a placed learner, or its EMA, over the processes in the modes ZeRO-2 and FSDP2."""
        if self.parallel != "ddp":
            mesh = init_device_mesh(self.device.type, (self._accelerator.num_processes,))
            sharding.shard_encoders(learner, mesh, reshard=self.parallel == "fsdp2")

    def gathered(self, learner: Learner) -> AbstractContextManager[None]:
        """Context in which all weights are gathered: each process may call the learner any number of times."""
        follow_main([*learner.buffers()])
        return nullcontext() if self.parallel == "ddp" else self._gathered(learner)

    @contextmanager
    def _gathered(self, learner: Learner) -> Iterator[None]:
        with sharding.gathered_weights(learner):
            yield
        for part in sharding.fsdp_modules(learner):
            part.set_reshard_after_forward(self.parallel == "fsdp2", recurse=False)

    def finish(self, learner: Learner) -> None:
        """Call after the last backward pass of a step: average gradients that no wrapper averaged, and free gathered weights."""
        if self.parallel != "ddp":
            sharding.free_gathered(learner)
            sharding.average_gradients(learner.parameters())

    @contextmanager
    def naming_lost_processes(self) -> Iterator[None]:
        """Context that turns a collective's failure into an error that says a process died or timed out.

        Raises:
            MmsslError: in place of the communication library's error.
        """
        try:
            yield
        except RuntimeError as error:
            if not dist.is_initialized() or not _LOST.search(str(error)):
                raise
            raise MmsslError(
                f"process {dist.get_rank()} of {dist.get_world_size()} has lost another process: it died, or did not answer "
                f"within {self._timeout:g} minutes (distributed_timeout); the cause is in that process' output. The "
                f"last checkpoint is unchanged: start the run again to resume from it ({error})"
            ) from error

    def without_averaging(self, module: nn.Module) -> AbstractContextManager[None]:
        """Context without gradient averaging (DDP's no_sync), for all micro-batches but the last."""
        if isinstance(module, DistributedDataParallel):
            return module.no_sync()
        return nullcontext()

    def start_trackers(self, folder: Path, step: int) -> None:
        """Open the trackers, on the main process; see `open_tracker`. A resumed run goes on without one that cannot be opened.

        Raises:
            RecipeError: a tracker of a new run cannot be opened.
        """
        for name in self._names:
            try:
                self._trackers.append(open_tracker(name, folder, step, self._project, self._tags))
            except Exception as error:  # any error of a foreign service
                problem = f"the tracker {name!r} cannot be opened: {type(error).__name__}: {error}"
                if step == 0:
                    raise RecipeError(f"log.trackers: {problem}; mend it, or remove it from the recipe") from error
                say(f"{problem}; the run goes on without it")

    def track(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers to the trackers. A tracker that fails is reported once and then disabled; `metrics.jsonl` has all numbers."""
        self._each(lambda tracker: tracker.log(dict(values), step=step))

    def reopen_trackers(self, folder: Path, step: int, *actions: Callable[[GeneralTracker], object]) -> None:
        """Open the trackers of a finished run once more, on the main process, do this with each, and close them.

        Args:
            folder: of the run. step: the last one. actions: what is done, one after the other.
        """
        self.start_trackers(folder, step)
        for action in actions:
            self._each(action)
        self.stop_trackers()

    def stop_trackers(self) -> None:
        """Flush and close the trackers."""
        self._each(lambda tracker: tracker.finish())
        self._trackers.clear()

    def _each(self, action: Callable[[GeneralTracker], object]) -> None:
        for tracker in list(self._trackers):
            try:
                action(tracker)
            except Exception as error:  # any error of a foreign service; training is worth more than its curve
                say(f"tracker {tracker.name!r} failed and is now disabled: {type(error).__name__}: {error}")
                self._trackers.remove(tracker)

    def close(self) -> None:
        """Leave the process group, if it was formed here. Call once, at the end of the program."""
        if self._owns_group and dist.is_initialized():
            dist.destroy_process_group()
            # Gloo's threads live on. One that lets go of the last collective's tensors when the interpreter is already ending
            # aborts the process, and nothing tells when it has: a finished run would fail one time in ten.
            time.sleep(0.2)


def _announce_group() -> None:
    """Set the environment variables by which Accelerate finds a process group that exists already."""
    if dist.is_initialized():
        rank, world = str(dist.get_rank()), str(dist.get_world_size())
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}.items():
            os.environ.setdefault(name, value)


def _forget_other_device(on_cpu: bool) -> None:
    """Let Accelerate choose the device anew if this run uses another one than the program's last."""
    device = remembered_device()
    if device is not None and (device.type == "cpu") != on_cpu:
        forget_accelerator()


def _check_accelerator(accelerator: Accelerator) -> None:
    kind = accelerator.distributed_type
    if kind not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise RecipeError(
            f"the launcher asks for {kind.value}; wanted one process, data parallelism, FSDP2 or ZeRO-2: launch with torchrun, "
            "or with one of configs/accelerate"
        )
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != wanted:
        raise RecipeError(
            f"the launcher started {wanted} processes, and {accelerator.num_processes} joined the group: "
            "check that every process sees the same kind of device"
        )
