"""The pairs of modalities that a contrastive objective aligns: how a recipe writes them, and what they come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, PositiveFloat, SerializerFunctionWrapHandler, model_serializer, model_validator

from mmssl.core.config import Config
from mmssl.objectives.common import Name

PairLoss = Literal["info_nce", "sigmoid"]
SIGMOID_BIAS = -10.0
"""Where the bias of a sigmoid loss starts if nothing else is said: SigLIP's."""


@dataclass(frozen=True)
class Pair:
    """Two modalities, and how they are aligned.

    Attributes:
        first, second: the modalities; both directions belong to the pair.
        temperature: initial value; the logit scale starts at ln(1 / temperature).
        weight: factor of its loss.
        loss: "info_nce" (a softmax over candidates, CLIP) or "sigmoid" (each pair of samples a question of its own, SigLIP).
        bias: initial value; of "sigmoid" only.
    """

    first: str
    second: str
    temperature: float
    weight: float = 1.0
    loss: PairLoss = "info_nce"
    bias: float = SIGMOID_BIAS

    @property
    def name(self) -> str:
        """What it is called in parameters and losses: "first-second"."""
        return f"{self.first}-{self.second}"


def modalities_of(pairs: Sequence[Pair]) -> list[str]:
    """Every modality of the pairs once, in the order in which they are first named."""
    return list(dict.fromkeys(modality for pair in pairs for modality in (pair.first, pair.second)))


class PairConfig(Config):
    """A pair of modalities: `[image, text]`, or `{modalities: [image, text], weight: 0.5}` where it differs from the others.

    Attributes:
        modalities: two different ones.
        weight: factor of its loss.
        loss: null: the objective's.
        temperature: initial value; null: the objective's.
        bias: initial value of a sigmoid loss; null: the objective's.
    """

    modalities: tuple[Name, Name]
    weight: PositiveFloat = 1.0
    loss: PairLoss | None = None
    temperature: float | None = Field(default=None, gt=0, le=1)
    bias: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain_list(cls, value: Any) -> Any:
        written = {"modalities": value} if isinstance(value, list | tuple) else value
        if isinstance(written, dict) and isinstance(written.get("modalities"), list):
            # What a validator has touched counts as Python's, where a strict tuple is no list.
            written = written | {"modalities": tuple(written["modalities"])}
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
    """Refuse pairs that contradict each other or their objective.

    Args:
        pairs: as configured.
        loss: the objective's. bias: the objective's, None where nothing is said. max_scale: largest 1 / temperature.
        shared: whether all pairs have one temperature.

    Raises:
        ValueError: a pair twice, a bias that nothing uses, a temperature out of range, or of its own where one is shared.
    """
    seen: set[frozenset[str]] = set()
    for pair in pairs:
        which = f"pairs: got {list(pair.modalities)}"
        if frozenset(pair.modalities) in seen:
            raise ValueError(f"{which} twice, and both directions belong to one pair: leave one out, or set its weight")
        seen.add(frozenset(pair.modalities))
        if pair.bias is not None and (pair.loss or loss) != "sigmoid":
            raise ValueError(f"{which} with a bias, which only the sigmoid loss has: set its loss: sigmoid")
        if pair.temperature is not None and shared:
            raise ValueError(
                f"{which} with a temperature of its own and shared_temperature: true; wanted one of them: "
                "set the objective's temperature"
            )
        if pair.temperature is not None and 1 / pair.temperature > max_scale:
            raise ValueError(
                f"{which} with temperature {pair.temperature}, wanted at least 1 / max_scale = {1 / max_scale:g}"
            )
    if bias is not None and all((pair.loss or loss) != "sigmoid" for pair in pairs):
        raise ValueError(f"bias: got {bias}, and no pair has the loss that uses it: set loss: sigmoid, or leave it out")
