"""Training steps of our models and of open_clip's on one device, and their useful floating point operations.

Useful operations are those that the loss needs: real tokens of a text, no padding; for a backward pass, twice
the forward pass, without recomputation.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

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
from mmssl.training.steps.compilation import CompileMode, compile_encoders
from mmssl.training.steps.optim import AdamWConfig
from mmssl.training.steps.plain import GradientStep, PlainStepConfig
from mmssl.training.steps.state import Stream, TrainState

CONTEXT, WORDS, LEARNING_RATE, WARM = 77, 49408, 1e-5, 3
CAPTIONS = (9, 10, 11, 11, 12, 12, 13, 13, 14, 15, 16, 19)
"""Tokens of captions, ends included, spread as in CC3M: 12.9 on average."""


@dataclass(frozen=True)
class Card:
    """Peaks from the vendor's data sheet: dense operations a second, bytes a second of its memory; None: unknown."""

    bf16: float | None = None
    tf32: float | None = None
    fp32: float | None = None
    memory: float | None = None


CARDS = {
    "H200": Card(989e12, 495e12, 67e12, 4.8e12),
    "H100": Card(989e12, 495e12, 67e12, 3.35e12),
    "A100": Card(312e12, 156e12, 19.5e12, 2.0e12),
}
"""By a part of the device's name."""


@dataclass(frozen=True)
class TowerShape:
    """Width, depth and heads of a transformer."""

    width: int
    depth: int
    heads: int

    def operations(self, tokens: int) -> float:
        """Operations of the blocks' forward pass over one sample."""
        return self.depth * (24 * self.width**2 * tokens + 4 * self.width * tokens**2)


@dataclass(frozen=True)
class ClipShape:
    """A CLIP model: open_clip's name, its two towers, picture and patch size, shared width, and samples of a step."""

    peer: str
    image: TowerShape
    text: TowerShape
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


B_TEXT, L_TEXT = TowerShape(512, 12, 8), TowerShape(768, 12, 12)
MODELS = {
    "ViT-B/32": ClipShape("ViT-B-32", TowerShape(768, 12, 12), B_TEXT, 224, 32, 512, 1024),
    "ViT-B/16": ClipShape("ViT-B-16", TowerShape(768, 12, 12), B_TEXT, 224, 16, 512, 512),
    "ViT-L/14": ClipShape("ViT-L-14", TowerShape(1024, 24, 16), L_TEXT, 224, 14, 768, 192),
}
TINY = {"tiny": ClipShape("", TowerShape(32, 1, 2), TowerShape(32, 1, 2), 32, 16, 16, 8)}


def random_batch(model: ClipShape, samples: int, device: torch.device, seed: int = 0) -> Batch:
    """Random pictures (uint8) and captions of real lengths, on the device."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(CAPTIONS)[torch.randint(len(CAPTIONS), (samples,), generator=random)]
    text = torch.randint(1, WORDS - 2, (samples, CONTEXT), generator=random)
    place = torch.arange(CONTEXT)
    text = torch.where(place < lengths[:, None] - 1, text, 0)
    text[torch.arange(samples), lengths - 1] = WORDS - 1
    there = torch.Generator(device).manual_seed(seed)
    size = samples, 3, model.size, model.size
    pictures = torch.randint(0, 256, size, dtype=torch.uint8, device=device, generator=there)
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


def our_learner(model: ClipShape) -> Learner:
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
    """The batch on the device, with common padding of texts trimmed and their lengths noted (see `DeviceStream`)."""
    counts = {"text": {"tokens0": tuple(caption_lengths(batch).tolist())}}
    views = {**batch.views, "text": {"tokens0": trim_padding(batch["text"]["tokens0"])}}
    return replace(batch, views=views, token_counts=counts)


@dataclass(frozen=True)
class OurStep:
    """A gradient step with the state that it moves; the host waits for nothing."""

    step: GradientStep
    state: TrainState

    def __call__(self, batch: Batch) -> None:
        self.step(self.state, batch)


def our_step(
    model: ClipShape, device: torch.device, mode: CompileMode = "off", backend: str = "inductor", micro_batches: int = 1
) -> tuple[OurStep, Learner]:
    """One whole step of a run (forward, backward, finite check, update), and the learner that it updates."""
    torch.manual_seed(0)
    launch = Launch("bf16", "cpu" if device.type == "cpu" else "cuda")
    with torch.device(device):  # weights drawn on the CPU take seconds
        learner = our_learner(model)
    launch.place(learner)
    compile_encoders(learner, mode, backend)
    config = PlainStepConfig() if micro_batches == 1 else CachedStepConfig(micro_batches=micro_batches)
    step = config.build(learner, launch.wrap(learner), launch, 0, None)
    stream: Stream = _NoStream()
    state = TrainState(learner.train(), AdamWConfig(lr=LEARNING_RATE).build(learner), stream, 1000)
    return OurStep(step, state), learner


def peer_step(model: ClipShape, device: torch.device, backend: str | None = None) -> Callable[[Batch], None]:
    """open_clip's step: its model, loss and optimizer settings, bf16 autocast, pictures as from its loader."""
    import open_clip

    torch.backends.cuda.enable_cudnn_sdp(True)  # torch's default, which our launches change
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


def seconds_of(step: Callable[[], object], device: torch.device, repeats: int, warm: int = WARM) -> float:
    """Mean seconds of a call: `repeats` of them are given to the device at once, between two events; nothing waits in between."""
    for _ in range(warm):
        step()
    synchronise(device)
    if device.type != "cuda":
        started = time.perf_counter()
        for _ in range(repeats):
            step()
        return (time.perf_counter() - started) / repeats
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(repeats):
        step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats


def synchronise(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_gib(device: torch.device) -> tuple[float, float]:
    """Peak device memory since the last call, allocated and reserved; 0 on a CPU (not measured)."""
    if device.type != "cuda":
        return 0.0, 0.0
    found = torch.cuda.max_memory_allocated(device) / 2**30, torch.cuda.max_memory_reserved(device) / 2**30
    torch.cuda.reset_peak_memory_stats(device)
    return found


def free_memory(device: torch.device) -> None:
    """Collect garbage, reset torch.compile and empty the CUDA cache."""
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def card_of(device: torch.device) -> Card:
    """The data sheet of the device; of an unknown one, nothing is known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return next((card for part, card in CARDS.items() if part in name), Card())
