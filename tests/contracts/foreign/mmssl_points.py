"""A package of somebody else's, in one file: a modality, an encoder, an objective and an evaluator, for recipes by entry points.

`points` are sets of points in the plane, `.npy` float32 [n, 2] with x to the right. It has a mirror and nothing else that
synchronized augmentation could do to it, so recipes with any other operation are refused.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mmssl.core.batch import Batch, Needs
from mmssl.core.context import StepContext
from mmssl.core.encoder import EmbeddingModel, Encoder, EncoderConfig, Features
from mmssl.core.evaluator import Evaluator, Score
from mmssl.core.input_spec import InputSpec
from mmssl.core.objective import Latents, LossOutput, Objective, Reduction
from mmssl.core.plan import Plan
from mmssl.data.inspection import FileFormats, Inspection
from mmssl.data.kernel import Entry, Kernel, Operand
from mmssl.data.modality import DecodeError, Modality, ModalityConfig, View
from mmssl.data.timeline import Window
from mmssl.evaluation.common import EvaluatorConfig
from mmssl.objectives.common import Name, ObjectiveConfig

POINTS = 16


class Some(View):
    """float32 [16, 2]: points that are drawn, or the first ones, over and over where there are fewer."""

    def __init__(self, random: bool) -> None:
        self.random = random

    def draw(self, value: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        return {"points": rng.integers(len(value), size=POINTS).tolist()} if self.random else {}

    def __call__(self, value: np.ndarray, parameters: Mapping[str, Any]) -> Tensor:
        chosen = parameters.get("points", np.arange(POINTS) % len(value))
        return torch.from_numpy(value[np.asarray(chosen)])

    def blank(self) -> Tensor:
        return torch.zeros(POINTS, 2)


def mirror(points: np.ndarray, entry: Entry, field: Operand) -> np.ndarray:
    """The points with left and right exchanged."""
    return points * np.array([-1, 1], dtype=points.dtype)


class PointsModality(Modality):
    """Sets of points as float32 arrays [n, 2]."""

    kernels: ClassVar[Mapping[str, Kernel]] = {"flip": Kernel(mirror)}
    warnings: ClassVar[Mapping[str, str]] = {"flat": "sets of points lie on one line"}

    def decode(self, data: bytes, extension: str, window: Window | None = None) -> np.ndarray:
        try:
            points = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise DecodeError("undecodable", f".{extension} is no array: {error}") from error
        if points.dtype != np.float32 or points.ndim != 2 or points.shape[1] != 2 or not len(points):
            raise DecodeError("undecodable", f"got {points.dtype} {list(points.shape)}, wanted float32 [n, 2]")
        return np.ascontiguousarray(points)

    def inspect(self, data: bytes, extension: str) -> Inspection:
        points = self.decode(data, extension)
        flat = ("flat",) if float(points.std(0).min()) == 0 else ()
        return Inspection({"size": [len(points)]}, flags=flat, items=(("a set", data),), channels=points)


class PointsConfig(ModalityConfig):
    """Sets of points, by default in members `.npy`."""

    files: ClassVar[FileFormats | None] = FileFormats("an array", {"npy": rb"\x93NUMPY"}, columns=("points",))
    kind: Literal["points"] = "points"
    jitter: bool = False
    seconds: float | None = None

    def input_spec(self) -> InputSpec:
        return InputSpec(channels=2, seconds=self.seconds)

    @classmethod
    def usual(cls) -> PointsConfig:
        return cls()

    def build(self, name: str) -> PointsModality:
        return PointsModality(name, self.extensions or ("npy",), {"some": Some(True), "eval": Some(False)})


class SetEncoder(Encoder):
    """Sets of points [B, 16, 2] -> the mean over points of what a small network makes of each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.network = nn.Sequential(nn.Linear(2, width), nn.GELU(), nn.Linear(width, width))

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def forward(
        self,
        x: Tensor,
        *,
        keep: Tensor | None = None,
        replace: tuple[Tensor, Tensor] | None = None,
        hidden: int = 0,
        pooled_only: bool = False,
    ) -> Features:
        return Features(self.network(self.prepare(x)).mean(1))

    def layers(self) -> list[list[nn.Parameter]]:
        return [list(self.network.parameters())]


class SetEncoderConfig(EncoderConfig):
    """Settings of the encoder of sets."""

    kind: Literal["set"] = "set"
    width: int

    def wants(self) -> InputSpec:
        return InputSpec(channels=2)

    def mistakes(self) -> Iterator[str]:
        if self.width < 2:
            yield f"width: got {self.width}, which tells one axis; set 2 or more"

    def warnings(self, views: InputSpec) -> Iterator[str]:
        if views.seconds is not None:
            yield f"seconds: got {views.seconds:g}, and sets have no time"

    def build(self) -> SetEncoder:
        return SetEncoder(self.width)


class Small(Objective):
    """The mean square of pooled features: a penalty, to be added to other objectives."""

    reduction = Reduction.LOCAL

    def __init__(self, modality: str) -> None:
        super().__init__()
        self.modality = modality

    def needs(self) -> Needs:
        return {self.modality: {"some": 1}}

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        (features,) = ctx.features(batch, self.modality, ["some0"], pooled_only=True)
        return {"pooled": features.pooled}

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        return LossOutput({"square": latents["pooled"].square().mean()})


class SmallConfig(ObjectiveConfig):
    """Configures the penalty."""

    kind: Literal["small"] = "small"
    modality: Name

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> Small:
        return Small(self.modality)


class Mirrored(Evaluator):
    """Cosine between the embeddings of the points of a square and of their mirror image."""

    def __init__(self, modality: str) -> None:
        self.modality = modality

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        model.require(self.modality, shared_space=True)
        points = torch.linspace(0.1, 1, 2 * POINTS).reshape(1, POINTS, 2)
        a, b = (model.embed(self.modality, x.to(model.device)) for x in (points, points * torch.tensor([-1.0, 1.0])))
        yield "cosine", float((a * b).sum())


class MirroredConfig(EvaluatorConfig):
    """Configures the cosine."""

    kind: Literal["mirrored"] = "mirrored"
    modality: str

    def build(self, modalities: Mapping[str, Modality]) -> Mirrored:
        return Mirrored(self.modality)
