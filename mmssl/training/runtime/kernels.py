"""Which kernels torch takes on a GPU: float32 proper or TF32, deterministic ones, and which attention."""

from __future__ import annotations

import os

import torch
from torch import nn
from torch.backends import cudnn

from mmssl.training.runtime.launcher import Precision


def choose_kernels(precision: Precision, deterministic: bool) -> None:
    """Choose kernels for this process; call it before CUDA starts.

    cuDNN's attention, torch's first choice on recent cards, is left out: its gradients do not repeat bit for bit, and with masks
    they may be NaN (pytorch#196678). FlashAttention comes first then. With texts and pictures of at most 256 tokens its gradients
    repeat even without `deterministic`, as each sum has two parts at most.

    Args:
        precision: "tf32": float32 products and convolutions on tensor cores; otherwise they are float32 proper. (Torch's default
            is TF32 in convolutions alone.)
        deterministic: deterministic kernels only, no choice by timing; an operation that has none raises an error.
    """
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    inside = "tf32" if precision == "tf32" else "ieee"
    cudnn.allow_tf32 = (
        inside == "tf32"
    )  # torch's older switch: torch.export asks it, and it must agree with the newer ones
    cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = inside, inside  # type: ignore[attr-defined]
    torch.backends.cuda.enable_cudnn_sdp(False)
    if deterministic:
        torch.use_deterministic_algorithms(True)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        cudnn.benchmark = False
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time, hides nothing here


def weights_channels_last(module: nn.Module) -> None:
    """Lay the weights of 2D convolutions out channels-last, as their inputs are: else a GPU transposes each in every step.

    Names, shapes and values stay. Patch embeddings, which are linear layers on a GPU, stay as they are.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and part.stride != part.kernel_size:
            part.to(memory_format=torch.channels_last)
