"""Initialise a run from a trained model: its encoders, heads, temperatures and teachers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from torch import Tensor

from mmssl.core.errors import CheckpointError
from mmssl.core.objective import Learner, Objective
from mmssl.core.teacher import teachers_in
from mmssl.encoders.weights import read_state
from mmssl.interop.open_clip import from_open_clip
from mmssl.training.checkpoints.read import read_numbers, resolve
from mmssl.training.checkpoints.tensors import load_exactly

OURS = "objective."
ADVICE = "give `objective` the settings of the model that was saved (embedding, heads, pairs, loss), or `weights` another file"


def weights_file(path: Path) -> Path:
    """The weights file of a path: of a run or checkpoint folder, its EMA weights or else its weights.

    Raises:
        CheckpointError: a folder without a valid checkpoint, or no such file.
    """
    if path.is_dir():
        folder = resolve(path)
        averaged = folder / "ema.safetensors"
        file = averaged if averaged.exists() else folder / "model.safetensors"
        if any(".lora_A." in name for name in read_state(file)):
            raise CheckpointError(
                f"weights: got {str(path)!r}, which has LoRA adapters; merge them with `mmssl export {path} --to safetensors`, and "
                "give the file that it writes"
            )
        return file
    if not path.is_file():
        raise CheckpointError(f"weights: got {str(path)!r}, wanted a run folder, a checkpoint folder or a weights file")
    return path


def places(path: Path, encoders: Iterable[str]) -> dict[str, str]:
    """Modality -> prefix of its encoder's tensor names in a file of `weights_file`; empty for other libraries' files.

    Raises:
        CheckpointError: the file cannot be read.
    """
    begin = {name: f"encoders.{name}." for name in encoders}
    state = read_state(path)
    return {name: place for name, place in begin.items() if any(key.startswith(place) for key in state)}


def encoder_start(folder: Path, encoder: str) -> tuple[Path, str]:
    """Weights file of a run or checkpoint folder, and the prefix of one encoder's tensors in it.

    They are those of the network that the run evaluates: the encoder, or its teacher where the objective says so (DINO).

    Raises:
        CheckpointError: a folder without a valid checkpoint.
    """
    file = weights_file(folder)
    evaluated = read_numbers(file.parent).get("evaluated", {})
    return file, f"teachers.{encoder}.network." if evaluated.get(encoder) == "teacher" else f"encoders.{encoder}."


def start_learner(learner: Learner, path: Path, encoders: Collection[str]) -> None:
    """Load heads, temperatures and teachers from a file of `weights_file`: an mmssl checkpoint, or open_clip's of CLIP.

    A teacher that the file does not have starts as its student.

    Args:
        learner: its encoders have their weights already.
        path: the file.
        encoders: those that come from the file: their teachers do too.

    Raises:
        CheckpointError: the tensors do not match the objective; lists the differences.
    """
    state, objective = read_state(path), learner.objective
    tensors = _part(state, OURS) or _from_open_clip(state, objective)
    for name, teacher in teachers_in(objective).items():
        student = next(other for other, module in objective.named_modules() if module is teacher.student)
        if not _part(tensors, f"{name}."):
            tensors |= {f"{name}.network.{key}": x for key, x in _part(tensors, f"{student}.").items()}
    load_exactly(objective, tensors, path, ADVICE)
    for name, teacher in teachers_in(learner.teachers).items():
        saved = _part(state, f"teachers.{name}.") if name in encoders else {}
        if saved:
            load_exactly(teacher, saved, path, ADVICE)


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _from_open_clip(state: dict[str, Tensor], objective: Objective) -> dict[str, Tensor]:
    clip = from_open_clip(state)
    wanted = objective.state_dict()
    tensors = {f"projections.{name}.linear.weight": weight for name, weight in clip["heads"].items()}
    scales = [name for name in wanted if name.startswith("logit_scale.")]
    if len(scales) != 1:
        raise CheckpointError(
            f"weights: a CLIP checkpoint has one temperature, and the objective has {len(scales)}: it fits the objective clip "
            "with one pair; for others give each encoder its `weights`"
        )
    tensors[scales[0]] = clip["logit_scale"]
    if clip["logit_bias"] is not None:  # SigLIP's, for the loss `sigmoid`
        tensors |= {name: clip["logit_bias"] for name in wanted if name.startswith("logit_bias.")}
    # A residual network's projection lies in its attention pooling; its head is then the identity, which has no weight.
    return {name: x for name, x in tensors.items() if name in wanted}
