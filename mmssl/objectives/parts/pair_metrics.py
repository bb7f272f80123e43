"""Metrics of one pair of modalities of a contrastive objective: accuracy, chance, duplicates, temperature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmssl.core.objective import Headline
from mmssl.losses.candidates import over_present
from mmssl.losses.hard_negatives import HardNegatives
from mmssl.losses.info_nce import info_nce_accuracy
from mmssl.losses.tiles import candidate_counts
from mmssl.objectives.parts.pairs import Pair


def pair_metrics(
    pair: Pair,
    scales: tuple[Tensor, Tensor, Tensor | None],
    a: Tensor,
    b: Tensor,
    among: dict[str, Any],
    identities: Tensor,
    hard: Mapping[str, HardNegatives],
) -> dict[str, Tensor]:
    """This process' metrics of a pair, as "first-second/<metric>"; means are over the samples of the global batch with both.

    scale, scale_limit: logit scale and its upper bound; bias: of a sigmoid loss;  samples: number of samples with both modalities;
    first_to_second_accuracy, second_to_first_accuracy: in-batch top 1;  chance_loss: loss of a uniform guess;
    duplicates: share of samples that share their number, or the tokens of a modality, with another of the batch;
    floor_loss: smallest InfoNCE loss that duplicates allow while they are negatives of each other: mean of ln g over samples in
    groups of g, because the candidates of a group cannot be told apart.

    Args:
        pair: the pair.
        scales: logit scale, its upper bound, logit bias or None.
        a, b: [B, E] of this process.
        among: all_a, all_b, offset, present and ids, as losses take them.
        identities: [G, k], see `presence.identities`.
        hard: hard negatives of rows of each direction, which the chance loss counts.
    """
    scale, limit, bias = scales
    there, back = info_nce_accuracy(a, b, **among)
    everyone = torch.ones(len(among["all_b"]), dtype=torch.bool, device=a.device)
    present = everyone if among["present"] is None else among["present"]
    target = torch.arange(len(a), device=a.device) + among["offset"]

    def mean(values: Tensor) -> Tensor:
        return over_present((values * present[target]).mean(), present).to(there.dtype)

    counts = candidate_counts(target, len(among["all_b"]), present, among["ids"])
    further_b, further_a = (
        hard[name].counts() if name in hard else torch.zeros_like(counts) for name in ("further_b", "further_a")
    )
    # One of c candidates is right. Chance loss: ln(c) for a softmax, c times the entropy of 1 / c for c sigmoids.
    if bias is None:
        guess = ((counts + further_b).log() + (counts + further_a).log()) / 2
    else:
        pairs = counts + further_b + further_a
        guess = pairs.log() + torch.xlogy(pairs - 1, pairs / (pairs - 1).clamp(min=1))
    others = candidate_counts(target, len(among["all_b"]), present, identities)
    group = (present.sum() - others + 1).clamp(min=1)  # one candidate is the sample itself
    metrics = {
        "scale": scale,
        "scale_limit": limit,
        f"{pair.first}_to_{pair.second}_accuracy": there,
        f"{pair.second}_to_{pair.first}_accuracy": back,
        "chance_loss": mean(guess),
        "samples": present.sum().to(there.dtype),
        "duplicates": mean((group > 1).double()),
    }
    if bias is not None:
        metrics["bias"] = bias
    elif among["ids"] is None:
        metrics["floor_loss"] = mean(group.log())
    return {f"{pair.name}/{name}": x for name, x in metrics.items()}


def pair_headline(pairs: Sequence[Pair], scalars: Mapping[str, float]) -> Headline:
    """In-batch accuracy: both directions of a single pair; for several pairs the mean of both directions of each."""
    ways = {
        pair: (f"{pair.first}_to_{pair.second}_accuracy", f"{pair.second}_to_{pair.first}_accuracy") for pair in pairs
    }
    found = {pair: [scalars[f"{pair.name}/{name}"] for name in names] for pair, names in ways.items()}
    if len(pairs) == 1:
        figures = dict(zip((name.replace("_", " ") for name in ways[pairs[0]]), found[pairs[0]], strict=True))
    else:
        figures = {f"{pair.first}, {pair.second} accuracy": sum(both) / 2 for pair, both in found.items()}
    chance = sum(pair.weight * scalars[f"{pair.name}/chance_loss"] for pair in pairs)
    return Headline(chance, figures)
