"""The training state: counters, scores, learner, optimizer, EMA and data position; the only mutable object of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from mmssl.core.batch import Batch
from mmssl.core.distributed import gather_objects, is_main, rank, world_size
from mmssl.core.errors import MmsslError
from mmssl.core.evaluator import Score
from mmssl.core.objective import Learner
from mmssl.core.sample import Drawn, Fault
from mmssl.training.runtime.jsonl import JsonLines
from mmssl.training.steps.ema import Ema

PlaceInRun = tuple[int, int, dict[str, Any] | None]
"""Steps and samples of a run so far, and the position of its stream; None: as it began."""


class Stream(Protocol):
    """An endless iterator of training batches with a resumable position."""

    def __iter__(self) -> Iterator[Batch]:
        """This process' share of each global batch, from the current position on."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch handed out, as plain numbers. Equal on all processes."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume at a position. The number of processes may have changed."""
        ...

    def drawn(self) -> Mapping[str, Drawn]:
        """Samples drawn from each source so far, by all processes; empty for a single source."""
        ...

    def close(self) -> None:
        """Stop workers that prefetch."""
        ...


@dataclass(frozen=True)
class Best:
    """The best score so far of the watched metric."""

    metric: str
    value: float
    step: int


@dataclass
class TrainState:
    """Everything that changes during a run: saved in and restored from checkpoints.

    No random state is stored: each step seeds itself from (seed, step, rank), and data draws from (seed, sample).

    Attributes:
        learner, optimizer, stream, ema, scaler: moved by the loop.
        total_steps: length of the run; part of the recipe, not of a checkpoint.
        step: steps done, including skipped ones; also the number of batches consumed.
        samples: samples seen by all processes together.
        skipped_steps: steps whose loss or gradient was not finite; bad_in_a_row: those since the last good one.
        faults: reason -> samples that were replaced, over all processes; fault_examples: one of each, in words.
        notes: note of a sample -> number of samples, over all processes; see `Batch.notes`.
        ledger: file of all faults, with step, process and row.
        scores: latest value of each metric of each evaluator, as "<evaluator>/<metric>"; like `best` of the watched metric not in
            a checkpoint, which is written before its step is evaluated, but in `metrics.jsonl`.
        failures: evaluator whose last run failed -> its error.
    """

    learner: Learner
    optimizer: Optimizer
    stream: Stream
    total_steps: int
    ema: Ema | None = None
    scaler: GradScaler | None = None
    step: int = 0
    samples: int = 0
    skipped_steps: int = 0
    bad_in_a_row: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    fault_examples: dict[str, str] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    failures: dict[str, MmsslError] = field(default_factory=dict)
    best: Best | None = None
    ledger: JsonLines | None = None
    _position: dict[str, Any] | None = None
    _new_faults: list[tuple[int, int, Fault]] = field(default_factory=list)
    _new_notes: list[tuple[int, str]] = field(default_factory=list)

    @property
    def place(self) -> str:
        """Progress of the run, for the log: "step  25/800"."""
        return f"step {self.step:>{len(str(self.total_steps))}}/{self.total_steps}"

    def place_in_run(self) -> PlaceInRun:
        """Steps, samples and position so far, for `return_to`."""
        return self.step, self.samples, self._position

    def return_to(self, place: PlaceInRun) -> None:
        """Forget the steps after a place, which updated nothing and were not judged."""
        self.step, self.samples, self._position = place
        self._new_faults = [fault for fault in self._new_faults if fault[0] <= self.step]
        self._new_notes = [note for note in self._new_notes if note[0] <= self.step]

    def advance(self, batch: Batch) -> None:
        """Count one step on `batch`; whether it was finite may be known later, see `judge`."""
        self.step += 1
        self._position = self.stream.state_dict()
        self.samples += len(batch) * world_size()
        self._new_faults += [(self.step, rank(), fault) for fault in batch.faults]
        self._new_notes += [(self.step, note) for note in chain.from_iterable(batch.notes)]

    def judge(self, finite: bool) -> None:
        """Count whether a step was finite. Every step is judged, in order, before anything is saved or logged."""
        self.bad_in_a_row = 0 if finite else self.bad_in_a_row + 1
        self.skipped_steps += not finite

    def forget_moments(self, names: Iterable[str]) -> None:
        """Drop the moments of parameters that the objective made anew; the EMA starts from them, and takes all buffers over.

        Args:
            names: of parameters of the objective.

        Raises:
            ValueError: no such parameter.
        """
        objective = self.learner.objective
        parameters, made = dict(objective.named_parameters()), list(names)
        unknown = [name for name in made if name not in parameters]
        if unknown:
            raise ValueError(
                f"{type(objective).__name__}.refresh() returned {unknown}, wanted names of its parameters: {[*parameters]}"
            )
        for name in made:
            self.optimizer.state.pop(parameters[name], None)
        if self.ema is not None:
            self.ema.take_over(self.learner, [f"objective.{name}" for name in made])

    def join_faults(self) -> None:
        """Add the faults and notes of all processes since the last call. Every process must call."""
        parts = gather_objects((self._new_faults, dict(Counter(note for _, note in self._new_notes))))
        new = sorted((one for faults, _ in parts for one in faults), key=lambda one: one[:2])
        for reason, count in Counter(fault.reason for *_, fault in new).items():
            self.faults[reason] = self.faults.get(reason, 0) + count
        self.fault_examples = {fault.reason: str(fault) for *_, fault in reversed(new)} | self.fault_examples
        if self.ledger is not None and is_main():
            self.ledger.extend([_entry(*one) for one in new])
        for _, notes in parts:
            self.notes = dict(Counter(self.notes) + Counter(notes))
        self._new_faults, self._new_notes = [], []

    def numbers(self) -> dict[str, Any]:
        """All counters and scores (no tensors), as JSON values."""
        return {
            "step": self.step,
            "samples": self.samples,
            "skipped_steps": self.skipped_steps,
            "bad_in_a_row": self.bad_in_a_row,
            "faults": self.faults,
            "fault_examples": self.fault_examples,
            "notes": self.notes,
            # That of the last step: a batch may have been handed out that was given up.
            "stream": self.stream.state_dict() if self._position is None else self._position,
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "ema_updates": int(self.ema.updates) if self.ema else None,
            "evaluated": dict(self.learner.objective.evaluated()),
        }

    def load_numbers(self, numbers: Mapping[str, Any]) -> None:
        """Restore from `numbers`."""
        self.step, self.samples = int(numbers["step"]), int(numbers["samples"])
        self.skipped_steps, self.bad_in_a_row = int(numbers["skipped_steps"]), int(numbers["bad_in_a_row"])
        self.faults, self.fault_examples = dict(numbers["faults"]), dict(numbers["fault_examples"])
        self.notes = dict(numbers["notes"])
        self.stream.load_state_dict(numbers["stream"])
        if self.scaler is not None and numbers["scaler"] is not None:
            self.scaler.load_state_dict(numbers["scaler"])
        if self.ema is not None:
            self.ema.updates = int(numbers["ema_updates"] or 0)


def _entry(step: int, process: int, fault: Fault) -> dict[str, Any]:
    """A fault as a line of the ledger."""
    return {
        "step": step,
        "rank": process,
        "row": fault.row,
        "key": fault.key,
        "source": fault.origin.source,
        "shard": fault.origin.shard,
        "sample": fault.origin.ordinal,
        "offset": fault.origin.offset,
        "field": fault.field,
        "reason": fault.reason,
        "detail": fault.detail,
        "substitute": fault.substitute,
    }
