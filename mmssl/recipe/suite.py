"""A suite: evaluators in a file of their own, for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from mmssl.core.config import Config
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.modality import Modality
from mmssl.recipe.unions import EvaluatorUnion

LABEL = "label"


class Suite(Config):
    """What `mmssl evaluate` measures: name -> evaluator, written as in a recipe."""

    evaluators: dict[str, EvaluatorUnion] = Field(default_factory=dict)


def evaluation_modalities(modalities: Mapping[str, Modality]) -> dict[str, Modality]:
    """A recipe's modalities, and class numbers (.cls) as "label" where it names no such modality itself."""
    return {LABEL: LabelConfig().build(LABEL), **modalities}
