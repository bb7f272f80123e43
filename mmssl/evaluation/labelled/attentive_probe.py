"""Attentive probe: learnt queries attend over the tokens of a frozen encoder, and a linear layer classifies what they find."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.core.encoder import EmbeddingModel, Encoder
from mmssl.core.errors import DataError, RecipeError
from mmssl.core.evaluator import Score
from mmssl.core.seeding import generator
from mmssl.core.torch_seeding import seeded
from mmssl.data.modality import Modality
from mmssl.evaluation.answers import Answers
from mmssl.evaluation.collect import Encode
from mmssl.evaluation.labelled.base import (
    Classifier,
    Labelled,
    LabelledConfig,
    LabelledEvaluator,
    classifier_answers,
    held_out,
    in_shares,
    number_classes,
    warm_cosine,
)
from mmssl.evaluation.ranking import Predictions, ranks_of_classes
from mmssl.evaluation.tiles import exact_products

Rates = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]

LARGEST = torch.finfo(torch.float16).max


class AttentiveProbeConfig(LabelledConfig):
    """Settings of an attentive probe, for encoders whose pooled vector is no good summary of their tokens (CAE, V-JEPA, AIM).

    Attributes:
        heads: number of learnt queries; divides the width of the encoder.
        epochs: passes over the stored tokens, for each setting.
        training_batch: samples of a step.
        lrs: grid of peak rates of AdamW.
        weight_decays: grid of weight decays. Each is tried with each rate.
        validation: share of the training samples for choosing rate and decay. The probe is then trained on all of them.
        memory: gigabytes that the stored tokens (2 bytes a number) of training and test samples may take, on the model's device.
        seed: seed of the split, of the initial weights and of the order of samples.
    """

    kind: Literal["attentive_probe"] = "attentive_probe"
    heads: int = Field(default=8, ge=1)
    epochs: int = Field(default=20, ge=1)
    training_batch: int = Field(default=256, ge=1)
    lrs: Rates = (3e-4, 1e-3, 3e-3)
    weight_decays: tuple[Annotated[float, Field(ge=0)], ...] = Field(default=(0.01, 0.1), min_length=1)
    validation: float = Field(default=0.2, gt=0, lt=1)
    memory: float = Field(default=8.0, gt=0)
    seed: int = 0

    def build(self, modalities: Mapping[str, Modality]) -> AttentiveProbe:
        return AttentiveProbe(self, modalities)


class AttentiveProbe(LabelledEvaluator):
    """Attentive probe: trained on the tokens of the training shards, evaluated on the test shards.

    Scores: see `attentive_classifier`. Its tensors are those of `AttentiveHead`, and `classes`, the labels of its outputs.
    """

    config: AttentiveProbeConfig

    def __init__(self, config: AttentiveProbeConfig, modalities: Mapping[str, Modality]) -> None:
        if config.average:
            raise RecipeError(
                "average: got views to average, and an attentive probe reads the tokens of one: leave it out"
            )
        super().__init__(config, modalities)
        self._width = 0

    def encode(self, model: EmbeddingModel) -> Encode:
        """Function from views [n, ...] to tokens, float16 [n, T * D]."""
        model.require(self.modality, shared_space=False)
        encoder = model.encoders[self.modality]
        assert isinstance(encoder, Encoder)
        if Encoder.TOKENS not in encoder.capabilities:
            raise ValueError(
                f"attentive_probe: got {type(encoder).__name__} for {self.modality!r}, which gives no tokens to attend to; use "
                "linear_probe or knn"
            )
        if encoder.width % self.config.heads:
            raise ValueError(
                f"attentive_probe: got heads {self.config.heads}, wanted a divisor of {encoder.width}, the width of the encoder"
            )
        self._width = encoder.width
        samples = self._shards.samples()
        checked = False

        def tokens(x: Tensor) -> Tensor:
            nonlocal checked
            found = encoder(x.to(model.device)).tokens
            if not checked:
                self._require_memory(samples, found.shape[1])
                checked = True
            stored: Tensor = found.clamp(-LARGEST, LARGEST).where(found.isfinite(), found).half().flatten(1)
            return stored

        return tokens

    def fit(self, train: Labelled) -> Classifier:
        classify, self.fitted = attentive_classifier(train, self._width, self.config)
        return classify

    def _require_memory(self, samples: int, tokens: int) -> None:
        size = samples * tokens * self._width * 2 / 1e9
        if size > self.config.memory:
            raise DataError(
                f"attentive_probe: {samples} samples of {tokens} tokens of width {self._width} take {size:.3g} GB, wanted at most "
                f"{self.config.memory:g}: raise `memory`, or set `max_train_samples` and `max_samples`"
            )


class AttentiveHead(nn.Module):
    """Tokens [B, T, D] -> logits [B, K].

    Every number of the tokens is scaled to mean 0 and variance 1 over training. Query h has a weight for each token, the softmax
    over tokens of x . q_h / sqrt(D), and sees the weighted mean of them through its own projection to D / H numbers. Those of all
    queries, after a LayerNorm, are classified. A key projection would add nothing: a query is free already. Tokens that are all
    zero are padding.

    Args:
        width: D. heads: H, divides D. classes: K.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int, heads: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(heads, width) * 0.02)
        self.value = nn.Parameter(torch.randn(heads, width, width // heads) / math.sqrt(width))
        self.classifier = nn.Linear(width, classes)
        nn.init.normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of tokens, float32."""
        real = real_tokens(tokens)
        x = (tokens.float() - self.mean) / self.deviation
        scores = (x @ self.query.T / math.sqrt(x.shape[2])).masked_fill(~real[:, :, None], -math.inf)
        seen = scores.softmax(1).transpose(1, 2) @ x  # [B, H, D]
        found = torch.einsum("bhd,hde->bhe", seen, self.value).flatten(1)
        logits: Tensor = self.classifier(self.norm(found))
        return logits

    @torch.no_grad()
    def scale_to(self, tokens: Tensor, chosen: Tensor, at_once: int = 256) -> None:
        """Set mean and deviation to those of the tokens of chosen samples."""
        sums, squares = (
            torch.zeros_like(self.mean, dtype=torch.float64),
            torch.zeros_like(self.mean, dtype=torch.float64),
        )
        count = 0
        for batch in torch.split(chosen, at_once):
            real = tokens[batch][real_tokens(tokens[batch])].double()
            count, sums, squares = count + len(real), sums + real.sum(0), squares + real.square().sum(0)
        variance = (squares / count - (sums / count).square()).clamp_min(0)
        self.mean.copy_(sums / count)
        # A constant number is rounding noise: dividing by its deviation would make it the largest.
        self.deviation.copy_(variance.sqrt().where(variance > 1e-6 * variance.max(), torch.inf))


def real_tokens(tokens: Tensor) -> Tensor:
    """Mask [B, T] of the tokens [B, T, D] that are no padding, which is zero; all of them in a sample that has only zeros."""
    real = (tokens != 0).any(2)
    return real | ~real.any(1, keepdim=True)


@dataclass(frozen=True)
class Setting:
    """Rate and weight decay of one training of a head."""

    lr: float
    weight_decay: float


def attentive_classifier(
    train: Labelled, width: int, config: AttentiveProbeConfig
) -> tuple[Classifier, dict[str, Tensor]]:
    """Choose rate and decay on a part of the training samples, and train on all of them: the classifier, and its tensors.

    Each process trains its share of the settings. It says validation_acc1, lr, weight_decay, at_edge (the rate is the lowest or
    highest of several: widen `lrs`), epochs, tokens (T), split_seed.

    Args:
        train: features are tokens [n, T * D].
        width: D.
        config: settings.

    Raises:
        DataError: fewer than two classes, or too few samples to split.
    """
    classes, numbers = number_classes(train)
    tokens = train.features.view(len(numbers), -1, width)
    held, rest = held_out(len(numbers), config.validation, config.seed, "attentive_probe")
    grid = [Setting(*both) for both in product(sorted(config.lrs), sorted(config.weight_decays, reverse=True))]
    rank, world = distributed.rank(), distributed.world_size()
    mine = {}
    for i in range(rank, len(grid), world):
        head = train_head(tokens, numbers, rest, len(classes), grid[i], config)
        right = predict(head, tokens[held.to(tokens.device)], numbers[held.to(numbers.device)]).ranks == 1
        mine[i] = int(right.sum()) / len(held)
    accuracies = {i: share for part in distributed.gather_objects(mine) for i, share in part.items()}
    best = max(range(len(grid)), key=lambda i: accuracies[i])  # of equal ones the first: low rate, strong decay
    head = train_head(tokens, numbers, torch.arange(len(numbers)), len(classes), grid[best], config)
    distributed.follow_main(head.state_dict().values())
    said: dict[str, Score] = {
        "validation_acc1": accuracies[best],
        "lr": grid[best].lr,
        "weight_decay": grid[best].weight_decay,
        "at_edge": int(len(config.lrs) > 1 and grid[best].lr in (min(config.lrs), max(config.lrs))),
        "epochs": config.epochs,
        "tokens": tokens.shape[1],
        "split_seed": config.seed,
    }

    def classify(test: Labelled) -> tuple[Answers, dict[str, Score]]:
        def predicted(features: Tensor, wanted: Tensor) -> Predictions:
            return predict(head, features.view(len(features), features.shape[1] // width, width), wanted)

        return classifier_answers(test, classes, in_shares(predicted)), said

    return classify, {**head.state_dict(), "classes": classes}


def train_head(
    tokens: Tensor, numbers: Tensor, chosen: Tensor, classes: int, setting: Setting, config: AttentiveProbeConfig
) -> AttentiveHead:
    """Train a head by AdamW on the cross-entropy: a pure function of its arguments.

    Args:
        tokens: [n, T, D]. numbers: [n] int64, 0 ... K-1.
        chosen: [m] int64 on the CPU, the samples that it is trained on.
        classes: K.
        setting: rate and decay; vectors (norms and biases) are not decayed.
        config: epochs, batch, heads and seed.
    """
    device = tokens.device
    with seeded(config.seed, "attentive_probe", "head"):
        head = AttentiveHead(tokens.shape[2], config.heads, classes).to(device)
    chosen = chosen.to(device)
    head.scale_to(tokens, chosen)
    decayed = [p for p in head.parameters() if p.ndim > 1]
    others = [p for p in head.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": setting.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=setting.lr)
    total = config.epochs * math.ceil(len(chosen) / config.training_batch)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, total))
    with torch.enable_grad(), torch.autocast(device.type, enabled=False), exact_products():
        for epoch in range(config.epochs):
            order = torch.from_numpy(generator(config.seed, "attentive_probe", "order", epoch).permutation(len(chosen)))
            for batch in torch.split(chosen[order.to(device)], config.training_batch):
                optimizer.zero_grad()
                F.cross_entropy(head(tokens[batch]), numbers[batch]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                rates.step()
    return head.eval()


@torch.no_grad()
def predict(head: nn.Module, tokens: Tensor, wanted: Tensor, at_once: int = 256) -> Predictions:
    """Predictions of a head for inputs [n, ...], and the ranks of the wanted classes [n]."""
    with torch.autocast(tokens.device.type, enabled=False), exact_products():
        parts = [
            ranks_of_classes(head(x), some, scale=1.0)
            for x, some in zip(torch.split(tokens, at_once), torch.split(wanted, at_once), strict=True)
        ]
    return Predictions.joined(parts)
