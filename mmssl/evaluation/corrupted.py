"""Figures of an evaluator under corruptions of its inputs, beside those of the clean ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmssl.core.evaluator import Score, Table
from mmssl.data.modality import Modality
from mmssl.evaluation.collect import KeptShards
from mmssl.evaluation.robustness import RobustConfig
from mmssl.evaluation.statistics import clustered_bootstrap, share_by_cluster

log = logging.getLogger(__name__)

FEWEST_RIGHT = 10
"""Samples that a ratio to the share of right ones needs, so that hardly a bootstrap draw has none (exp(-10))."""


class Figure(NamedTuple):
    """A score that is a share of right answers.

    Attributes:
        value: the score. low, high: its 95 % interval. n: number of samples or queries.
        keys: [n], of the sample of each answer. outcomes: [n], from 0 (wrong) to 1 (right); the score is their mean.
    """

    value: float
    low: float
    high: float
    n: int
    keys: Sequence[Score]
    outcomes: Tensor

    @classmethod
    def of(cls, scores: Mapping[str, Any], metric: str, keys: Sequence[Score], outcomes: Tensor) -> Figure:
        """A metric among scores, with its interval, and the answers that it is the mean of."""
        interval = scores[f"{metric}_ci95_low"], scores[f"{metric}_ci95_high"]
        return cls(scores[metric], *interval, len(keys), keys, outcomes.cpu())


class CorruptedShards:
    """The test shards of an evaluator, once for each corruption and severity; each is opened when it is measured.

    Args:
        config: settings. modalities: by name.
        names: modalities to collect. corruptible: those of them that are corrupted.
    """

    def __init__(
        self,
        config: RobustConfig,
        modalities: Mapping[str, Modality],
        names: Sequence[str],
        corruptible: Sequence[str],
    ) -> None:
        self._each = {
            which: (
                next(name for name in corruptible if changed[name] is not modalities[name]),
                KeptShards(config, changed, names, config.shards, config.max_samples, hashed=True),
            )
            for which, changed in config.corrupted_modalities(modalities, corruptible).items()
        }

    def measure(
        self,
        figures: Callable[[KeptShards], Mapping[str, Figure]],
        clean: Mapping[str, Figure],
        inputs: Mapping[str, Tensor],
    ) -> tuple[dict[str, Score], dict[str, Table]]:
        """Figures under each corruption.

        Scores: METRIC_<corruption>_<severity>; METRIC_<corruption>, their mean over severities; METRIC_corrupted, the mean of all;
        METRIC_kept, that as a share of METRIC. Means and share have intervals by bootstrap over samples: what severities and
        corruptions of a sample have in common is kept together. Chance of all but the share is that of METRIC. A corruption that
        changes no input, such as `casing` before a tokenizer that makes lower case, has no score (None), is left out of the means,
        and is named in corruptions_without_effect.

        Args:
            figures: shards -> metric -> its figure; all processes say the same.
            clean: metric -> its figure without corruption.
            inputs: modality -> hashes of the inputs without corruption, see `KeptShards.inputs`.

        Returns:
            scores, and a table "corruptions" with intervals and the share of inputs that were `changed`; both empty without
            corruptions.
        """
        found, changed = [], []
        for which, (name, shards) in self._each.items():
            try:
                found.append((which, figures(shards)))
                changed.append(changed_share(inputs[name], shards.inputs[name]))
            finally:
                shards.close()
        if not found:
            return {}, {}
        columns: dict[str, list[Score]] = {
            "corruption": [kind for (kind, _), _ in found],
            "severity": [severity for (_, severity), _ in found],
            "changed": [*changed],
        }
        scores = _without_effect([which for (which, _), share in zip(found, changed, strict=True) if not share])
        for metric in found[0][1]:
            each = {which: some[metric] for (which, some), share in zip(found, changed, strict=True) if share}
            scores |= _mean(f"{metric}_corrupted", [*each.values()])
            scores |= _kept(f"{metric}_kept", [*each.values()], clean.get(metric))
            for kind in dict.fromkeys(kind for (kind, _), _ in found):
                scores |= _mean(f"{metric}_{kind}", [figure for (own, _), figure in each.items() if own == kind])
            rows = [each.get(which) for which, _ in found]
            scores |= {
                f"{metric}_{kind}_{s}": row.value if row else None
                for ((kind, s), _), row in zip(found, rows, strict=True)
            }
            columns |= {
                metric: [row.value if row else None for row in rows],
                f"{metric}_ci95_low": [row.low if row else None for row in rows],
                f"{metric}_ci95_high": [row.high if row else None for row in rows],
                f"{metric}_n": [some[metric].n for _, some in found],
            }
        return scores, {"corruptions": Table(columns)}


def changed_share(before: Tensor, after: Tensor) -> float:
    """Share of the inputs whose hashes [n] differ; 1 where they are not equally many."""
    return float((before != after).double().mean()) if before.shape == after.shape else 1.0


def _without_effect(without: Sequence[tuple[str, int]]) -> dict[str, Score]:
    """The score that names the corruptions and severities that changed no input, if there are any; says so, too."""
    severities: dict[str, list[int]] = {}
    for kind, severity in without:
        severities.setdefault(kind, []).append(severity)
    said = "; ".join(f"{kind} {', '.join(map(str, some))}" for kind, some in severities.items())
    if said:
        log.warning("corruptions that changed no input, and have no score therefore (with severities): %s", said)
    return {"corruptions_without_effect": said} if said else {}


def _mean(name: str, figures: Sequence[Figure]) -> dict[str, Score]:
    """The mean of figures of the same samples, with its interval; None: there are none."""
    if not figures:
        return {name: None}
    outcomes = torch.cat([figure.outcomes for figure in figures])
    found = share_by_cluster(outcomes, _owners([key for figure in figures for key in figure.keys]))
    return dict(zip((name, f"{name}_ci95_low", f"{name}_ci95_high"), found, strict=True))


def _kept(name: str, figures: Sequence[Figure], clean: Figure | None) -> dict[str, Score]:
    """The mean of figures as a share of another of the same samples, with its interval; None: that is 0, or not measured.

    Below `FEWEST_RIGHT` samples that are right without corruption there is no interval: some draws have none of them.
    """
    if clean is None or not clean.value or not figures:
        return {name: None}
    owner = _owners([key for figure in (clean, *figures) for key in figure.keys])
    before = torch.zeros(int(owner.max()) + 1, dtype=torch.float64)
    after = torch.zeros_like(before)
    n, outcomes = len(clean.keys), torch.cat([figure.outcomes for figure in figures]).double()
    before.index_add_(0, owner[:n], clean.outcomes.double())
    after.index_add_(0, owner[n:], outcomes)
    scores: dict[str, Score] = {name: float(outcomes.mean()) / clean.value}
    if int((before > 0).sum()) < FEWEST_RIGHT:
        return scores
    low, high = clustered_bootstrap(after, before * len(figures))
    return scores | {f"{name}_ci95_low": low, f"{name}_ci95_high": high}


def _owners(keys: Sequence[Score]) -> Tensor:
    """A number for each distinct key: [n] int64."""
    numbers: dict[Score, int] = {}
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])
