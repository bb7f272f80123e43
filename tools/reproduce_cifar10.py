"""Published results on CIFAR-10, in the published settings: `python tools/reproduce_cifar10.py --data FOLDER --method simclr`.

ResNet-18 with the stem of CIFAR (3 x 3, no max pooling), batch 512, 200 epochs, SGD 0.06 * batch / 128 with momentum 0.9 and weight
decay 5e-4, half a cosine without warm-up; kNN with k = 200 and tau = 0.1 on the test pictures at the LAST epoch. lightly's table
(docs/source/getting_started/benchmarks.rst, one seed, the best epoch): SimCLR 0.848, BYOL 0.868, Barlow Twins 0.819, SimSiam 0.764
at batch 512 and 200 epochs.

Pictures lie on the device and are augmented there. Runs resume: with `--minutes` a run saves and stops when the time is over (exit
code 143), and the same command goes on. FOLDER holds `cifar10-train.npz` and `cifar10-test.npz`: JPEG bytes in a row (`jpeg`),
where each begins (`offsets`), and `labels`. They are JPEGs, one lossy step from the original pictures: compare with care.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from device_views import DeviceViews, SimClrLaw
from PIL import Image
from pydantic import TypeAdapter
from torch import Tensor, nn

from mmssl.core.batch import Batch
from mmssl.core.config import Duration
from mmssl.core.encoder import EmbeddingModel, Encoder, Features
from mmssl.core.errors import Interrupted
from mmssl.core.evaluator import Evaluator, Score
from mmssl.core.objective import Learner
from mmssl.core.plan import Plan
from mmssl.core.torch_seeding import seeded
from mmssl.evaluation.common import inference
from mmssl.evaluation.labelled.base import Labelled, classifier_scores
from mmssl.evaluation.labelled.knn import neighbours
from mmssl.objectives.common import ObjectiveConfig
from mmssl.recipe.unions import ObjectiveUnion
from mmssl.training.run import TrainingConfig

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
TWO = {"modality": "image", "view": "augmented"}
METHODS: dict[str, dict[str, Any]] = {
    "simclr": {
        "kind": "simclr", **TWO, "temperature": 0.5, "embedding": 128,
        "head": {"kind": "mlp", "hidden": 512, "norm": "batch", "norm_last": True},
    },
    "byol": {
        "kind": "byol", **TWO, "momentum": 0.99, "embedding": 256,
        "head": {"kind": "mlp", "hidden": 1024, "norm": "batch"}, "predictor": {"kind": "mlp", "hidden": 1024, "norm": "batch"},
    },
    "barlow_twins": {
        "kind": "barlow_twins", **TWO, "redundancy_weight": 0.005, "embedding": 2048,
        "head": {"kind": "mlp", "hidden": 2048, "norm": "batch"},
    },
    "simsiam": {
        "kind": "simsiam", **TWO, "embedding": 2048, "head": {"kind": "mlp", "hidden": 2048, "norm": "batch", "norm_last": True},
        "predictor": {"kind": "mlp", "hidden": 512, "norm": "batch"},
    },
}  # fmt: skip
PUBLISHED = {"simclr": 0.848, "byol": 0.868, "barlow_twins": 0.819, "simsiam": 0.764}


class CifarResNet(Encoder):
    """ResNet-18 (He et al. 2016, section 4.2's stem): uint8 [B, 3, 32, 32] -> pooled [B, 512]."""

    width = 512

    def __init__(self) -> None:
        super().__init__()
        self.model = timm.create_model("resnet18", pretrained=False, num_classes=0)
        self.model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.model.maxpool = nn.Identity()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1) * 255, persistent=False)

    def prepare(self, x: Tensor) -> Tensor:
        """Normalise by the mean and standard deviation of CIFAR-10."""
        return ((x.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor, **asked: Any) -> Features:
        """[B, 3, 32, 32] -> pooled features."""
        return Features(self.model(self.prepare(x)))

    def layers(self) -> list[list[nn.Parameter]]:
        """One group."""
        return [[*self.parameters()]]


def load(path: Path, count: int | None) -> tuple[Tensor, Tensor]:
    """Pictures uint8 [N, 3, 32, 32] and labels [N]."""
    arrays = np.load(path)
    jpeg, offsets, labels = arrays["jpeg"], arrays["offsets"], arrays["labels"][:count]
    pictures = [
        np.asarray(Image.open(io.BytesIO(jpeg[a:b].tobytes())).convert("RGB"))
        for a, b in pairwise(offsets[: len(labels) + 1])
    ]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels).long()


class TimedViews(DeviceViews):
    """The stream, which asks the run to stop when it has been read for a number of minutes; None: never."""

    def __init__(self, *settings: Any, minutes: float | None) -> None:
        super().__init__(*settings)
        self._alarm = threading.Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGTERM)) if minutes else None

    def __iter__(self) -> Iterator[Batch]:
        if self._alarm is not None:
            self._alarm.daemon = True
            self._alarm.start()
        return super().__iter__()

    def close(self) -> None:
        """The run is over."""
        if self._alarm is not None:
            self._alarm.cancel()


class KnnOnDevice(Evaluator):
    """kNN of test pictures by training pictures; both are tensors on the device."""

    headlines = ("acc1",)

    def __init__(self, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], k: int) -> None:
        self.train, self.test, self.k = train, test, k

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        """Scores: see `classifier_scores`."""
        with inference(model):
            parts = [
                Labelled(
                    torch.cat([model.features("image", x) for x in pictures.split(1000)]), labels.to(pictures.device)
                )
                for pictures, labels in (self.train, self.test)
            ]
        train, test = parts
        answers, said = neighbours(train, ks=(self.k,), temperature=0.1)(test)
        yield from (classifier_scores(train, test, answers) | said).items()


def main() -> int:
    """Read arguments, train, and print the accuracy beside the published one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with the npz files")
    parser.add_argument("--method", choices=sorted(METHODS), default="simclr")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--neighbours", type=int, default=200)
    parser.add_argument("--pictures", type=int, help="the first training and test pictures only; default: all")
    parser.add_argument("--every", default="20 epochs", help="between two evaluations")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--compile", choices=("off", "default"), default="off")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--minutes", type=float, help="save and stop after this time; the same command goes on")
    parser.add_argument("--output", type=Path, default=Path("runs"))
    parser.add_argument("--json", type=Path, help="write the result here")
    given = parser.parse_args()
    training = TrainingConfig.model_validate_json(json.dumps({
        "optimizer": {"kind": "sgd", "lr": 0.06 * given.batch / 128, "momentum": 0.9, "weight_decay": 5e-4, "decay_rule": "all"},
        "schedule": {"kind": "cosine"}, "precision": given.precision, "device": given.device, "compile": given.compile,
        "save": {"every": given.every, "minutes": None}, "log": {"every": "100 steps", "trackers": []},
    }))  # fmt: skip
    launch = training.launch()
    train, test = (load(given.data / f"cifar10-{split}.npz", given.pictures) for split in ("train", "test"))
    train, test = (train[0].to(launch.device), train[1]), (test[0].to(launch.device), test[1])
    stream = TimedViews(train[0], given.batch, given.seed, {"augmented": (2, SimClrLaw())}, minutes=given.minutes)
    plan = Plan.of(Duration(f"{given.epochs} epochs"), given.batch, stream.epoch_samples)
    with seeded(given.seed, "weights"):
        encoders: dict[str, Encoder] = {"image": CifarResNet().to(memory_format=torch.channels_last)}
        config: ObjectiveConfig = TypeAdapter(ObjectiveUnion).validate_json(json.dumps(METHODS[given.method]))
        learner = Learner(encoders, config.build(encoders, plan), seed=given.seed)
    evaluators = {"knn": (KnnOnDevice(train, test, given.neighbours), Duration(given.every))}
    settings = json.dumps({"method": given.method, "epochs": given.epochs, "batch": given.batch, "seed": given.seed})
    folder = given.output / f"cifar10_{given.method}_{given.batch}_{given.epochs}_{given.seed}"
    run = training.build(learner, stream, evaluators, launch, folder, settings, seed=given.seed, plan=plan)
    started, first = time.monotonic(), run.state.step
    try:
        scores = run.train()
    except Interrupted as stopped:
        print(f"{stopped}; run the same command to go on")
        return stopped.exit_code
    finally:
        launch.close()
    accuracy, steps = float(scores["knn/acc1"]), run.state.step - first
    published = PUBLISHED.get(given.method)
    print(
        f"{given.method}, batch {given.batch}, {given.epochs} epochs, seed {given.seed}: kNN {accuracy:.3f} at the last epoch, "
        f"published {published} (best epoch); {steps} steps in {time.monotonic() - started:.0f} s"
    )
    if given.json:
        result = {"ratio": accuracy / published if published else None, "ours": accuracy, "peer": published}
        given.json.write_text(json.dumps({**result, "unit": "kNN accuracy", **json.loads(settings)}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
