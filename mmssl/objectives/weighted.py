"""Weighted sum of objectives that share encoders, e.g. SLIP = CLIP + SimCLR."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Generic, Literal, TypeVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from mmssl.core.batch import Batch, Needs, merge_needs
from mmssl.core.config import Config
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.forward import Network
from mmssl.core.objective import Headline, Latents, LossOutput, Objective, ParameterRule
from mmssl.core.plan import Plan
from mmssl.core.schedules import Bounds, Schedule, Scheduled
from mmssl.core.teacher import Momentum
from mmssl.objectives.common import Name, ObjectiveConfig

Kind = TypeVar("Kind", bound=ObjectiveConfig)
Value = TypeVar("Value")


class WeightedPart(Config, Generic[Kind]):
    """Settings of one objective of a weighted sum: the objective and its weight.

    Attributes:
        weight: factor of the objective's losses, a number above 0 or a schedule.
        objective: any objective except a weighted sum.
    """

    weight: Annotated[Scheduled, Bounds(ge=0)] = 1.0
    objective: Kind

    @field_validator("weight")
    @classmethod
    def _has_an_effect(cls, weight: Scheduled) -> Scheduled:
        if weight == 0:
            raise ValueError("got 0, wanted above 0: with 0 the objective has no effect; remove it, or give a schedule")
        return weight


class WeightedConfig(ObjectiveConfig, Generic[Kind]):
    """Settings of a weighted sum of named objectives; see `WeightedObjective`.

    Generic over the union of allowed objectives, which is defined where all objectives are known:
    `WeightedConfig[Annotated[ClipConfig | SimClrConfig, Field(discriminator="kind")]]`.

    Attributes:
        objectives: name -> weight and objective; names are the prefixes of losses and parameters.
    """

    kind: Literal["weighted"] = "weighted"
    objectives: dict[Name, WeightedPart[Kind]] = Field(min_length=1)

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> WeightedObjective:
        """Build the objective for these encoders."""
        children = {
            name: part.objective.build(encoders, plan.below(f"objectives.{name}.objective"))
            for name, part in self.objectives.items()
        }
        weights = {
            name: plan.schedule(part.weight, f"objectives.{name}.weight") for name, part in self.objectives.items()
        }
        return WeightedObjective(children, weights)


class WeightedObjective(Objective):
    """Weighted sum of the losses of its children; losses and metrics of child `c` are named `c/...`.

    Args:
        children: name -> objective.
        weights: name -> factor of the child's terms, by step; one that changes is logged as "c/weight".

    Raises:
        ValueError: two children have a head for the same modality, and evaluators need exactly one.
    """

    def __init__(self, children: Mapping[str, Objective], weights: Mapping[str, Schedule | float]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(dict(children))
        self.weights = {name: Schedule.of(weight) for name, weight in weights.items()}
        self.reduction = max(child.reduction for child in children.values())
        self.least_samples = max(child.least_samples for child in children.values())
        self.accepts_absent = all(child.accepts_absent for child in children.values())
        owner: dict[str, str] = {}
        for name, child in children.items():
            for modality in child.heads():
                if modality in owner:
                    raise ValueError(
                        f"{owner[modality]!r} and {name!r} both have a head for {modality!r}, and evaluators need exactly one; "
                        "put their pairs into one objective"
                    )
                owner[modality] = name

    def needs(self) -> Needs:
        """Views of all children; views of equal kind are shared."""
        return merge_needs(*[child.needs() for _, child in self._children()])

    def requires(self) -> Mapping[str, frozenset[str]]:
        """Capabilities that any child needs."""
        merged: dict[str, frozenset[str]] = {}
        for _, child in self._children():
            for modality, wanted in child.requires().items():
                merged[modality] = merged.get(modality, frozenset()) | wanted
        return merged

    def hidden_layers(self) -> Mapping[Network, Mapping[str, int]]:
        """The most that any child reads."""
        most: dict[Network, dict[str, int]] = {}
        for _, child in self._children():
            for network, layers in child.hidden_layers().items():
                for modality, count in layers.items():
                    found = most.setdefault(network, {})
                    found[modality] = max(found.get(modality, 0), count)
        return most

    def teachers(self) -> Mapping[str, Momentum]:
        """Teachers of all children, which share them.

        Raises:
            ValueError: two children want a teacher of one modality with different momentum.
        """
        merged: dict[str, Momentum] = {}
        owner: dict[str, str] = {}
        for name, child in self._children():
            for modality, momentum in child.teachers().items():
                if merged.setdefault(modality, momentum) != momentum:
                    raise ValueError(
                        f"{owner[modality]!r} and {name!r} ask for a teacher of {modality!r} with different momentum, "
                        f"{merged[modality]} and {momentum}; they share one teacher: give both the same momentum"
                    )
                owner.setdefault(modality, name)
        return merged

    def evaluated(self) -> Mapping[str, Network]:
        """The teacher of a modality if every child that reads the modality says so."""
        votes: dict[str, set[Network]] = {}
        for _, child in self._children():
            for modality in child.needs():
                votes.setdefault(modality, set()).add(child.evaluated().get(modality, "student"))
        return {modality: "teacher" for modality, networks in votes.items() if networks == {"teacher"}}

    def heads(self) -> Mapping[str, nn.Module]:
        """Heads of all children."""
        return {modality: head for _, child in self._children() for modality, head in child.heads().items()}

    def parameter_groups(self) -> Mapping[str, ParameterRule]:
        """Rules of all children."""
        return {
            f"parts.{name}.{prefix}": rule
            for name, child in self._children()
            for prefix, rule in child.parameter_groups().items()
        }

    def check_views(self, batch: Batch, ctx: StepContext) -> None:
        """Check the views of all children."""
        for _, child in self._children():
            child.check_views(batch, ctx)

    def logit_scales(self) -> Mapping[tuple[str, str], Tensor]:
        """Logit scales of the pairs of all children."""
        return {pair: scale for _, child in self._children() for pair, scale in child.logit_scales().items()}

    def logit_biases(self) -> Mapping[tuple[str, str], Tensor]:
        """Those of all children."""
        return {pair: bias for _, child in self._children() for pair, bias in child.logit_biases().items()}

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Latents of all children, "child/name"."""
        return {
            f"{name}/{latent}": x for name, child in self._children() for latent, x in child.encode(batch, ctx).items()
        }

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """Loss terms and metrics of all children, "child/name"; terms are multiplied by their weight."""
        terms: dict[str, Tensor] = {}
        measures: dict[str, Callable[[], Mapping[str, Tensor]]] = {}
        kept: Latents = {}
        for name, child in self._children():
            out = child.criterion(_of_child(latents, name), ctx)
            weight = self.weights[name](ctx.step)
            terms |= {f"{name}/{term}": weight * x for term, x in out.terms.items()}
            measures[name] = out.measure
            kept |= {f"{name}/{latent}": x for latent, x in out.kept.items()}
        like = next(iter(terms.values())).detach()
        weights = {name: weight(ctx.step) for name, weight in self.weights.items() if weight.changes}

        def measure() -> dict[str, Tensor]:
            own = {f"{name}/weight": torch.full_like(like, weight) for name, weight in weights.items()}
            return own | {f"{name}/{metric}": x for name, make in measures.items() for metric, x in make().items()}

        return LossOutput(terms, measure, kept)

    def monitored(self) -> Mapping[str, str]:
        """Latents of all children, "child/name"."""
        return {
            f"{name}/{shown}": f"{name}/{latent}"
            for name, child in self._children()
            for shown, latent in child.monitored().items()
        }

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """Figures of all children, "child figure", and the chance loss of the sum if every child has one.

        Otherwise each child's loss is shown with the child's chance loss.
        """
        parts = {name: child.headline(_of_child(scalars, name)) for name, child in self._children()}
        weights = {name: scalars.get(f"{name}/weight", weight.start) for name, weight in self.weights.items()}
        chances = {name: weights[name] * part.chance for name, part in parts.items() if part.chance is not None}
        known = len(chances) == len(parts)
        figures: dict[str, float] = {}
        for name, part in parts.items():
            if not known:
                terms = [value for key, value in scalars.items() if key.startswith(f"loss/{name}/")]
                figures |= {f"{name} loss": sum(terms)} if terms else {}
                figures |= {f"{name} chance": chances[name]} if name in chances else {}
            figures |= {f"{name} {figure}": value for figure, value in part.figures.items()}
        return Headline(sum(chances.values()) if known else None, figures)

    def before_update(self, ctx: StepContext) -> None:
        """Call `before_update` of all children, in order."""
        for _, child in self._children():
            child.before_update(ctx)

    def after_update(self, latents: Latents, ctx: StepContext) -> None:
        """Call `after_update` of all children, in order, each with its latents."""
        for name, child in self._children():
            child.after_update(_of_child(latents, name), ctx)

    def refresh_every(self) -> int | None:
        """The greatest common divisor of the children's intervals: at each multiple those that are due are refreshed."""
        return math.gcd(*(child.refresh_every() or 0 for _, child in self._children())) or None

    def refresh_needs(self) -> Needs:
        """Views of all children that are refreshed."""
        return merge_needs(*[child.refresh_needs() for _, child in self._children() if child.refresh_every()])

    def refresh(self, batches: Iterable[Batch], ctx: StepContext) -> list[str]:
        """Call `refresh` of the children that are due, in order; each iterates over the batches."""
        return [
            f"parts.{name}.{parameter}"
            for name, child in self._children()
            if (every := child.refresh_every()) and ctx.step % every == 0
            for parameter in child.refresh(batches, ctx)
        ]

    def _children(self) -> Iterator[tuple[str, Objective]]:
        for name, child in self.parts.items():
            assert isinstance(child, Objective)
            yield name, child


def _of_child(values: Mapping[str, Value], name: str) -> dict[str, Value]:
    prefix = f"{name}/"
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
