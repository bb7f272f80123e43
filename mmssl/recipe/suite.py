"""A suite: a YAML file of evaluators to run on checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from mmssl.core.config import Config
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.modalities.multi_label import MultiLabelConfig
from mmssl.data.modality import Modality
from mmssl.recipe.unions import EvaluatorUnion

LABEL, MULTI_LABEL = "label", "multi_label"


class Suite(Config):
    """The evaluators that `mmssl evaluate` runs: name -> evaluator, written as in a recipe."""

    evaluators: dict[str, EvaluatorUnion] = Field(default_factory=dict)


def evaluation_modalities(modalities: Mapping[str, Modality]) -> dict[str, Modality]:
    """A recipe's modalities, with "label" (class numbers in .cls) and "multi_label" (vectors in .npy) unless it has such names."""
    added = {LABEL: LabelConfig().build(LABEL), MULTI_LABEL: MultiLabelConfig().build(MULTI_LABEL)}
    return {**added, **modalities}
