"""What every figure among the scores of an evaluator has: n, interval and chance; and which have none, and why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mmssl.core.evaluator import Score
from mmssl.reporting.results import summary_rows

NO_FIGURES = {
    "what the evaluator was set to, or chose on other samples": "temperature|logit_scale|penalty|gradient|lr|weight_decay|prior|"
    "validation_acc1|threshold@.+",
    "of the data, of the draws, or of how often the tie rule decides": "tie_rate|R@1_ceiling|deviation",
    "beside another figure": "chance",
}
"""Why numbers among the scores are no figures of the model -> their names, behind a direction or alone."""
WITHOUT_INTERVAL = {
    "they depend on the number of distinct samples, of which a bootstrap draws fewer": "rankme|effective_rank|hubness@10|"
    "unreached@10",
}
WITHOUT_CHANCE = {
    "equal probabilities of all classes are calibrated": "ece|ece_calibrated|ece_scale100|ece_cosine",
    "they lie between collapse, which is 0, and what fills the space evenly": "rankme|effective_rank|spread|uniformity",
}


def require_complete(task: str, scores: Mapping[str, Score], headlines: Sequence[str]) -> None:
    """Check every figure among the scores, and the headlines."""
    endings = ("_ci95_low", "_ci95_high", "_chance")
    figures = [name for name, value in scores.items() if isinstance(value, float) and not name.endswith(endings)]
    for row in summary_rows(task, scores, [*figures, *headlines]):
        if row.value is None or _excepted(row.metric, NO_FIGURES):
            continue
        assert row.n is not None, row
        if not _excepted(row.metric, WITHOUT_INTERVAL):
            assert row.ci95_low is not None, row
            assert row.ci95_high is not None, row
            assert row.ci95_low <= row.value <= row.ci95_high, row  # type: ignore[operator]
        assert row.chance is not None or _excepted(row.metric, WITHOUT_CHANCE), row


def _excepted(metric: str, reasons: Mapping[str, str]) -> bool:
    """Whether a metric, behind a direction or alone, is named there."""
    return any(re.fullmatch(f"(.+_)?({names})", metric) for names in reasons.values())
