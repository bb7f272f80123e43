"""Training steps of our models and of open_clip's on one device, and their useful floating point operations.

Used by bench_gpu.py. Useful operations are those that the loss needs: real tokens of a text, no padding; for a backward pass, twice
the forward pass, without recomputation.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn

from mmssl.core.batch import Batch
from mmssl.core.objective import Learner
from mmssl.core.plan import Plan
from mmssl.encoders.text_transformer import TextTransformerConfig, trim_padding
from mmssl.encoders.vit import VisionTransformerConfig
from mmssl.objectives.clip import ClipConfig
from mmssl.training.runtime.launch import Launch
from mmssl.training.steps.cached import CachedStepConfig
from mmssl.training.steps.compilation import compile_encoders
from mmssl.training.steps.optim import AdamWConfig
from mmssl.training.steps.plain import PlainStepConfig
from mmssl.training.steps.state import Stream, TrainState

CONTEXT, WORDS, LEARNING_RATE, WARM = 77, 49408, 1e-5, 3
FEWEST, ENOUGH = 3, 10.0
"""Smallest number of timed steps, and seconds after which timing stops."""
CAPTIONS = (9, 10, 11, 11, 12, 12, 13, 13, 14, 15, 16, 19)
"""Tokens of captions, ends included, spread as in CC3M: 12.9 on average."""
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}
"""Dense bf16 operations a second, by a part of the device's name, from the vendor's data sheets."""


@dataclass(frozen=True)
class Tower:
    """Width, depth and heads of a transformer."""

    width: int
    depth: int
    heads: int

    def operations(self, tokens: int) -> float:
        """Operations of the blocks' forward pass over one sample."""
        return self.depth * (24 * self.width**2 * tokens + 4 * self.width * tokens**2)


@dataclass(frozen=True)
class Model:
    """A CLIP model: open_clip's name, its two towers, picture and patch size, shared width, and samples of a step."""

    peer: str
    image: Tower
    text: Tower
    size: int
    patch: int
    embedding: int
    batch: int

    def operations(self, lengths: Tensor) -> float:
        """Useful operations of a training step on as many samples as there are text lengths."""
        patches = (self.size // self.patch) ** 2
        image = self.image.operations(patches + 1) + 2 * patches * 3 * self.patch**2 * self.image.width
        heads = 2 * self.embedding * (self.image.width + self.text.width)
        texts = sum(self.text.operations(length) for length in lengths.tolist())
        return 3 * (len(lengths) * (image + heads) + texts)


B_TEXT, L_TEXT = Tower(512, 12, 8), Tower(768, 12, 12)
MODELS = {
    "ViT-B/32": Model("ViT-B-32", Tower(768, 12, 12), B_TEXT, 224, 32, 512, 1024),
    "ViT-B/16": Model("ViT-B-16", Tower(768, 12, 12), B_TEXT, 224, 16, 512, 512),
    "ViT-L/14": Model("ViT-L-14", Tower(1024, 24, 16), L_TEXT, 224, 14, 768, 192),
}
TINY = {"tiny": Model("", Tower(32, 1, 2), Tower(32, 1, 2), 32, 16, 16, 8)}


def random_batch(model: Model, samples: int, device: torch.device) -> Batch:
    """Random pictures (uint8) and captions of real lengths, on the device."""
    random = torch.Generator().manual_seed(0)
    lengths = torch.tensor(CAPTIONS)[torch.randint(len(CAPTIONS), (samples,), generator=random)]
    text = torch.randint(1, WORDS - 2, (samples, CONTEXT), generator=random)
    place = torch.arange(CONTEXT)
    text = torch.where(place < lengths[:, None] - 1, text, 0)
    text[torch.arange(samples), lengths - 1] = WORDS - 1
    pictures = torch.randint(0, 256, (samples, 3, model.size, model.size), dtype=torch.uint8, device=device)
    return Batch({"image": {"crop0": pictures}, "text": {"tokens0": text.to(device)}}, torch.arange(samples))


def caption_lengths(batch: Batch) -> Tensor:
    """[B] tokens up to the end of each text."""
    return batch["text"]["tokens0"].argmax(1).cpu() + 1


class _NoStream:
    """A stand-in for `TrainState.stream`: batches are passed in directly."""

    def __iter__(self) -> Any:
        return iter(())

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        return

    def close(self) -> None:
        return


def our_learner(model: Model) -> Learner:
    """The model as a recipe would build it."""
    image, text = vars(model.image), vars(model.text)
    encoders = {
        "image": VisionTransformerConfig(size=model.size, patch_size=model.patch, **image).build(),
        "text": TextTransformerConfig(vocab_size=WORDS, context_length=CONTEXT, **text).build(),
    }
    views = {"image": "crop", "text": "tokens"}
    objective = ClipConfig(pairs=(("image", "text"),), views=views, embedding=model.embedding, temperature=0.07)
    return Learner(encoders, objective.build(encoders, Plan.unknown()))


def trimmed(batch: Batch) -> Batch:
    """The batch on the device, with common padding of texts trimmed (see `DeviceStream`)."""
    return replace(batch, views={**batch.views, "text": {"tokens0": trim_padding(batch["text"]["tokens0"])}})


def our_step(
    model: Model, device: torch.device, backend: str | None, micro_batches: int = 1
) -> tuple[Callable[[Batch], None], Learner]:
    """One whole step of a run (forward, backward, finite check, update), and the learner that it updates."""
    torch.manual_seed(0)
    launch = Launch("bf16", "cpu" if device.type == "cpu" else "cuda")
    learner = our_learner(model)
    launch.place(learner)
    compile_encoders(learner, "off" if backend is None else "default", backend or "")
    config = PlainStepConfig() if micro_batches == 1 else CachedStepConfig(micro_batches=micro_batches)
    step = config.build(learner, launch.wrap(learner), launch, 0, None)
    stream: Stream = _NoStream()
    state = TrainState(learner.train(), AdamWConfig(lr=LEARNING_RATE).build(learner), stream, 1000)

    def run(batch: Batch) -> None:
        step(state, batch)

    return run, learner


def peer_step(model: Model, device: torch.device, backend: str | None) -> Callable[[Batch], None]:
    """open_clip's step: its model, loss and optimizer settings, bf16 autocast, pictures as from its loader."""
    import open_clip

    torch.manual_seed(0)
    if model.peer:
        net: nn.Module = open_clip.create_model(model.peer, pretrained=None, device=device)
    else:
        vision = {
            "image_size": model.size,
            "patch_size": model.patch,
            "width": model.image.width,
            "layers": 1,
            "head_width": 16,
        }
        words = {"context_length": CONTEXT, "vocab_size": WORDS, "width": model.text.width, "layers": 1, "heads": 2}
        net = open_clip.model.CLIP(model.embedding, vision, words).to(device)
    net.train()
    called = net if backend is None else torch.compile(net, backend=backend)
    loss = open_clip.loss.ClipLoss()
    optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE, (0.9, 0.98), 1e-6, 0.2)

    def run(batch: Batch) -> None:
        pictures = batch["image"]["crop0"]
        # Normalised before timing if the batch is reused: its loader does it in the workers.
        pictures = pictures if pictures.is_floating_point() else pictures.float() / 128 - 1
        with torch.autocast(device.type, dtype=torch.bfloat16):
            total = loss(*called(pictures, batch["text"]["tokens0"]))
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            net.logit_scale.clamp_(0, 4.6052)

    return run


def as_peer_sees(batch: Batch) -> Batch:
    """The batch with pictures as from open_clip's loader: float32, normalised."""
    return batch.map(lambda x: x.float() / 128 - 1 if x.dtype == torch.uint8 else x)


def timed(step: Callable[[Any], None], batch: Any, device: torch.device, steps: int) -> tuple[float, float]:
    """Median seconds of a step, over at most `steps` (fewer if slow), and peak GiB of device memory.

    On a CPU memory is 0 (not measured).
    """
    for _ in range(WARM):
        step(batch)
    synchronise(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for _ in range(steps):
        started = time.perf_counter()
        step(batch)
        synchronise(device)
        times.append(time.perf_counter() - started)
        if len(times) >= FEWEST and sum(times) > ENOUGH:
            break
    return statistics.median(times), peak_gib(device)


def seconds_from_workers(
    step: Callable[[Any], None], batches: Iterator[Any], device: torch.device, steps: int, ahead: int
) -> float:
    """Mean seconds of a step whose batches come from workers that prefetch `ahead` batches.

    The clock starts when prefetched batches are used up and runs over at least as many batches: otherwise it would not show a
    slow loader.
    """
    for _ in range(max(WARM, ahead)):
        step(next(batches))
    synchronise(device)
    count, started = max(steps, ahead), time.perf_counter()
    for _ in range(count):
        step(next(batches))
    synchronise(device)
    return (time.perf_counter() - started) / count


def step_fits(model: Model, pairs: int, micro_batches: int, device: torch.device) -> bool:
    """Whether two of our steps on `pairs` pairs run without running out of device memory."""
    try:
        step = our_step(model, device, None, micro_batches)[0]
        data = trimmed(random_batch(model, pairs, device))
        step(data)
        step(data)
        synchronise(device)
    except torch.OutOfMemoryError:
        return False
    finally:
        step = data = None  # type: ignore[assignment]
        free_memory(device)
    return True


def synchronise(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_gib(device: torch.device) -> float:
    """Peak device memory since the last reset."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


def free_memory(device: torch.device) -> None:
    """Collect garbage, reset torch.compile and empty the CUDA cache."""
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_rate(device: torch.device) -> float:
    """Peak bf16 operations a second, for utilisation: from the data sheet, or else measured by a matrix product."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, rate in PEAKS.items():
            if part in name:
                return rate
    side = 8192 if device.type == "cuda" else 256
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    synchronise(device)
    started = time.perf_counter()
    for _ in range(10):
        a @ a
    synchronise(device)
    return 10 * 2 * side**3 / (time.perf_counter() - started)
