"""Load weights from safetensors or torch files, without pickled code, and freeze encoders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mmssl.core.encoder import Encoder, EncoderConfig, freeze
from mmssl.core.errors import CheckpointError

State = dict[str, Tensor]


def load_and_freeze(
    encoder: Encoder,
    config: EncoderConfig,
    *,
    module: nn.Module | None = None,
    alias: Callable[[str], str] | None = None,
    ignore: tuple[str, ...] = (),
    adapt: Callable[[State], None] | None = None,
) -> None:
    """Load `config.weights` into a new encoder and freeze it as the config says.

    Args:
        encoder: as built from scratch.
        config: its config.
        module: the part that takes the weights; the whole encoder by default.
        alias, ignore, adapt: see `load_weights`.

    Raises:
        CheckpointError: the file is missing, damaged or made for another encoder.
        ValueError: `unlocked_layers` or `place` has no meaning with the other settings.
    """
    if config.weights is not None:
        load_weights(module or encoder, config.weights, place=config.place, alias=alias, ignore=ignore, adapt=adapt)
    elif config.place is not None:
        raise ValueError(f"got place {config.place!r} without weights, wanted both; set weights, or leave place out")
    groups = len(encoder.layers())
    if config.unlocked_layers and not (config.frozen and 0 < config.unlocked_layers <= groups):
        raise ValueError(
            f"got unlocked_layers {config.unlocked_layers} and frozen {str(config.frozen).lower()}, wanted 0 to {groups} (this "
            "encoder's layer groups) with frozen: true. With frozen: false every layer is trained"
        )
    if config.frozen:
        freeze(encoder, config.unlocked_layers)


def read_state(path: Path) -> State:
    """Read a state dict from a file: safetensors, or one that `torch.save` wrote.

    A dict that holds the state dict under "state_dict" or "model" is unwrapped. No code in the file is run.

    Raises:
        CheckpointError: the file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise CheckpointError(f"got weights {str(path)!r}, wanted a .safetensors or .pt file: there is no such file")
    try:
        if path.suffix == ".safetensors":
            beside = path.with_name("frozen.safetensors")  # of our checkpoints, where most weights are not trained
            frozen = load_file(beside) if path.stem in ("model", "ema") and beside.is_file() else {}
            return {**frozen, **load_file(path)}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files end in exceptions of a dozen kinds
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if "weights_only" in reason:  # torch advises to run the code in the file
            reason = "torch finds no tensors, or other objects beside tensors"
        raise CheckpointError(
            f"cannot read weights from {str(path)!r}: {reason}. Wanted a safetensors file or a saved state dict of tensors only. "
            "Files with program code (whole models, TorchScript archives) are refused; save their state_dict() instead"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if isinstance(content, dict):
        state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
        if state:
            return state
    raise CheckpointError(
        f"got {_kind(content)} in {str(path)!r}, wanted tensors by name: a state dict, or a dict with one under 'state_dict'"
    )


def load_weights(
    module: nn.Module,
    path: Path,
    *,
    place: str | None = None,
    alias: Callable[[str], str] | None = None,
    ignore: tuple[str, ...] = (),
    adapt: Callable[[State], None] | None = None,
) -> None:
    """Load a weights file into a module strictly: every name and every shape must match.

    The names may have any prefix (`encoders.image.`, `module.visual.`): the prefix with the most matching names is taken, so a file
    may hold a whole run, a whole CLIP model, or the encoder alone.

    Args:
        module: gets the weights.
        path: see `read_state`.
        place: the prefix, where it is known; None: search for it.
        alias: turns a name of this module into another library's name of the same tensor.
        ignore: beginnings of further names in the file that are skipped.
        adapt: changes the tensors (by the module's names) in place to fit the module, e.g. resamples position tables.

    Raises:
        CheckpointError: names or shapes do not match; says which, and what to do.
    """
    state = read_state(path)
    own = module.state_dict()
    fits = _fits(state, own, lambda name: name)
    if alias is not None:
        fits += _fits(state, own, alias)
    if place is not None:
        # In our encoders an adapter's model is one name deeper, and nowhere else below the place.
        fits = [fit for fit in fits if fit.prefix in (place, f"{place}model.")]
    best = max((fit.rank for fit in fits), default=None)
    found = [fit for fit in fits if fit.rank == best]
    if not found:
        where = "" if place is None else f" under {place!r}"
        raise CheckpointError(
            f"{str(path)!r} has no weights for {type(module).__name__}{where}: got names like {_short(state)}, wanted names like "
            f"{_short(own)}"
        )
    places = sorted({fit.prefix for fit in found})
    if len(places) > 1:
        raise CheckpointError(
            f"{str(path)!r} holds weights for {type(module).__name__} at several places, {places}, wanted one; set place "
            "to one of them"
        )
    _load(module, found[0], path, ignore, adapt)


@dataclass(frozen=True)
class _Fit:
    """Match between a file's names under one prefix and a module's names."""

    prefix: str
    state: State  # by the module's names
    extra: tuple[str, ...]  # names under the prefix that the module lacks
    shapes: int  # number of equal shapes

    @property
    def rank(self) -> tuple[int, int, int]:
        return len(self.state), self.shapes, -len(self.extra)


def _fits(state: State, own: Mapping[str, Tensor], alias: Callable[[str], str]) -> list[_Fit]:
    known = {alias(name): name for name in own}
    prefixes = Counter(
        key[:cut]
        for key in state
        for cut in _cuts(key)
        if key[cut:] in known  # every place at which a name may begin
    )
    fits = []
    for prefix in prefixes:
        under = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        fitting = {known[key]: tensor for key, tensor in under.items() if key in known}
        equal = sum(tensor.shape == own[name].shape for name, tensor in fitting.items())
        fits.append(_Fit(prefix, fitting, tuple(key for key in under if key not in known), equal))
    return fits


def _cuts(key: str) -> list[int]:
    return [0, *(position + 1 for position, letter in enumerate(key) if letter == ".")]


def _load(
    module: nn.Module, fit: _Fit, path: Path, ignore: tuple[str, ...], adapt: Callable[[State], None] | None
) -> None:
    own = module.state_dict()
    state = dict(fit.state)
    if adapt is not None:
        adapt(state)
    missing = [name for name in own if name not in state]
    unexpected = [name for name in fit.extra if not name.startswith(ignore)] if ignore else list(fit.extra)
    shapes = [
        f"{name}: got {list(state[name].shape)}, wanted {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if missing or unexpected or shapes:
        lists = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        wrong = "".join(f"\n  {title} ({len(names)}): {_short(names)}" for title, names in lists if names)
        where = f" (names under {fit.prefix!r})" if fit.prefix else ""
        raise CheckpointError(
            f"{str(path)!r}{where} was not made for this {type(module).__name__}:{wrong}\n"
            "Give the encoder the settings of the saved one (width, depth, patch size, vocabulary, ...), or choose another file."
        )
    module.load_state_dict(state)


def _short(names: Iterable[str], show: int = 5) -> str:
    names = list(names)
    more = f", and {len(names) - show} more" if len(names) > show else ""
    return ", ".join(names[:show]) + more


def _kind(content: object) -> str:
    return f"a dict with {_short(map(str, content))}" if isinstance(content, dict) else f"a {type(content).__name__}"
