"""Missing modalities and duplicates: encode present samples only, and find samples with equal content by a hash."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmssl.core import distributed
from mmssl.core.batch import Batch
from mmssl.core.objective import Latents
from mmssl.objectives.parts.pairs import Pair


def presence(batch: Batch, modality: str) -> Tensor:
    """Mask of present samples, [B] bool: True where a sample has the modality."""
    everyone = torch.ones(len(batch), dtype=torch.bool, device=batch.index.device)
    return batch.present.get(modality, everyone)


def zero_absent(latents: Latents) -> Latents:
    """Zeros in the rows of samples whose latent "present" is False: what was computed of them depends on others of their part."""
    present = latents.get("present")
    if present is None:
        return latents
    return {
        name: x if x is present else x.masked_fill(~present.view(-1, *[1] * (x.ndim - 1)), 0)
        for name, x in latents.items()
    }


@torch.no_grad()
def content_hash(x: Tensor) -> Tensor:
    """Hash of each row of integers [B, ...] int64 (token ids) -> [B] int64: equal rows have equal hashes.

    Different rows collide with a probability of about 2 ** -64. Zeros add nothing, so zero padding does not change the hash.
    """
    symbols = x.flatten(1)
    places = torch.arange(1, symbols.shape[1] + 1, device=x.device)
    mixed = mixed_bits(mixed_bits(places) ^ mixed_bits(symbols + _GOLDEN))
    return (mixed * (symbols != 0)).sum(1)


# Constants of splitmix64 (Steele et al. 2014, "Fast splittable pseudorandom number generators"), as signed numbers.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def mixed_bits(x: Tensor) -> Tensor:
    """Hash of each int64 number, int64: splitmix64's finaliser, in which each bit of the input flips half of the output's bits."""
    x, shifted = x.clone(), torch.empty_like(x)  # noise has millions of numbers: two tensors, and none more
    for bits, factor in ((30, _FIRST), (27, _SECOND), (31, 1)):
        torch.bitwise_right_shift(x, bits, out=shifted)
        x ^= shifted.bitwise_and_((1 << (64 - bits)) - 1)  # zeros come from the left
        x *= factor
    return x


def gather_facts(latents: Latents) -> dict[str, Tensor]:
    """All-gather presence, index and content hashes of the samples of all processes, [G] int64 each, in one collective."""
    names = [name for name in latents if name.startswith(("present/", "content/", "sample/"))]
    everyone = distributed.gather_detached(torch.stack([latents[name].long() for name in names], 1))
    return dict(zip(names, everyone.unbind(1), strict=True))


def identities(facts: Mapping[str, Tensor], pair: Pair) -> Tensor:
    """Ids [G, k] for duplicates in a pair: samples with any equal id are duplicates."""
    contents = [f"content/{modality}" for modality in (pair.first, pair.second)]
    return torch.stack([facts["sample/index"], *(facts[name] for name in contents if name in facts)], 1)
