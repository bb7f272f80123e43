"""Write the towers of a model as ONNX files with a dynamic batch, also with int8 weights, and run them by ONNX Runtime."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.core.encoder import EmbeddingModel, Encoder, Features

OPSET = 18
INSTALL = "ONNX needs onnx, onnxscript and onnxruntime: install them with `pip install mmssl[onnx]`"


class Tower(nn.Module):
    """An encoder and its head: raw views [B, ...] -> unit-norm embeddings [B, E]; without a head: features [B, D]."""

    def __init__(self, encoder: nn.Module, head: nn.Module | None) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, x: Tensor) -> Tensor:
        """Embed raw views."""
        features: Features = self.encoder(x, pooled_only=True)
        return features.pooled.float() if self.head is None else F.normalize(self.head(features.pooled).float(), dim=-1)


class OnnxTower(Encoder):
    """An exported tower as an encoder, whose pooled output is that of the file: evaluators measure it like any other.

    Args:
        path: of the ONNX file.
        threads: of ONNX Runtime.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name
        self.place = nn.Parameter(torch.zeros(0), requires_grad=False)  # says the device
        self.width = self.session.get_outputs()[0].shape[1]

    def prepare(self, x: Tensor) -> Tensor:
        """Raw views as they are."""
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
        """Embed raw views; there are no masks and no tokens."""
        self.check_hidden(hidden)
        found = self.session.run(None, {self.name: x.cpu().numpy()})[0]
        return Features(torch.from_numpy(np.asarray(found)))

    def layers(self) -> list[list[nn.Parameter]]:
        """There is nothing to train."""
        return [[self.place]]


def write_onnx(model: EmbeddingModel, views: Mapping[str, Tensor], folder: Path, *, int8: bool = False) -> None:
    """Write `<modality>.onnx` for each modality, with input "input" [batch, ...] and output "embeddings" [batch, E], or "features"
    [batch, D] of a modality without a head.

    Args:
        model: encoders and heads, on the CPU, in evaluation mode.
        views: modality -> raw views [n, ...] as the file will take them, n at least 2.
        folder: of the files.
        int8: also write `<modality>.int8.onnx`: weights of matrix products in 8 bits, activations quantised as they come.

    Raises:
        ValueError: onnx is not installed, or a tower cannot be traced; names it.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(INSTALL) from error
    for name, x in views.items():
        shared = name in model.heads
        tower = Tower(model.encoders[name], model.heads[name] if shared else None).eval()
        path = folder / f"{name}.onnx"
        try:
            torch.onnx.export(
                tower,
                (x,),
                path,
                dynamo=True,
                opset_version=OPSET,
                input_names=["input"],
                output_names=["embeddings" if shared else "features"],
                dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
                external_data=sum(p.nbytes for p in tower.parameters()) > 1_900_000_000,  # a file holds 2 GB
                verbose=False,
            )
        except Exception as error:  # the exporter may raise anything
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"{name}: {type(model.encoders[name]).__name__} cannot be traced for ONNX: {reason}"
            ) from error
        if int8:
            from onnxruntime.quantization import QuantType, quantize_dynamic

            quantize_dynamic(path, folder / f"{name}.int8.onnx", weight_type=QuantType.QInt8)


def load_onnx(folder: Path, names: Iterable[str], kind: str = "onnx", *, heads: Iterable[str]) -> EmbeddingModel:
    """The exported towers as a model for evaluators.

    Args:
        folder: of the files.
        names: of the modalities.
        kind: "onnx" or "int8.onnx".
        heads: modalities whose files give embeddings; those of the others give features.
    """
    towers = {name: OnnxTower(folder / f"{name}.{kind}") for name in names}
    return EmbeddingModel(towers, {name: nn.Identity() for name in heads}).eval()


def latency(tower: OnnxTower, x: Tensor, repeats: int = 30, warm_up: int = 3) -> dict[str, Any]:
    """p50 and p95 in milliseconds of embedding one input, on the tower's threads."""
    times = []
    for _ in range(warm_up + repeats):
        start = time.perf_counter()
        tower(x[:1])
        times.append((time.perf_counter() - start) * 1000)
    p50, p95 = np.percentile(times[warm_up:], [50, 95])
    return {"p50_ms": round(float(p50), 3), "p95_ms": round(float(p95), 3), "repeats": repeats, "batch": 1}
