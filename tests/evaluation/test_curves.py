"""Average precision and AUROC are scikit-learn's, with ties and weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from mmssl.evaluation.curves import PrecisionRecall, auroc


def test_areas_are_scikit_learns_with_ties_and_weights() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 8, (6, 50)).astype(np.float32)
    right = rng.random((6, 50)) < 0.3
    weights = rng.integers(0, 3, 50)
    rows = PrecisionRecall(torch.from_numpy(scores), torch.from_numpy(right))
    plain, drawn = rows.average_precision(), rows.average_precision(torch.from_numpy(weights).double())
    areas = auroc(torch.from_numpy(scores), torch.from_numpy(right))
    for i in range(6):
        assert float(plain[i]) == pytest.approx(average_precision_score(right[i], scores[i]), abs=1e-12)
        expected = average_precision_score(right[i], scores[i], sample_weight=weights)
        assert float(drawn[i]) == pytest.approx(expected, abs=1e-12)
        assert float(areas[i]) == pytest.approx(roc_auc_score(right[i], scores[i]), abs=1e-12)


def test_equal_scores_are_chance_and_empty_rows_are_not_defined() -> None:
    right = torch.tensor([[True, False, False, True, False], [False] * 5])
    scores = torch.zeros(2, 5)
    assert PrecisionRecall(scores, right).average_precision().tolist()[0] == 0.4
    assert auroc(scores, right).tolist()[0] == 0.5
    assert PrecisionRecall(scores, right).average_precision()[1].isnan()
    assert auroc(scores, right)[1].isnan()
