"""What a recipe's precision and `deterministic` change in torch; which of it acts on a GPU is asked of torch, not measured."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.backends import cudnn

from mmssl.core.errors import RecipeError
from mmssl.training.runtime.kernels import choose_kernels, weights_channels_last
from mmssl.training.runtime.launch import Launch
from tests.training.toys import assert_equal, make_config, make_run, tensors


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    yield
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.enable_cudnn_sdp(before)
    choose_kernels("fp32", False)


@pytest.mark.parametrize(
    ("precision", "products", "convolutions"),
    [("fp32", "highest", "ieee"), ("tf32", "high", "tf32"), ("bf16", "highest", "ieee")],
)
def test_float32_is_float32_in_convolutions_too_unless_tf32_is_asked_for(
    precision: str, products: str, convolutions: str
) -> None:
    choose_kernels(precision, False)  # type: ignore[arg-type]
    assert torch.get_float32_matmul_precision() == products
    assert cudnn.conv.fp32_precision == convolutions  # type: ignore[attr-defined]
    assert cudnn.allow_tf32 == (precision == "tf32"), (
        "torch.export asks torch's older switch, which disagreed and raised"
    )
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_is_set_before_anything_is_placed_and_changes_nothing_on_the_cpu(tmp_path: Path) -> None:
    usual = make_run(tmp_path / "usual", total=3)
    usual.train()
    make_config(deterministic=True).launch()
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not cudnn.benchmark
    run = make_run(tmp_path / "same", total=3, deterministic=True)
    run.train()
    assert_equal(tensors(run), tensors(usual))


def test_tf32_needs_a_gpu() -> None:
    with pytest.raises(RecipeError, match="precision: tf32 is for CUDA devices; on a CPU choose fp32 or bf16"):
        Launch("tf32", "cpu")


def test_convolutions_lie_channels_last_and_keep_their_values() -> None:
    """Clips and patches stay: the format is one of pictures, and patches go through a linear layer."""
    net = nn.ModuleDict(
        {
            "usual": nn.Conv2d(3, 4, 3, padding=1),
            "patches": nn.Conv2d(3, 4, 2, 2),
            "clips": nn.Conv3d(3, 4, 3),
            "line": nn.Conv1d(3, 4, 3),
        }
    )
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    weights_channels_last(net)
    assert_equal(net.state_dict(), before)
    last = [n for n, p in net.named_parameters() if p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last)]
    assert last == ["usual.weight"]
    assert all(p.is_contiguous() for name, p in net.named_parameters() if name not in last)
