"""Hard negatives of a contrastive objective: their latents, their candidates over all processes, and their metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core.batch import Batch
from mmssl.core.objective import Latents
from mmssl.losses.candidates import first_hits, over_present
from mmssl.losses.hard_negatives import HardNegatives
from mmssl.objectives.parts.pairs import Pair
from mmssl.objectives.parts.presence import content_hash, presence

HARD = "hard"


def kinds_of_negatives(pairs: Sequence[Pair]) -> dict[str, tuple[str, ...]]:
    """Modality -> kinds of views with hard negatives of any pair, each once."""
    found: dict[str, dict[str, None]] = {}
    for pair in pairs:
        for modality, kinds in pair.negatives.items():
            found.setdefault(modality, {}).update(dict.fromkeys(kinds))
    return {modality: tuple(kinds) for modality, kinds in found.items()}


def negative_latents(batch: Batch, modality: str, view: str, embedded: Mapping[str, Tensor]) -> Latents:
    """Latents of hard negatives, by kind: "hard/..." [B, E] of unit norm, "present/..." [B] and, of token ids, "content/...".

    A negative that equals its positive is absent: this sample has none.

    Args:
        batch: of the step. modality: of the negatives.
        view: kind of view of the positives.
        embedded: kind of view -> [B, E] embeddings of the negatives.
    """
    latents: Latents = {}
    for kind, rows in embedded.items():
        x, negative = batch.view(modality, f"{view}0"), batch.view(modality, f"{kind}0")
        name = f"{modality}/{kind}"
        latents[f"{HARD}/{name}"] = F.normalize(rows, dim=-1)
        if negative.dtype == torch.int64:
            latents[f"content/{name}"] = content_hash(negative)
            differs = latents[f"content/{name}"] != content_hash(x)
        else:
            differs = (x != negative).flatten(1).any(1)
        latents[f"present/{name}"] = presence(batch, modality) & differs
    return latents


def gather_negatives(
    latents: Latents, facts: Mapping[str, Tensor], pair: Pair, everyone: Mapping[str, Tensor], offset: int
) -> dict[str, HardNegatives]:
    """Hard negatives of a pair by the name of their argument in `info_nce`: "further_b" for rows of its first modality.

    Args:
        latents: of this process. facts: of all processes, from `gather_facts`.
        pair: the pair.
        everyone: name of latent -> negatives [G, E] of all processes, with gradient.
        offset: number of this process' first sample among all.
    """
    own = slice(offset, offset + len(latents[pair.first]))
    both = (facts[f"present/{pair.first}"].bool() & facts[f"present/{pair.second}"].bool())[own]
    found = {}
    for argument, rows, of in (("further_b", pair.first, pair.second), ("further_a", pair.second, pair.first)):
        names = [f"{of}/{kind}" for kind in pair.negatives.get(of, ())]
        if names:
            ids = [facts[f"content/{name}"] for name in names if f"content/{name}" in facts]
            found[argument] = HardNegatives(
                latents[rows],
                torch.cat([everyone[f"{HARD}/{name}"] for name in names]),
                both,
                torch.cat([facts[f"present/{name}"].bool() for name in names]),
                facts[f"content/{of}"][own] if ids else None,
                torch.cat(ids) if ids else None,
            )
    return found


def hard_accuracy(latents: Latents, facts: Mapping[str, Tensor], pair: Pair, offset: int) -> dict[str, Tensor]:
    """How often the positive is nearer than the hard negatives of its sample: "first-second/<a>_to_<b>_hard_accuracy" -> [].

    The mean is over samples of the global batch that have some; a tie among n counts 1/n. This process' share.
    """
    there = facts[f"present/{pair.first}"].bool() & facts[f"present/{pair.second}"].bool()
    metrics = {}
    for rows, of in ((pair.first, pair.second), (pair.second, pair.first)):
        kinds = pair.negatives.get(of, ())
        if kinds:
            usable = torch.stack([facts[f"present/{of}/{kind}"].bool() & there for kind in kinds], 1)
            own = slice(offset, offset + len(latents[rows]))
            others = [latents[of], *(latents[f"{HARD}/{of}/{kind}"] for kind in kinds)]
            scores = torch.stack([(latents[rows] * x).sum(1) for x in others], 1)
            scores[:, 1:].masked_fill_(~usable[own], -torch.inf)
            some = usable.any(1)
            hits = first_hits(scores, torch.zeros_like(facts["sample/index"][own])) * some[own]
            metrics[f"{pair.name}/{rows}_to_{of}_hard_accuracy"] = over_present(hits.mean(), some)
    return metrics
