"""Time of one training step against open_clip's: `python3 tools/run.py python tools/bench_step.py --json FILE`.

The same CLIP model with the same weights (ours made from open_clip's state dict), the same pictures and captions, and one full
step each: forward, loss, backward, AdamW. Ours is what `mmssl pretrain` runs, with its check for finite numbers and its gradient
norms, from uint8 pictures; the peer's is the step of open_clip's train.py, from prepared pictures. Both take turns, and medians
are compared. The losses of the first step are compared too: the faster one must compute the same.

A ratio is the peer's seconds over ours. The headline is that of the last precision, bf16 by default.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from captions import CAPTIONS
from open_clip.loss import ClipLoss
from torch import Tensor

from mmssl.core.batch import Batch
from mmssl.core.objective import Learner
from mmssl.core.plan import Plan
from mmssl.interop.open_clip import encoder_configs, from_open_clip
from mmssl.objectives.clip import ClipConfig
from mmssl.training.runtime.launch import Launch
from mmssl.training.steps.optim import AdamWConfig
from mmssl.training.steps.plain import PlainStepConfig
from mmssl.training.steps.state import TrainState

RATE, DECAY = 5e-4, 0.2
Step = Callable[[], float]
"""One optimizer step; returns its loss."""


def peer_step(model: Any, pictures: Tensor, ids: Tensor, precision: str) -> Step:
    """open_clip's step: see train_one_epoch in open_clip_train/train.py, and its parameter groups in main.py."""
    named = list(model.named_parameters())
    plain = [p for n, p in named if p.ndim < 2 or any(word in n for word in ("bn", "ln", "bias", "logit_scale"))]
    rest = [p for n, p in named if not any(p is other for other in plain)]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": rest, "weight_decay": DECAY}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), eps=1e-6)
    loss = ClipLoss()
    mean, std = (torch.tensor(x)[:, None, None] for x in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    prepared = (pictures / 255 - mean) / std

    def step() -> float:
        optimizer.zero_grad()
        cast = torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
        with cast:
            total = loss(**model(prepared, ids), output_dict=True)["contrastive_loss"]
        total.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        return float(total.detach())

    return step


def our_step(name: str, state: dict[str, Tensor], pictures: Tensor, ids: Tensor, precision: str) -> Step:
    """Our step, as a recipe with these encoders runs it, on open_clip's weights."""
    tensors = from_open_clip(state)
    image, text = encoder_configs(open_clip.get_model_config(name))
    encoders = {"image": image.build(), "text": text.build()}
    config = ClipConfig(
        pairs=(("image", "text"),),
        views={"image": "crop", "text": "tokens"},
        embedding=len(tensors["heads"]["text"]),
        temperature=0.07,
    )
    learner = Learner(encoders, config.build(encoders, Plan.unknown()))
    for modality, encoder in encoders.items():
        encoder.load_state_dict(tensors[modality])  # type: ignore[literal-required]
        learner.objective.heads()[modality].load_state_dict({"linear.weight": tensors["heads"][modality]})
    launch = Launch(precision, "cpu")  # type: ignore[arg-type]
    optimizer = AdamWConfig(lr=RATE, weight_decay=DECAY).build(learner)
    run = TrainState(learner.train(), optimizer, None, 10**6)  # type: ignore[arg-type]
    step = PlainStepConfig().build(learner, launch.wrap(learner), launch, seed=0, clip_norm=None)
    batch = Batch({"image": {"crop0": pictures}, "text": {"tokens0": ids}}, torch.arange(len(ids)))

    def take() -> float:
        return float(step(run, batch).output.total)

    return take


def measure(name: str, precision: str, batch: int, repeats: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Median seconds of both steps, their ratio, and the difference of their first losses."""
    torch.manual_seed(0)
    model = open_clip.create_model(name, pretrained=None, output_dict=True).train()
    size = model.visual.image_size
    pictures = torch.randint(
        0, 256, (batch, 3, *(size if isinstance(size, tuple) else (size, size))), dtype=torch.uint8
    )
    ids = open_clip.get_tokenizer(name)([CAPTIONS[i % len(CAPTIONS)] for i in range(batch)])
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    steps = {
        "peer": peer_step(model, pictures, ids, precision),
        "ours": our_step(name, state, pictures, ids, precision),
    }
    losses = {side: step() for side, step in steps.items()}  # unmeasured: memory and moments come into being
    times: dict[str, list[float]] = {side: [] for side in steps}
    for turn in range(repeats):
        for side in list(steps) if turn % 2 == 0 else list(steps)[::-1]:
            start = clock()
            steps[side]()
            times[side].append(clock() - start)
    ours, peer = (statistics.median(times[side]) for side in ("ours", "peer"))
    return {
        "ratio": peer / ours,
        "ours": ours,
        "peer": peer,
        "precision": precision,
        "loss": losses["ours"],
        "peer_loss": losses["peer"],
        "difference": abs(losses["ours"] - losses["peer"]) / losses["peer"],
        "tokens": float((ids.argmax(1) + 1).float().mean()),
    }


def main() -> None:
    """Read arguments, measure, print, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="ViT-B-32", help="open_clip's name")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: all threads together")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--json", type=Path, help="write the result here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    rows = []
    for precision in arguments.precision:
        row = measure(arguments.model, precision, arguments.batch, arguments.repeats, clock)
        rows.append(row)
        print(
            f"{arguments.model} {precision}, batch {arguments.batch}, {row['tokens']:.1f} tokens a caption: "
            f"ours {row['ours']:.3f} s, open_clip {row['peer']:.3f} s, {row['ratio']:.2f} times as fast; "
            f"loss {row['loss']:.8f} beside {row['peer_loss']:.8f}, {row['difference']:.1e} apart",
            flush=True,
        )
    if arguments.json:
        unit = f"{arguments.clock} seconds a step, {arguments.threads} threads"
        arguments.json.write_text(json.dumps(rows[-1] | {"unit": unit, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
