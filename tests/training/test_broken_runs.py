"""Small runs that are broken on purpose trip the right alarm, and the same runs unbroken trip none.

Real runs of the trainer, a few seconds each, on sums of patterns and captions that say how strong each pattern is.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor, nn

from mmssl.core.batch import Batch
from mmssl.core.context import StepContext
from mmssl.core.errors import NumericError
from mmssl.core.forward import Network
from mmssl.core.objective import Latents, Learner, Objective
from mmssl.core.plan import Plan
from mmssl.losses.latent_prediction import latent_targets
from mmssl.objectives.byol import ByolObjective
from mmssl.objectives.common import ObjectiveConfig
from mmssl.objectives.latent_prediction import LatentPredictionObjective
from mmssl.recipe.unions import ObjectiveUnion
from mmssl.reporting.explain import explain_history
from mmssl.training.health import ALARM, lines
from mmssl.training.runtime.jsonl import JsonLines
from tests.contracts import toys
from tests.reporting.test_explain import recipe
from tests.training.toys import Stream, make_run

CONFIGS: TypeAdapter[ObjectiveConfig] = TypeAdapter(ObjectiveUnion)
pytestmark = pytest.mark.slow
STEPS, BATCH, SAMPLES, FACTORS, LEVELS = 300, 32, 256, 5, 6
MLP: dict[str, Any] = {"hidden": 32, "norm": "layer"}
BATCH_NORM: dict[str, Any] = {"hidden": 32, "norm": "batch"}
OF_PICTURES: dict[str, Any] = {"modality": "picture", "view": "crop", "embedding": 16}
HEALTHY: dict[str, dict[str, Any]] = {
    "byol": {**OF_PICTURES, "momentum": 0.98, "head": BATCH_NORM, "predictor": BATCH_NORM},
    "simsiam": {**OF_PICTURES, "head": BATCH_NORM, "predictor": BATCH_NORM},
    "dino": {
        **OF_PICTURES, "momentum": 0.98, "temperature": 0.1, "teacher_temperature": 0.04, "targets": {"kind": "centring"},
        "prototypes": 32, "head": MLP | {"layers": 3},
    },
    "vicreg": {
        **OF_PICTURES, "invariance_weight": 25, "variance_weight": 25, "covariance_weight": 1, "head": BATCH_NORM,
    },
    "lejepa": {**OF_PICTURES, "views": 2, "sigreg_weight": 0.05, "directions": 64, "head": BATCH_NORM},
    "clip": {
        "pairs": [["picture", "words"]], "views": {"picture": "crop", "words": "tokens"}, "embedding": 16, "temperature": 0.1,
    },
    "latent_prediction": {
        "modality": "picture", "view": "crop", "mask": "mask", "layers": 2, "norm": "layer", "norm_mean": False, "beta": 2.0,
        "over_features": "mean", "momentum": 0.99,
    },
    "simclr": {**OF_PICTURES, "temperature": 0.2, "head": BATCH_NORM},
}  # fmt: skip
RATES = {"byol": 0.02, "simsiam": 0.02, "lejepa": 3e-3}
Spoil = Callable[[Learner, pytest.MonkeyPatch], None]
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def world() -> tuple[Tensor, Tensor]:
    """Pictures [N, 3, 8, 8] from 0 to 1, sums of smooth patterns of random strength, and captions [N, F] that say the strengths."""
    random = torch.Generator().manual_seed(7)
    levels = torch.randint(0, LEVELS, (SAMPLES, FACTORS), generator=random)
    coarse = torch.randn(FACTORS, 3, 4, 4, generator=random)
    patterns = F.interpolate(coarse, (8, 8), mode="bilinear")
    pictures = torch.einsum("nf,fcyx->ncyx", levels / (LEVELS - 1) - 0.5, patterns)
    return (0.5 + 0.3 * pictures).clamp(0, 1), levels + LEVELS * torch.arange(FACTORS)


class Pictures(Stream):
    """Noisy views of random samples of `world`, the first `distinct` of them, and their captions."""

    def __init__(self, objective: Objective, change: Change, distinct: int) -> None:
        super().__init__(BATCH)
        self.needs, self.change, self.distinct = objective.needs(), change, distinct
        self.pictures, self.captions = world()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            random = torch.Generator().manual_seed(self.step)
            rows = torch.randperm(SAMPLES, generator=random)[:BATCH] % self.distinct
            order = torch.rand(BATCH, toys.TOKENS, generator=random).argsort(1)
            made = {"mask0": order < 8, "tokens0": self.captions[rows]}
            for name in ("crop0", "crop1"):
                x = self.pictures[rows]
                made[name] = (255 * (x + 0.05 * torch.randn(x.shape, generator=random)).clamp(0, 1)).byte()
            made = self.change(made)
            views = {
                modality: {f"{kind}{n}": made[f"{kind}{n}"] for kind, count in kinds.items() for n in range(count)}
                for modality, kinds in self.needs.items()
            }
            self.step += 1
            yield Batch(views, rows, tuple(str(row) for row in rows.tolist()))


def unchanged(views: dict[str, Tensor]) -> dict[str, Tensor]:
    return views


def found(
    folder: Path,
    kind: str,
    patch: pytest.MonkeyPatch,
    config: Mapping[str, Any] | None = None,
    lr: float | None = None,
    spoil: Spoil | None = None,
    change: Change = unchanged,
    distinct: int = SAMPLES,
) -> tuple[dict[str, str], dict[str, str]]:
    """Train; warnings of the run, and findings of `explain_history`: name -> sentence."""
    torch.manual_seed(0)
    encoders = toys.encoders()
    plan = Plan(STEPS, BATCH, SAMPLES)
    objective = CONFIGS.validate_json(json.dumps({"kind": kind, **HEALTHY[kind], **(config or {})})).build(
        encoders, plan
    )
    learner = Learner({modality: encoders[modality] for modality in objective.needs()}, objective)
    if spoil is not None:
        spoil(learner, patch)
    optimizer = {"kind": "adamw", "lr": RATES.get(kind, 5e-3) if lr is None else lr}
    run = make_run(
        folder, STEPS, Pictures(objective, change, distinct), learner, optimizer=optimizer, ema=None, clip_norm=None,
        save={"every": None, "minutes": None}, log={"every": "10 steps", "trackers": []}, max_bad_steps=STEPS,
        schedule={"kind": "cosine", "warmup": "20 steps"},
    )  # fmt: skip
    with suppress(NumericError):
        run.train()
    history = lines(JsonLines(folder / "metrics.jsonl").read())
    warnings = {name: said for record in history for name, said in record.items() if name.startswith(f"{ALARM}/")}
    findings = explain_history(history, recipe(batch_size=BATCH, optimizer=optimizer))
    return (
        {name.removeprefix(f"{ALARM}/"): said for name, said in warnings.items()},
        {finding.name: str(finding) for finding in findings if finding.name != "input"},
    )


def no_asymmetry(learner: Learner, patch: pytest.MonkeyPatch) -> None:
    """Take the predictor, the stop-gradient and the teacher, if there is one, from BYOL or SimSiam."""
    objective = learner.objective
    module = importlib.import_module(type(objective).__module__)
    objective.predictor = nn.Identity()
    patch.setattr(module, "negative_cosine", lambda a, b: -F.cosine_similarity(a, b, dim=-1).mean())
    encode = module.encode_two_views
    patch.setattr(module, "encode_two_views", lambda *of, network="student", **how: encode(*of, **how))
    if isinstance(objective, ByolObjective):
        objective.teacher_head = objective.head  # type: ignore[assignment]


def no_teacher(learner: Learner, patch: pytest.MonkeyPatch) -> None:
    """Targets of latent prediction are the student's, with gradient, and tokens do not know their places."""
    objective, encoder = learner.objective, learner.encoders["picture"]
    assert isinstance(objective, LatentPredictionObjective)
    assert isinstance(encoder, toys.Patches)
    encoder.positions.requires_grad_(False).zero_()
    objective.targets = partial(inspect.unwrap(latent_targets), norm="layer", norm_mean=False)

    def encode(batch: Batch, ctx: StepContext) -> Latents:
        def features(*of: Any, network: Network = "student", **how: Any) -> Any:
            return ctx.features(*of, **how)

        without: Any = SimpleNamespace(features=features, presence=ctx.presence)
        return LatentPredictionObjective.encode(objective, batch, without)

    patch.setattr(objective, "encode", encode)


def shuffled(views: dict[str, Tensor]) -> dict[str, Tensor]:
    """Captions of other samples."""
    return views | {"tokens0": views["tokens0"].roll(1, 0)}


def silent(views: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pictures that are all black."""
    return views | {"crop0": torch.zeros_like(views["crop0"])}


@dataclass(frozen=True)
class Broken:
    """A run that is broken on purpose.

    Attributes:
        kind: of its objective.
        finding: name of the warning and of what `explain_history` finds.
        says: words of both.
        how: what is broken, arguments of `found`.
    """

    kind: str
    finding: str
    says: str
    how: Mapping[str, Any]


BROKEN = {
    "byol, no predictor, stop-gradient and teacher": Broken(
        "byol", "collapse", "predictor, teacher's momentum", {"spoil": no_asymmetry}
    ),
    "simsiam, no predictor and stop-gradient": Broken(
        "simsiam", "collapse", "Check what prevents collapse: predictor",
        {"spoil": no_asymmetry, "config": {"constant_predictor_rate": False}},
    ),
    "dino, no centring": Broken(
        "dino", "floor", "check centring", {"config": {"targets": {"kind": "centring", "momentum": 1 - 1e-9}}}
    ),
    "dino, no sharpening": Broken(
        "dino", "chance", "a teacher's temperature that is not below the student's", {"config": {"teacher_temperature": 0.2}}
    ),
    "vicreg, no variance and covariance": Broken(
        "vicreg", "floor", "weak terms against collapse", {"config": {"variance_weight": 1e-4, "covariance_weight": 1e-4}}
    ),
    "lejepa, no SIGReg": Broken("lejepa", "floor", "weak terms against collapse", {"config": {"sigreg_weight": 1e-6}}),
    "clip, captions of other samples": Broken(
        "clip", "chance", "partners that do not belong together", {"change": shuffled}
    ),
    "clip, black pictures": Broken("clip", "collapse", "inputs that are all alike", {"change": silent}),
    "clip, duplicates at the least temperature": Broken(
        "clip", "limit", "Look for duplicates", {"config": {"max_scale": 10}, "distinct": 4}
    ),
    "clip, no rate": Broken("clip", "rate", "Check optimizer.lr", {"lr": 1e-12}),
    "latent_prediction, no teacher": Broken("latent_prediction", "floor", "'target_std' is", {"spoil": no_teacher}),
    "simclr, a rate that explodes": Broken("simclr", "skipped", "Lower optimizer.lr", {"lr": 1e19}),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEALTHY)
def test_a_healthy_run_trips_nothing(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(tmp_path, kind, monkeypatch) == ({}, {})


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_run_trips_the_right_alarm(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = BROKEN[name]
    warnings, findings = found(tmp_path, broken.kind, monkeypatch, **broken.how)
    assert set(warnings) == {broken.finding}
    assert broken.says in warnings[broken.finding]
    assert broken.says in findings[broken.finding]
