"""Entry points: modalities, encoders, objectives and evaluators of other installed packages.

A package names its configs in the groups `mmssl.modalities`, `mmssl.encoders`, `mmssl.objectives` and `mmssl.evaluators`, as in

    [project.entry-points."mmssl.modalities"]
    points = "their_package.points:PointsConfig"

and recipes take them like those of this package, by their `kind`, and validate them as strictly.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Literal, NamedTuple, get_args, get_origin

from mmssl.core.config import Config

log = logging.getLogger(__name__)


class Plugin(NamedTuple):
    """One entry point.

    Attributes:
        group, name: of the entry point. distribution: the installed package that brings it, with its version.
        config: the class; None: unusable, `fault` says why.
    """

    group: str
    name: str
    distribution: str
    config: type[Config] | None
    fault: str = ""


@cache
def discover(group: str, base: type[Config], shipped: tuple[type[Config], ...]) -> tuple[Plugin, ...]:
    """The entry points of a group, in the order of their names. Those that cannot be used are logged, once in a process.

    Args:
        group: such as "mmssl.encoders".
        base: what their configs must be.
        shipped: configs whose kinds are taken.
    """
    taken = {kind_of(config): "mmssl" for config in shipped}
    found = []
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        plugin = _load(point, base, taken)
        if plugin.config is None:
            log.warning("entry point %r of %s is left out: %s", plugin.name, plugin.distribution, plugin.fault)
        else:
            taken[kind_of(plugin.config)] = plugin.distribution
        found.append(plugin)
    return tuple(found)


def configs(group: str, base: type[Config], shipped: tuple[type[Config], ...]) -> tuple[type[Config], ...]:
    """The configs of other packages that can be used, see `discover`."""
    return tuple(plugin.config for plugin in discover(group, base, shipped) if plugin.config is not None)


def kind_of(config: type[Config]) -> str | None:
    """The `kind` of a config, where it is a Literal with one value that is its default."""
    field = config.model_fields.get("kind")
    if field is None or get_origin(field.annotation) is not Literal or get_args(field.annotation) != (field.default,):
        return None
    return str(field.default)


def _load(point: EntryPoint, base: type[Config], taken: dict[str | None, str]) -> Plugin:
    distribution = f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"

    def refused(fault: str) -> Plugin:
        return Plugin(point.group, point.name, distribution, None, fault)

    try:
        config = point.load()
    except Exception as error:  # whatever an import raises is the finding
        return refused(f"{point.value} cannot be imported: {type(error).__name__}: {error}")
    if not (isinstance(config, type) and issubclass(config, base)):
        return refused(f"got {point.value}, wanted a subclass of {base.__module__}.{base.__qualname__}")
    if not Config.model_config.items() <= config.model_config.items():
        return refused(
            f"{point.value} loosens `model_config`, so mistakes in recipes would pass unnoticed: remove that setting"
        )
    kind = kind_of(config)
    if kind is None:
        return refused(
            f'{point.value} has no kind: wanted a field such as kind: Literal["{point.name}"] = "{point.name}"'
        )
    if kind in taken:
        return refused(f"kind {kind!r} of {point.value} is taken by {taken[kind]}: choose another kind")
    return Plugin(point.group, point.name, distribution, config)
