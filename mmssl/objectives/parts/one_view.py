"""What objectives share that predict something from each token of one view."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping

from mmssl.core.batch import Batch, Needs
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.objective import Objective, Reduction


class OneViewOfTokens(Objective, ABC):
    """Base of objectives that predict something from each token of one view, sample by sample.

    Args:
        modality: modality of the encoder to train.
        view: kind of the view.
    """

    reduction = Reduction.LOCAL
    accepts_absent = True

    def __init__(self, modality: str, view: str) -> None:
        super().__init__()
        self.modality, self.view = modality, view

    def needs(self) -> Needs:
        """One view."""
        return {self.modality: {self.view: 1}}

    def requires(self) -> Mapping[str, frozenset[str]]:
        """Encoder capabilities: tokens."""
        return {self.modality: frozenset({Encoder.TOKENS})}

    def check_views(self, batch: Batch, ctx: StepContext) -> None:
        """Check that `encode` accepts the views."""
        self.encode(batch, ctx)
