"""Both sides of bench_train.py on the same batches: those of our run, made again from its recipe, under open_clip's model and loss.

A run's batches are a pure function of its recipe, so nothing is written: what our run has seen is read once more. The peer's loop
is that of open_clip_train (AdamW with its groups, cosine schedule, autocast around model and loss, the bound of the logit scale).
What is left between the curves is rounding, which grows from step to step.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def recorded_batches(path: Path, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures [B, 3, H, W] uint8 and token ids [B, T] of the first steps of a recipe."""
    from mmssl.recipe.recipe import load_recipe

    recipe = load_recipe(path)
    stream = recipe.data.stream(
        recipe.data.open(),
        recipe.build_modalities(),
        {"image": {"crop": 1}, "text": {"tokens": 1}},
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        folder=recipe.folder,
    )
    try:
        for _ in range(steps):
            batch = next(stream)
            yield batch["image"]["crop0"].clone(), batch["text"]["tokens0"].clone()
    finally:
        stream.close()


def peer_losses(
    model: str, weights: Path, batches: Iterable[tuple[Tensor, Tensor]], steps: int, settings: dict[str, Any]
) -> list[float]:
    """open_clip's loss at each step.

    Args:
        model: open_clip's name. weights: a state dict of it.
        batches: see `recorded_batches`. steps: of the schedule.
        settings: rate, decay, warmup (steps) and precision ("fp32" or "bf16").
    """
    import open_clip
    from open_clip.loss import ClipLoss

    net = open_clip.create_model(model, pretrained=None).train()
    net.load_state_dict(torch.load(weights, weights_only=True))
    named, spared = list(net.named_parameters()), ("bn", "ln", "bias", "logit_scale")
    free = [p for name, p in named if p.ndim < 2 or any(part in name for part in spared)]
    decayed = [p for _, p in named if all(p is not other for other in free)]
    groups = [{"params": free, "weight_decay": 0.0}, {"params": decayed, "weight_decay": settings["decay"]}]
    optimizer = torch.optim.AdamW(groups, lr=settings["rate"], betas=(0.9, 0.98), eps=1e-6)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    loss, losses = ClipLoss(), []
    for step, (pictures, ids) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = settings["rate"] * rate_factor(step, steps, settings["warmup"])
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=settings["precision"] == "bf16"):
            total = loss(*net((pictures.float() / 255 - mean) / std, ids))
        total.backward()
        optimizer.step()
        with torch.no_grad():
            net.logit_scale.clamp_(0, math.log(100))
        losses.append(total.item())
    return losses


def rate_factor(step: int, steps: int, warmup: int) -> float:
    """open_clip's cosine schedule with linear warm-up, relative to its peak."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def compare_recorded(ours: list[list[float]], peer: list[list[float]]) -> dict[str, Any]:
    """Curves of runs on the same batches: their largest and mean difference at a step, and that of the means of second halves."""
    apart = [abs(a - b) for one, other in zip(ours, peer, strict=True) for a, b in zip(one, other, strict=True)]
    halves = {
        side: statistics.fmean(x for run in runs for x in run[len(run) // 2 :])
        for side, runs in (("ours", ours), ("peer", peer))
    }
    return {
        "curves": {"ours": ours, "peer": peer},
        "largest": max(apart),
        "mean": statistics.fmean(apart),
        "apart": halves["ours"] - halves["peer"],
    }
