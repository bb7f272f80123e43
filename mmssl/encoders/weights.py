"""Load weights files into encoders strictly, whatever their names begin with, and freeze encoders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from mmssl.core.encoder import Encoder, EncoderConfig, freeze
from mmssl.core.errors import CheckpointError
from mmssl.core.start import Start
from mmssl.encoders.weight_files import State, read_state, short_list

Translated = dict[str, tuple[Tensor, tuple[str, ...]]]
"""Name in another library -> tensor, and the names in the file that it is made of."""
Translate = Callable[[State], Translated]
Adapt = Callable[[State], None]
"""Changes tensors by the module's names in place, so that they fit the module; e.g. resamples position tables."""


ADVICE = (
    "Give the encoder the settings of the saved one (width, depth, patch size, vocabulary, ...), or choose another file; partial: "
    "true takes what fits, and leaves the rest at random"
)
"""What to do where weights do not fit."""


def load_and_freeze(
    encoder: Encoder,
    config: EncoderConfig,
    *,
    module: nn.Module | None = None,
    alias: Callable[[str], str] | None = None,
    translate: Translate | None = None,
    ignore: tuple[str, ...] = (),
    fixed: tuple[str, ...] = (),
    adapt: Adapt | None = None,
) -> None:
    """Load `config.weights` into a new encoder and freeze it as the config says.

    Args:
        encoder: as built from scratch.
        config: its config.
        module: the part that takes the weights; the whole encoder by default.
        alias, translate, ignore, fixed, adapt: see `load_strictly`.

    Raises:
        CheckpointError: the file is missing, damaged or made for another encoder.
        ValueError: `unlocked_layers`, `place` or `partial` has no meaning with the other settings.
    """
    if config.weights is not None:
        encoder.start = load_strictly(
            module or encoder,
            config.weights,
            place=config.place,
            alias=alias,
            translate=translate,
            ignore=ignore,
            fixed=fixed,
            adapt=adapt,
            partial=config.partial,
        )
    elif config.place is not None:
        raise ValueError(f"got place {config.place!r} without weights, wanted both; set weights, or leave place out")
    elif config.partial:
        raise ValueError("got partial: true without weights, wanted both; set weights, or leave partial out")
    groups = len(encoder.layers())
    if config.unlocked_layers and not (config.frozen and 0 < config.unlocked_layers <= groups):
        raise ValueError(
            f"got unlocked_layers {config.unlocked_layers} and frozen {str(config.frozen).lower()}, wanted 0 to {groups} (this "
            "encoder's layer groups) with frozen: true. With frozen: false every layer is trained"
        )
    if config.frozen:
        freeze(encoder, config.unlocked_layers)


def load_strictly(
    module: nn.Module,
    path: Path,
    *,
    place: str | None = None,
    alias: Callable[[str], str] | None = None,
    translate: Translate | None = None,
    ignore: tuple[str, ...] = (),
    fixed: tuple[str, ...] = (),
    adapt: Adapt | None = None,
    partial: bool = False,
) -> Start:
    """Load a weights file into a module strictly: every name and every shape must match.

    The names may have any prefix (`encoders.image.`, `model.visual.`): the prefix with the most matching names is taken, so a file
    may hold a whole run, a whole CLIP model, or the encoder alone. Of a network and its average (`ema_model.`) it is the average.

    Args:
        module: gets the weights.
        path: see `read_state`.
        place: the prefix, where it is known; None: search for it.
        alias: turns a name of this module into another library's name of the same tensor.
        translate: makes the tensors of such a library of those of yet another one; empty where the file is none of its files.
        ignore: beginnings of further names in the file that are skipped.
        fixed: ends of names of constants, such as `position_ids`: files need not have them, and those of files are skipped.
        adapt: see `Adapt`.
        partial: what is missing, or has another shape, keeps its initial values, and what is unexpected is skipped.

    Returns:
        What was loaded, resized, and left as it was.

    Raises:
        CheckpointError: names or shapes do not match; says which, and what to do.
    """
    state = read_state(path)
    own = {name: tensor for name, tensor in module.state_dict().items() if not (fixed and name.endswith(fixed))}
    stored: Translated = {name: (tensor, (name,)) for name, tensor in state.items()}
    fits = _fits(stored, own, lambda name: name)
    if alias is not None:
        fits += _fits(stored, own, alias)
    if translate is not None:
        fits += _fits(translate(state), own, alias or (lambda name: name))
    if place is not None:
        # In our encoders an adapter's model is one name deeper, and nowhere else below the place.
        fits = [fit for fit in fits if fit.prefix in (place, f"{place}model.")]
    best = max((fit.rank for fit in fits), default=None)
    found = [fit for fit in fits if fit.rank == best]
    if not found:
        where = "" if place is None else f" under {place!r}"
        raise CheckpointError(
            f"{str(path)!r} has no weights for {type(module).__name__}{where}: got names like {short_list(state)}, wanted names "
            f"like {short_list(own)}"
        )
    places = sorted({fit.prefix for fit in found})
    if len(places) > 1:
        raise CheckpointError(
            f"{str(path)!r} holds weights for {type(module).__name__} at several places, {places}, wanted one; set place "
            "to one of them"
        )
    extra = [
        name for name in found[0].extra if not name.startswith(ignore or "\0") and not name.endswith(fixed or "\0")
    ]
    fit = replace(found[0], extra=tuple(extra))
    return _load(module, own, fit, path, frozenset(state), adapt, partial)


@dataclass(frozen=True)
class _Fit:
    """Match between a file's names under one prefix and a module's names."""

    prefix: str
    state: Translated  # by the module's names
    extra: tuple[str, ...]  # names under the prefix that the module lacks
    shapes: int  # number of equal shapes

    @property
    def rank(self) -> tuple[int, int, int, bool]:
        return len(self.state), self.shapes, -len(self.extra), "ema" in self.prefix.replace("_", ".").split(".")


def _fits(state: Translated, own: Mapping[str, Tensor], alias: Callable[[str], str]) -> list[_Fit]:
    known = {alias(name): name for name in own}
    prefixes = Counter(
        key[:cut]
        for key in state
        for cut in _cuts(key)
        if key[cut:] in known  # every place at which a name may begin
    )
    fits = []
    for prefix in prefixes:
        under = {key.removeprefix(prefix): found for key, found in state.items() if key.startswith(prefix)}
        fitting = {known[key]: found for key, found in under.items() if key in known}
        equal = sum(tensor.shape == own[name].shape for name, (tensor, _) in fitting.items())
        fits.append(_Fit(prefix, fitting, tuple(key for key in under if key not in known), equal))
    return fits


def _cuts(key: str) -> list[int]:
    return [0, *(position + 1 for position, letter in enumerate(key) if letter == ".")]


def _load(
    module: nn.Module,
    own: Mapping[str, Tensor],
    fit: _Fit,
    path: Path,
    stored: frozenset[str],
    adapt: Adapt | None,
    partial: bool,
) -> Start:
    state = {name: tensor for name, (tensor, _) in fit.state.items()}
    before = dict(state)
    if adapt is not None:
        adapt(state)
    missing = [name for name in own if name not in state]
    shapes = {
        name: f"{name}: got {list(state[name].shape)}, wanted {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    }
    if not partial and (missing or fit.extra or shapes):
        lists = (("missing", missing), ("unexpected", fit.extra), ("of another shape", shapes.values()))
        wrong = "".join(f"\n  {title} ({len(names)}): {short_list(names)}" for title, names in lists if names)
        where = f" (names under {fit.prefix!r})" if fit.prefix else ""
        raise CheckpointError(f"{str(path)!r}{where} was not made for this {type(module).__name__}:{wrong}\n{ADVICE}")
    loaded = {name: tensor for name, tensor in state.items() if name not in shapes}
    module.load_state_dict({**module.state_dict(), **loaded})
    resized = {
        name: f"{list(before[name].shape)} to {list(tensor.shape)}"
        for name, tensor in loaded.items()
        if tensor.shape != before[name].shape
    }
    return Start(
        str(path),
        tuple(name for name in loaded if name not in resized),
        resized,
        (*missing, *shapes),
        stored,
        frozenset(name for key in loaded for name in fit.state[key][1]),
    )
