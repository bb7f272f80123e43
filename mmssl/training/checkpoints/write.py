"""Write, rotate and restore the checkpoints of a run."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.core.distributed import is_main, world_size
from mmssl.core.errors import CheckpointError, NumericError, RecipeError, os_words
from mmssl.core.teacher import parts_of_teachers
from mmssl.training.checkpoints.manifest import FolderWriter, remove_folder, replace_text, sync_folder, verify
from mmssl.training.checkpoints.read import (
    BEST,
    FOLDER,
    FROZEN,
    LATEST,
    PINNED,
    checkpoints,
    folder_name,
    load,
    newest_valid,
    pointed_checkpoint,
    resolve,
    step_of,
)
from mmssl.training.checkpoints.tensors import dump_tensors
from mmssl.training.runtime.console import say
from mmssl.training.runtime.lock import on_main
from mmssl.training.runtime.sharding import full_moments, full_state
from mmssl.training.steps.state import TrainState

_LIBRARIES = ("torch", "numpy", "accelerate", "safetensors")


class CheckpointStore:
    """The checkpoints of one run: save, keep the newest and the best, restore.

    Files are written by a thread, from a copy of the state; one checkpoint at a time.

    Args:
        run: the run folder.
        recipe: the resolved recipe, as YAML, written into each checkpoint.
        keep_last: number of newest checkpoints to keep, at least 2; the best and pinned ones are kept too.
    """

    def __init__(self, run: Path, recipe: str, keep_last: int = 3) -> None:
        if keep_last < 2:
            raise ValueError(f"got keep_last {keep_last}, wanted at least 2: a single checkpoint may turn out damaged")
        self.folder, self.recipe, self.keep_last = run / FOLDER, recipe, keep_last
        self._writing: Future[Path] | None = None  # on the main process

    def save(self, state: TrainState) -> Path:
        """Write a checkpoint of this step, and wait until it is verified; see `begin` and `wait`."""
        self.begin(state)
        path = self.wait()
        assert path is not None
        return path

    def begin(self, state: TrainState) -> None:
        """Copy the state, and begin to write it; every process must call, and `wait` before the next one."""
        assert self._writing is None
        snapshot = Snapshot.of(state)
        if is_main():
            writer = ThreadPoolExecutor(1, "checkpoint")
            self._writing = writer.submit(self._save, snapshot)
            writer.shutdown(wait=False)

    def wait(self) -> Path | None:
        """Wait until the checkpoint is written and verified; every process must call. None: none was begun.

        Raises:
            OSError: the disk is full or fails. Older checkpoints are unchanged, and no partial one remains.
            NumericError: a weight is not finite.
        """
        return on_main(self._written)

    def close(self) -> None:
        """Wait for a checkpoint that is being written, whatever becomes of it: the run has failed, or lost a process."""
        if self._writing is not None:
            wait([self._writing])

    def _written(self) -> Path | None:
        writing, self._writing = self._writing, None
        return None if writing is None else writing.result()

    def _save(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint; an existing one stays until the new one is verified."""
        snapshot.refuse_non_finite()
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / folder_name(snapshot.numbers["step"])
        if not self._is_there(target):
            temporary = self.folder / f"{target.name}.tmp-{os.getpid()}"
            try:
                self._write(snapshot, temporary)
                os.replace(temporary, target)
                sync_folder(self.folder)
                verify(target)
            except CheckpointError as error:
                raise OSError(f"the written checkpoint differs when read back: {error}") from error
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        replace_text(self.folder / LATEST, target.name)
        self._prune()
        return target

    def mark_best(self, step: int) -> None:
        """Point BEST to the checkpoint of a step, which is then kept."""
        replace_text(self.folder / BEST, folder_name(step))

    def restore(self, state: TrainState, resume: str = "auto") -> Path | None:
        """Load a checkpoint into a freshly built state, on every process; the number of processes may have changed.

        Args:
            state: of the same recipe, at step 0.
            resume: "auto": the newest valid checkpoint of this run, if there is one; "never": refuse if there is one;
                or the path of a checkpoint or run folder, without fallback.

        Returns:
            The checkpoint that was loaded; None if the run starts anew.

        Raises:
            CheckpointError: the named checkpoint or all of them are damaged, or belong to another recipe.
            RecipeError: "never", and there is a checkpoint.
        """
        path = on_main(lambda: self._choose(resume))
        if path is not None:
            load(path, state)
            on_main(lambda: self._drop_later(state.step))
            say(f"resumed from {path} at step {state.step}")
        return path

    def check_space(self, state: TrainState) -> None:
        """Raise an error if the disk cannot hold two checkpoints, or one more where some exist.

        Raises:
            RecipeError: says the free and the needed space.
        """
        tensors = [*state.learner.state_dict().values()]
        trainable = [p for group in state.optimizer.param_groups for p in group["params"]]
        copies = 1 + (state.ema is not None)
        size = copies * sum(t.nbytes for t in tensors) + 2 * sum(p.nbytes for p in trainable)
        place = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
        free = shutil.disk_usage(place).free
        wanted = size if checkpoints(self.folder) else 2 * size
        if free < wanted:
            raise RecipeError(
                f"{place}: {free / 1e9:.2f} GB free, and checkpoints need {wanted / 1e9:.2f} GB: free space, or choose a run "
                "folder on another disk"
            )

    def _write(self, snapshot: Snapshot, temporary: Path) -> None:
        writer = FolderWriter(temporary)
        own, average = snapshot.learner, snapshot.average
        frozen = {name: tensor for name, tensor in own.items() if name in snapshot.frozen}
        if frozen:
            earlier = next(iter(checkpoints(self.folder)), None)
            writer.share(FROZEN, lambda file: dump_tensors(frozen, file), earlier)
            own = {name: tensor for name, tensor in own.items() if name not in frozen}
            average = {n: x for n, x in average.items() if n not in frozen} if average is not None else None
        writer.write("model.safetensors", lambda file: dump_tensors(own, file))
        if average is not None:
            writer.write("ema.safetensors", lambda file: dump_tensors(average, file))
        writer.write("optimizer.pt", lambda file: torch.save(snapshot.optimizer, file))
        versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
        numbers = {**snapshot.numbers, "processes": world_size(), "versions": versions}
        writer.write("state.json", lambda file: file.write(json.dumps(numbers, indent=1, allow_nan=False).encode()))
        writer.write("recipe.yaml", lambda file: file.write(self.recipe.encode()))
        writer.finish()

    def _choose(self, resume: str) -> Path | None:
        if self.folder.exists():
            for leftover in self.folder.glob("*.tmp-*"):  # of a process that died; the lock says that none is writing
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        existing = checkpoints(self.folder)
        if resume == "never":
            if existing:
                raise RecipeError(
                    f"{self.folder}: has checkpoints already ({existing[0].name}), and resume is 'never': "
                    "choose another run folder, or resume 'auto'"
                )
            return None
        if resume != "auto":
            return resolve(Path(resume), "last", strict=True)
        return newest_valid(existing) if existing else None

    def _is_there(self, target: Path) -> bool:
        """Whether this step is already saved, as when a run is resumed and stopped at once."""
        if not target.exists():
            return False
        try:
            verify(target)
        except CheckpointError as error:
            say(f"writing {target.name} anew: {error}")
            self.set_aside(target)
            return False
        return True

    def _drop_later(self, step: int) -> None:
        """Set aside checkpoints after the resumed step: damaged, or of a course that this run does not continue."""
        for folder in checkpoints(self.folder):
            if step_of(folder) > step:
                self.set_aside(folder)

    def set_aside(self, folder: Path) -> None:
        """Rename a checkpoint so that it is neither resumed from nor overwritten."""
        number = 0
        while (aside := folder.with_name(f"{folder.name}.aside-{number}")).exists():
            number += 1
        os.replace(folder, aside)
        say(f"{folder}: set aside as {aside.name}; delete it when you do not need it")

    def _prune(self) -> None:
        best = pointed_checkpoint(self.folder, BEST)
        for folder in checkpoints(self.folder)[self.keep_last :]:
            if folder != best and not (folder / PINNED).exists():
                try:
                    remove_folder(folder)
                except OSError as error:  # the new checkpoint is safe; an old one too many is not worth the run
                    say(f"{folder}: cannot be deleted: {os_words(error)}")


@dataclass(frozen=True)
class Snapshot:
    """A state as it is now: full (unsharded) tensors on the main process, copied to the host, and its numbers.

    Attributes:
        learner, average: state dicts of the learner and of its EMA, if one is kept.
        optimizer: state dict of the optimizer.
        numbers: see `TrainState.numbers`.
        weights: names of the learner's parameters.
        frozen: names of tensors that stand in a separate file, see `frozen_tensors`.
    """

    learner: dict[str, Tensor]
    average: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    numbers: dict[str, Any]
    weights: frozenset[str]
    frozen: frozenset[str]

    @classmethod
    def of(cls, state: TrainState) -> Snapshot:
        """Gather the tensors of a state. Every process must call."""
        average = full_state(state.ema.module) if state.ema is not None else None
        tensors = full_state(state.learner), average, full_moments(state.optimizer)
        learner, average, optimizer = _on_host(tensors, {}) if is_main() else tensors
        names = frozenset(name for name, _ in state.learner.named_parameters())
        frozen = frozenset(frozen_tensors(state.learner, learner))
        return cls(learner, average, optimizer, copy.deepcopy(state.numbers()), names, frozen)

    def refuse_non_finite(self) -> None:
        """Raise a `NumericError` if a weight is not finite."""
        states = [self.learner] + ([self.average] if self.average is not None else [])
        wrong = [
            name
            for tensors in states
            for name, tensor in tensors.items()
            if name in self.weights and not bool(torch.isfinite(tensor).all())
        ]
        if wrong:
            raise NumericError(
                f"step {self.numbers['step']}: weights are not finite and were not saved: {', '.join(wrong[:8])}; lower the "
                "learning rate and resume from the last checkpoint"
            )


def frozen_tensors(learner: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of parameters that are not trained, where these are most of the weights (LoRA, a locked tower); else none.

    Teachers are trained, by their students. A tensor that a trained parameter shares is trained.
    """
    taught = parts_of_teachers(learner)
    every = dict(learner.named_parameters())
    still = {name for name, p in every.items() if not p.requires_grad and id(p) not in taught}
    if 2 * sum(every[name].numel() for name in still) < sum(p.numel() for p in every.values()):
        return {}
    return {name: tensor for name, tensor in tensors.items() if name in still}


def _on_host(values: Any, copies: dict[tuple[object, ...], Tensor]) -> Any:
    """Copy all tensors of nested dicts, lists and tuples to the host; a tensor that stands in two places is copied once."""
    if isinstance(values, Tensor):
        key = (values.data_ptr(), values.shape, values.stride(), values.dtype)
        if values.numel() == 0 or key not in copies:
            copies[key] = values.detach().to("cpu", copy=True)
        return copies[key]
    if isinstance(values, dict):
        return {name: _on_host(value, copies) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(_on_host(value, copies) for value in values)
    return values
