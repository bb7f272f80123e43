"""Fine-tuning: a copy of an encoder is trained to classify, with smaller rates in earlier layers; the model stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.core.batch import Batch
from mmssl.core.compat import BatchNorm
from mmssl.core.encoder import EmbeddingModel, Encoder, Features, TowerPrecision
from mmssl.core.errors import NumericError, RecipeError
from mmssl.core.evaluator import Evaluator, Score
from mmssl.core.parameters import is_decayed, layer_rates
from mmssl.core.seeding import fold
from mmssl.core.torch_seeding import seeded
from mmssl.data.modality import Modality
from mmssl.data.shards.paths import stamps
from mmssl.data.stream.passes import ShuffledPasses
from mmssl.evaluation.answers import Answers
from mmssl.evaluation.class_names import compare_with_stored, one_for_all, stored_class_names
from mmssl.evaluation.collect import Collected, Encode, KeptShards, items_in_both, unpack_items
from mmssl.evaluation.common import broadcast_scores, inference, require_modalities
from mmssl.evaluation.corrupted import CorruptedShards, Figure
from mmssl.evaluation.labelled.base import (
    Labelled,
    LabelledConfig,
    accuracy_figure,
    classifier_answers,
    classifier_scores,
    labelled_samples,
    number_classes,
    warm_cosine,
)
from mmssl.evaluation.ranking import ranks_of_classes
from mmssl.evaluation.robustness import views_to_average
from mmssl.evaluation.tiles import exact_products


class FineTuningConfig(LabelledConfig):
    """Settings of fine-tuning, with AdamW on the cross-entropy.

    Attributes:
        validation_shards: shards that choose the epoch; of the kind of the training shards, and none of them.
        view: kind of the modality's views that is trained on, as the recipe describes it, such as "crop"; "eval": no augmentation.
        epochs: passes over the training samples.
        training_batch: largest number of samples of a step, over all processes.
        lr: peak rate of the last layers and of the head.
        layer_decay: rate of a layer group over that of the next one towards the output (BEiT, MAE: 0.65 to 0.75); 1: all the same.
        weight_decay: of weights; vectors, such as biases and norms, have none.
        label_smoothing: share of the target that is spread over all classes.
        precision: of training; "bf16": autocast. Scores are measured in float32.
        keep_weights: keep the weights of the tuned encoder too, beside those of the head.
        seed: of the head, of dropout, and of order and views of the samples.
    """

    kind: Literal["fine_tuning"] = "fine_tuning"
    validation_shards: tuple[str, ...] = Field(min_length=1)
    view: str = "eval"
    epochs: int = Field(default=20, ge=1)
    training_batch: int = Field(default=128, ge=1)
    lr: float = Field(default=5e-4, gt=0)
    layer_decay: float = Field(default=0.75, gt=0, le=1)
    weight_decay: float = Field(default=0.05, ge=0)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    precision: TowerPrecision = "float32"
    keep_weights: bool = False
    seed: int = 0

    def build(self, modalities: Mapping[str, Modality]) -> FineTuning:
        require_modalities(modalities, (self.modality, self.labels))
        if modalities[self.modality].view(self.view).on_device:
            raise RecipeError(
                f"view: got {self.view!r}, which the training device finishes; name one that the loader makes whole"
            )
        return FineTuning(self, modalities)


class Tuned(nn.Module):
    """An encoder and a head on its pooled vector: raw views [B, ...] -> logits [B, K], float32.

    Args:
        encoder: is trained. classes: K.
    """

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(True)
        last = nn.Linear(encoder.width, classes)
        nn.init.normal_(last.weight, std=0.02)
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(nn.LayerNorm(encoder.width), last)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of raw views on any device."""
        if self.encoder.trim is not None and x.device.type == "cpu":
            x = self.encoder.trim(x)
        features: Features = self.encoder(x.to(next(self.head.parameters()).device), pooled_only=True)
        with torch.autocast(features.pooled.device.type, enabled=False):
            logits: Tensor = self.head(features.pooled.float())
        return logits

    def train(self, mode: bool = True) -> Tuned:
        """Training mode, in which batch norms keep the statistics of pretraining: no sample depends on its batch."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.eval()
        return self

    def groups(self, lr: float, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        """Parameter groups of AdamW: the rate by layer, and decay of weights alone."""
        rates = layer_rates(self.encoder, layer_decay)
        found: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            key = (rates.get(id(parameter), 1.0), is_decayed(name, parameter, "open_clip_3"))
            found.setdefault(key, []).append(parameter)
        return [
            {"params": some, "lr": lr * rate, "weight_decay": weight_decay if decayed else 0.0}
            for (rate, decayed), some in found.items()
        ]


@dataclass(frozen=True)
class _Task:
    """What a copy is trained on: labels of the training samples, their numbers in the data set, and the classes."""

    train: Labelled
    numbers: Tensor
    classes: Tensor


class FineTuning(Evaluator):
    """Fine-tuning on the training shards, evaluation on the test shards.

    Scores: those of `classifier_scores`, with the weights after the epoch with the best accuracy on the validation shards (the
    first of equals); validation_acc1, best_epoch (from 1), epochs, n_validation, seed. Its tensors are those of the head (and
    of the encoder, with `keep_weights`), see `Tuned`, and `classes`, the labels of its outputs.
    """

    headlines = ("acc1",)

    def __init__(self, config: FineTuningConfig, modalities: Mapping[str, Modality]) -> None:
        self.config = config
        self.modalities = modalities = config.viewed(modalities, (config.modality,))
        names = (config.modality, config.labels)
        self._names: tuple[str, ...] = ()
        self._train = KeptShards(config, modalities, names, config.train_shards, config.max_train_samples)
        self._validation = KeptShards(config, modalities, names, config.validation_shards, None)
        hashed = bool(config.corruptions)
        self._test = KeptShards(config, modalities, names, config.shards, config.max_samples, hashed=hashed)
        self._corrupted = CorruptedShards(config, modalities, names, (config.modality,))
        self.kept = (self._train, self._validation, self._test)

    def open(self) -> None:
        """Open all shards, and compare the class names beside them.

        Raises:
            RecipeError: a shard is both for training and for validation.
        """
        super().open()
        config = self.config
        ours, others = ({path for path, *_ in stamps(some)} for some in (config.train_shards, config.validation_shards))
        if ours & others:
            raise RecipeError(
                f"validation_shards: got {min(ours & others)}, which is one of `train_shards`, wanted other samples: they choose "
                "the epoch"
            )
        stored = stored_class_names(config.train_shards)
        self._names = one_for_all(stored)
        for file, names in stored.items():
            for shards in (config.validation_shards, config.shards):
                compare_with_stored(names, shards, str(file))

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        modality = self.config.modality
        model.require(modality, shared_space=False)
        self.open()
        task = self._task(model.device)
        with seeded(self.config.seed, "fine_tuning", "head"):
            tuned = Tuned(copy.deepcopy(model.encoders[modality]), len(task.classes)).to(model.device)  # type: ignore[arg-type]
        said = self._tune(tuned, task)
        answers, test = self._answers(tuned, self._test, task)
        scores = classifier_scores(task.train, test, answers) | said

        def figures(shards: KeptShards) -> dict[str, Figure]:
            return {"acc1": accuracy_figure(self._answers(tuned, shards, task)[0])}

        robust, tables = self._corrupted.measure(figures, {"acc1": accuracy_figure(answers)}, self._test.inputs)
        self.tables = answers.tables() | tables
        kept = tuned if self.config.keep_weights else tuned.head
        prefix = "" if self.config.keep_weights else "head."
        self.fitted = {f"{prefix}{name}": x for name, x in kept.state_dict().items()} | {"classes": task.classes}
        yield from broadcast_scores(scores | robust).items()

    def _task(self, device: torch.device) -> _Task:
        """One pass over the training shards for what has a label and can be decoded."""
        modality, labels = self.config.modality, self.config.labels
        data = self._train.collect({modality: lambda x: x.new_zeros(len(x), 1), labels: lambda x: x}, device)
        train = labelled_samples(data, modality, labels)
        numbers = data[modality].owner[items_in_both(data, modality, labels)[0]]
        return _Task(train, numbers.cpu(), number_classes(train)[0])

    def _tune(self, tuned: Tuned, task: _Task) -> dict[str, Score]:
        """Train, and go back to the best epoch; what there is to say of it."""
        config = self.config
        needs = {config.modality: {config.view: 1}, config.labels: {"eval": 1}}
        passes = ShuffledPasses(
            self._train.index.open(), self.modalities, needs, task.numbers.tolist(), config.training_batch, config.workers or 0,
            seed=config.seed, on_error=config.on_error,
        )  # fmt: skip
        optimizer = torch.optim.AdamW(tuned.groups(config.lr, config.weight_decay, config.layer_decay))
        total = config.epochs * len(passes)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, total))
        best, best_epoch, seen = -1.0, 0, 0
        state: dict[str, Tensor] = {}
        try:
            for epoch in range(config.epochs):
                with _own_randomness(config.seed, epoch, tuned), torch.enable_grad(), exact_products():
                    for batch in passes.epoch(epoch):
                        self._step(tuned.train(), batch, task.classes, optimizer, epoch)
                        rates.step()
                answers, found = self._answers(tuned, self._validation, task)
                # One process decides for all: rounding may differ.
                share = float(distributed.gather_objects(answers.accuracy()["acc1"])[0])
                if share > best:
                    best, best_epoch, seen = share, epoch + 1, len(found.labels)
                    state = {name: x.detach().to("cpu", copy=True) for name, x in tuned.state_dict().items()}
        finally:
            passes.close()
        tuned.load_state_dict(state)
        distributed.follow_main(tuned.state_dict().values())
        return {
            "validation_acc1": best,
            "best_epoch": best_epoch,
            "epochs": config.epochs,
            "n_validation": seen,
            "seed": config.seed,
        }

    def _step(self, tuned: Tuned, batch: Batch, classes: Tensor, optimizer: torch.optim.Optimizer, epoch: int) -> None:
        """One step on the global batch: gradients are summed over processes."""
        config = self.config
        x, _ = unpack_items(batch, config.modality, f"{config.view}0")
        labels, _ = unpack_items(batch, config.labels)
        wanted = torch.searchsorted(classes, labels.to(classes.device))
        device = classes.device
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
            logits = tuned(x)
        loss = F.cross_entropy(logits, wanted, label_smoothing=config.label_smoothing, reduction="sum")
        count = distributed.total_detached(torch.tensor(float(len(wanted)), device=device)).clamp_min(1)
        (loss / count).backward()  # type: ignore[no-untyped-call]
        if not torch.isfinite(distributed.total_detached(loss)):
            raise NumericError(f"fine_tuning: the loss is not finite in epoch {epoch + 1}; lower `lr`")
        for parameter in tuned.parameters():
            if parameter.grad is not None:
                parameter.grad = distributed.total_detached(parameter.grad)
        optimizer.step()

    def _answers(self, tuned: Tuned, shards: KeptShards, task: _Task) -> tuple[Answers, Labelled]:
        """Answers for the samples of some shards, in float32."""
        modality, labels = self.config.modality, self.config.labels
        kind = self.config.average.get(modality)

        def logits(x: Tensor) -> Tensor:
            return torch.stack([tuned(one) for one in views_to_average(kind, x)]).mean(0)

        encode: dict[str, Encode] = {modality: logits, labels: lambda x: x}
        with inference(tuned):
            data: Collected = shards.collect(encode, task.classes.device)
        found = labelled_samples(data, modality, labels, self._names)
        return classifier_answers(found, task.classes, ranks_of_classes), found


@contextmanager
def _own_randomness(seed: int, epoch: int, tuned: Tuned) -> Iterator[None]:
    """Seed torch for dropout within, on the processor and the model's device, and restore its states."""
    device = next(tuned.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(fold(seed, "fine_tuning", epoch, distributed.rank()))
        yield
