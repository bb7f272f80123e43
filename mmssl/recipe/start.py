"""Initialise a run from a trained model: its encoders, heads, temperatures and teachers; and say what was found."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmssl.core.config import Config
from mmssl.core.encoder import Encoder, EncoderConfig
from mmssl.core.errors import CheckpointError
from mmssl.core.objective import Learner
from mmssl.core.start import Start
from mmssl.core.teacher import teachers_in
from mmssl.encoders.adapters.hubs import local_copy
from mmssl.encoders.weight_files import FOLDER_FILES, read_state, short_list
from mmssl.encoders.weights import Translated
from mmssl.interop.shared_space import shared_space
from mmssl.training.checkpoints.manifest import MANIFEST
from mmssl.training.checkpoints.read import read_numbers, resolve
from mmssl.training.checkpoints.tensors import load_exactly

OURS = "objective."
ADVICE = (
    "give `objective` the settings of the model that was saved (embedding, heads, pairs, loss), or `weights` another file; "
    "partial: true takes what fits"
)


def weights_file(path: Path) -> Path:
    """The weights of a path: of a run or checkpoint folder, its EMA weights or else its weights; a model folder or file as it is.

    Raises:
        CheckpointError: a folder without a valid checkpoint, or no such file.
    """
    path = local_copy(path)
    if path.is_dir():
        if is_model_folder(path):
            return path
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


def is_model_folder(path: Path) -> bool:
    """Whether a folder is another library's model: weights without the manifest of our checkpoints."""
    return not (path / MANIFEST).exists() and any((path / name).exists() for name in FOLDER_FILES)


def places(path: Path, encoders: Iterable[str]) -> dict[str, str]:
    """Modality -> prefix of its encoder's tensor names in a file of `weights_file`; empty for other libraries' files.

    Raises:
        CheckpointError: the file cannot be read.
    """
    begin = {name: f"encoders.{name}." for name in encoders}
    state = read_state(path)
    return {name: place for name, place in begin.items() if any(key.startswith(place) for key in state)}


def encoder_start(path: Path, encoder: str | None) -> tuple[Path, str | None]:
    """Weights of one encoder's source (see `weights_file`), and the prefix of its tensors in them; None: to be found.

    They are those of the network that a run evaluates: the encoder, or its teacher where the objective says so (DINO).

    Args:
        path: the source.
        encoder: its name in a run; None: that of a run with one encoder.

    Raises:
        CheckpointError: a folder without a valid checkpoint.
    """
    file = weights_file(path)
    if not (file.parent / MANIFEST).exists() or not path.is_dir():
        return file, None
    if encoder is None:
        names = {key.split(".")[1] for key in read_state(file) if key.startswith("encoders.")}
        if len(names) != 1:
            return file, None
        (encoder,) = names
    evaluated = read_numbers(file.parent).get("evaluated", {})
    return file, f"teachers.{encoder}.network." if evaluated.get(encoder) == "teacher" else f"encoders.{encoder}."


def change_encoders(value: Any, change: Callable[[EncoderConfig], EncoderConfig]) -> Any:
    """Change the settings of all encoders in a config, at any depth: those inside of others first."""
    if isinstance(value, Config):
        inside = {name: change_encoders(item, change) for name, item in value}
        value = value.model_copy(
            update={name: item for name, item in inside.items() if item is not getattr(value, name)}
        )
        return change(value) if isinstance(value, EncoderConfig) else value
    if type(value) is dict:
        return {name: change_encoders(item, change) for name, item in value.items()}
    return tuple(change_encoders(item, change) for item in value) if type(value) is tuple else value


def inner_start(config: EncoderConfig) -> EncoderConfig:
    """The settings of an encoder inside of another part, with the weights and their place in what `weights` names."""
    if config.weights is None:
        return config
    file, place = encoder_start(config.weights, None)
    return config.model_copy(update={"weights": file, "place": config.place or place})


def from_scratch(config: EncoderConfig) -> EncoderConfig:
    """The settings of an encoder without initial weights, whose file may be gone."""
    return config.model_copy(update={"weights": None, "place": None, "partial": False})


def start_learner(learner: Learner, path: Path, encoders: Collection[str], *, partial: bool = False) -> None:
    """Load heads, temperatures and teachers from a source of `weights_file`, ours or another library's two-tower model.

    A teacher that the file does not have starts as its student.

    Args:
        learner: its encoders have their weights already.
        path: the source.
        encoders: those that come from the file: their teachers do too.
        partial: what the file lacks, or has in another shape, keeps its initial values.

    Raises:
        CheckpointError: the tensors do not match the objective; lists the differences.
    """
    state, objective = read_state(path), learner.objective
    found: Translated = {name: (x, (OURS + name,)) for name, x in _part(state, OURS).items()}
    found = found or _foreign(state, learner, partial)
    for name, teacher in teachers_in(objective).items():
        student = next(other for other, module in objective.named_modules() if module is teacher.student)
        if not any(key.startswith(f"{name}.") for key in found):
            found |= {
                f"{name}.network.{key.removeprefix(f'{student}.')}": entry
                for key, entry in found.items()
                if key.startswith(f"{student}.")
            }
    wanted = objective.state_dict()
    if partial:
        found = {
            name: entry for name, entry in found.items() if name in wanted and entry[0].shape == wanted[name].shape
        }
    tensors = {name: x for name, (x, _) in found.items()}
    load_exactly(objective, wanted | tensors if partial else tensors, path, ADVICE)
    started = tuple(f"{name}." for name in _started_inside(objective))
    objective.start = Start(
        str(path),
        exact=tuple(name for name in wanted if name in found),
        fresh=tuple(name for name in wanted if name not in found and not name.startswith(started)),
        stored=frozenset(state),
        taken=frozenset(name for _, names in found.values() for name in names),
    )
    for name, teacher in teachers_in(learner.teachers).items():
        saved = _part(state, f"teachers.{name}.") if name in encoders else {}
        if saved:
            load_exactly(teacher, saved, path, ADVICE)


def start_lines(learner: Learner, seed: int) -> list[str]:
    """Where the initial weights come from, as lines of a table: exact, resized and random tensors of each part; and unused."""
    rows = list(_rows(learner))
    starts = [start for _, start in rows if start.source]
    if not starts:
        return [f"initial weights: all at random (seed {seed})"]
    width = max(len(name) for name, _ in rows)
    lines = [f"{'initial weights':{width}}   exact  resized  random  from"]
    for name, start in rows:
        counts = f"{len(start.exact):>7} {len(start.resized):>8} {len(start.fresh):>7}"
        lines.append(f"{name:{width}} {counts}  {start.source or '-'}")
    for name, start in rows:
        resized = [f"{key} {shapes}" for key, shapes in start.resized.items()]
        lines += [f"resized in {name}: {short_list(resized)}"] if resized else []
        if start.fresh and (start.source or name == "objective"):
            lines.append(f"random in {name}: {short_list(start.fresh)}")
    for source in dict.fromkeys(start.source for start in starts):
        same = [start for start in starts if start.source == source]
        stored = frozenset[str]().union(*(start.stored for start in same))
        unused = sorted(stored.difference(*(start.taken for start in same)))
        lines += [f"unused in {source} ({len(unused)}): {short_list(unused)}"] if unused else []
    return lines


def _rows(learner: Learner) -> Iterator[tuple[str, Start]]:
    """Each encoder, and the objective, with its start; encoders inside that start from elsewhere have separate rows."""
    for name, module in [
        *((f"encoders.{name}", e) for name, e in learner.encoders.items()),
        ("objective", learner.objective),
    ]:
        inside = _started_inside(module)
        if isinstance(start := module.start, Start):
            yield name, start
            inside = {
                sub: part for sub, part in inside.items() if not any(x.startswith(f"{sub}.") for x in start.exact)
            }
        else:
            own = [key for key in module.state_dict() if not key.startswith(tuple(f"{sub}." for sub in inside) or "\0")]
            if own or not inside:
                yield name, Start("", fresh=tuple(own))
        yield from ((f"{name}.{sub}", start) for sub, start in inside.items())


def _started_inside(module: nn.Module) -> dict[str, Start]:
    """Encoders inside a module that start from weights which their settings name, for example those that make targets."""
    parts = ((name, part) for name, part in module.named_modules() if part is not module and isinstance(part, Encoder))
    return {name: part.start for name, part in parts if part.start}


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _foreign(state: dict[str, Tensor], learner: Learner, partial: bool) -> Translated:
    """Heads, temperature and bias of another library's two-tower model, by the names of the objective's tensors."""
    space, wanted = shared_space(state), learner.objective.state_dict()
    scales = [name for name in wanted if name.startswith("logit_scale.")]
    if len(scales) != 1 and not partial:
        raise CheckpointError(
            f"weights: a CLIP checkpoint has one temperature, and the objective has {len(scales)}: it fits the objective clip "
            "with one pair; for others give each encoder its `weights`"
        )
    roles = {name: "text" if _reads_ids(encoder) else "image" for name, encoder in learner.encoders.items()}
    found = {f"projections.{name}.linear.weight": space[role] for name, role in roles.items() if role in space}
    for name in wanted:
        kind = name.split(".")[0]
        if kind in ("logit_scale", "logit_bias") and kind in space:  # a bias is SigLIP's, for the loss `sigmoid`
            found[name] = space[kind]
    # A residual network's projection lies in its attention pooling; its head is then the identity, which has no weight.
    return {name: entry for name, entry in found.items() if name in wanted}


def _reads_ids(encoder: nn.Module) -> bool:
    return isinstance(encoder, Encoder) and encoder.token_ids is not None
