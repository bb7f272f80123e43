"""Pairs of modalities of a contrastive objective: their settings in a recipe, and the resolved values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, PositiveFloat, SerializerFunctionWrapHandler, model_serializer, model_validator

from mmssl.core.config import Config
from mmssl.objectives.common import Name

PairLoss = Literal["info_nce", "sigmoid", "predictive"]
Negatives = Mapping[str, tuple[str, ...]]
"""Modality -> kinds of views with its hard negatives."""
SIGMOID_BIAS = -10.0
"""Default initial bias of a sigmoid loss: SigLIP's."""


@dataclass(frozen=True)
class Pair:
    """Two modalities to align, and the settings of their loss.

    Attributes:
        first, second: the modalities; both directions belong to the pair.
        temperature: initial value; the logit scale starts at ln(1 / temperature). "predictive" has none.
        weight: factor of the pair's loss.
        loss: "info_nce" (softmax over candidates, CLIP), "sigmoid" (binary cross entropy of each pair of samples, SigLIP) or
            "predictive" (each predicts the other, LeVLJEPA).
        bias: initial logit bias; "sigmoid" only.
        negatives: modality -> kinds of views with its hard negatives; not for "predictive".
    """

    first: str
    second: str
    temperature: float = 1.0
    weight: float = 1.0
    loss: PairLoss = "info_nce"
    bias: float = SIGMOID_BIAS
    negatives: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """Name of the pair in parameters and losses: "first-second"."""
        return f"{self.first}-{self.second}"


def modalities_of(pairs: Sequence[Pair]) -> list[str]:
    """Every modality of the pairs once, in order of first appearance."""
    return list(dict.fromkeys(modality for pair in pairs for modality in (pair.first, pair.second)))


class PairConfig(Config):
    """Settings of a pair of modalities: `[image, text]`, or `{modalities: [image, text], weight: 0.5}` to override defaults.

    Attributes:
        modalities: two different modalities.
        weight: factor of the pair's loss.
        loss: "info_nce", "sigmoid" or "predictive"; null: the objective's.
        temperature: initial temperature of a contrastive loss; null: the objective's.
        bias: initial logit bias of a sigmoid loss; null: the objective's.
        negatives: modality -> kinds of views with hard negatives, {} for none; null: the objective's, of its modalities.
    """

    modalities: tuple[Name, Name]
    weight: PositiveFloat = 1.0
    loss: PairLoss | None = None
    temperature: float | None = Field(default=None, gt=0, le=1)
    bias: float | None = None
    negatives: dict[str, tuple[str, ...]] | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain_list(cls, value: Any) -> Any:
        written = {"modalities": value} if isinstance(value, list | tuple) else value
        if isinstance(written, dict) and isinstance(written.get("modalities"), list):
            # A value from a validator counts as a Python value, and strict mode refuses a list for a tuple.
            written = written | {"modalities": tuple(written["modalities"])}
        if isinstance(written, dict) and isinstance(written.get("negatives"), dict):
            given = {name: tuple(x) if isinstance(x, list) else x for name, x in written["negatives"].items()}
            written = written | {"negatives": given}
        return written

    @model_serializer(mode="wrap")
    def _as_written(self, standard: SerializerFunctionWrapHandler) -> Any:
        written = standard(self)
        return written["modalities"] if self == PairConfig(modalities=self.modalities) else written

    @model_validator(mode="after")
    def _different(self) -> PairConfig:
        if self.modalities[0] == self.modalities[1]:
            raise ValueError(
                f"got {list(self.modalities)}, wanted two different modalities; two views of one modality are for simclr"
            )
        return self


def check_pairs(
    pairs: Sequence[PairConfig], loss: PairLoss, bias: float | None, max_scale: float, shared: bool
) -> None:
    """Check that pairs do not contradict each other or their objective.

    Args:
        pairs: as configured.
        loss: the objective's. bias: the objective's, None if not set. max_scale: upper bound of 1 / temperature.
        shared: whether all pairs share one temperature.

    Raises:
        ValueError: a repeated pair, an unused bias, a temperature out of range, or one pair's temperature where it is shared.
    """
    seen: set[frozenset[str]] = set()
    for pair in pairs:
        which = f"pairs: got {list(pair.modalities)}"
        if frozenset(pair.modalities) in seen:
            raise ValueError(f"{which} twice, and a pair includes both directions; leave one out, or set its weight")
        seen.add(frozenset(pair.modalities))
        if pair.bias is not None and (pair.loss or loss) != "sigmoid":
            raise ValueError(f"{which} with a bias, which only the sigmoid loss has; set loss: sigmoid for this pair")
        if pair.temperature is not None and (pair.loss or loss) == "predictive":
            raise ValueError(f"{which} with a temperature, which the predictive loss does not have; leave it out")
        if pair.temperature is not None and shared:
            raise ValueError(
                f"{which} with a temperature and shared_temperature: true, wanted one of them; "
                "set the objective's temperature"
            )
        if pair.temperature is not None and 1 / pair.temperature > max_scale:
            raise ValueError(
                f"{which} with temperature {pair.temperature}, wanted at least 1 / max_scale = {1 / max_scale:g}"
            )
    if bias is not None and all((pair.loss or loss) != "sigmoid" for pair in pairs):
        raise ValueError(f"bias: got {bias}, and no pair has the sigmoid loss; set loss: sigmoid, or leave bias out")


def pair_negatives(
    pairs: Sequence[PairConfig], loss: PairLoss, views: Mapping[str, str], default: Negatives
) -> list[Negatives]:
    """Hard negatives of each pair: its own, or the objective's of its modalities where its loss is contrastive.

    Args:
        pairs: as configured. loss: the objective's.
        views: modality -> kind of view with the positives.
        default: the objective's.

    Raises:
        ValueError: they are of other modalities, name a view twice or the positives', or no loss is contrastive.
    """
    for pair in pairs:
        if pair.negatives and (pair.loss or loss) == "predictive":
            raise ValueError(
                f"pairs: got {list(pair.modalities)} with negatives and loss: predictive, wanted loss: info_nce or sigmoid, which "
                "have negatives"
            )
    contrasted = [pair for pair in pairs if (pair.loss or loss) != "predictive" and pair.negatives is None]
    usable = {modality for pair in contrasted for modality in pair.modalities}
    for negatives, modalities in [(default, usable), *((pair.negatives or {}, pair.modalities) for pair in pairs)]:
        for modality, kinds in negatives.items():
            if modality not in modalities:
                raise ValueError(
                    f"negatives: got some for {modality!r}, wanted modalities of pairs with loss: info_nce or sigmoid and no "
                    f"negatives of their own: {sorted(modalities)}"
                )
            if not kinds or len({*kinds, views.get(modality)}) <= len(kinds):
                raise ValueError(
                    f"negatives: got {list(kinds)} for {modality!r}, wanted kinds of views, each once, other than "
                    f"{views.get(modality)!r}, which has the positives"
                )
    of_default = {id(pair): {m: default[m] for m in pair.modalities if m in default} for pair in contrasted}
    return [pair.negatives or of_default.get(id(pair), {}) for pair in pairs]
