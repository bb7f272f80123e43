"""Profile some steps of a run with torch's profiler: a Chrome trace, a table of kernels, and on a GPU a memory snapshot."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import torch
from pydantic import Field
from torch.profiler import ProfilerActivity, profile, schedule

from mmssl.core.compat import record_memory, save_memory_snapshot
from mmssl.core.config import Config
from mmssl.core.distributed import rank
from mmssl.training.runtime.console import say

ROWS = 40
"""Longest table."""


class ProfileConfig(Config):
    """Profile some steps, from launches on the host to kernels. Their times are longer than usual.

    Attributes:
        start: steps of this session before the first that is profiled.
        steps: number of steps that are profiled.
        memory: record allocations too, and on a GPU write a snapshot for pytorch.org/memory_viz.
    """

    start: int = Field(default=10, ge=1)
    steps: int = Field(default=3, ge=1)
    memory: bool = False


class StepProfiler:
    """Context around the steps of a run; writes `profile/` in the run folder once the steps are over. `step` ends a step.

    Args:
        config: which steps.
        folder: the run folder.
        device: of the run.
    """

    def __init__(self, config: ProfileConfig, folder: Path, device: torch.device) -> None:
        self._config, self._folder = config, folder / "profile"
        self._cuda = device.type == "cuda"
        self._profile = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])],
            schedule=schedule(wait=config.start - 1, warmup=1, active=config.steps, repeat=1),
            on_trace_ready=self._write,
            profile_memory=config.memory,
        )

    def __enter__(self) -> StepProfiler:
        if self._cuda and self._config.memory:
            record_memory(True)
        self._profile.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._profile.__exit__(kind, error, trace)
        if self._cuda and self._config.memory:
            record_memory(False)

    def step(self) -> None:
        """Call after each step."""
        self._profile.step()

    def _write(self, done: profile) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        trace = self._folder / f"trace_{rank()}.json"
        done.export_chrome_trace(str(trace))
        order = "self_cuda_time_total" if self._cuda else "self_cpu_time_total"
        table = done.key_averages().table(sort_by=order, row_limit=ROWS)
        (self._folder / f"kernels_{rank()}.txt").write_text(table)
        if self._cuda and self._config.memory:
            save_memory_snapshot(self._folder / f"memory_{rank()}.pickle")
        say(f"profiled {self._config.steps} steps: {trace} (chrome://tracing, ui.perfetto.dev), kernels_{rank()}.txt")
