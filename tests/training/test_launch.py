"""Devices, precisions, trackers, and settings of launchers that the recipe decides."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmssl.core.errors import RecipeError
from mmssl.training.launch import Launch
from tests.training.toys import make_run


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_that_of_matrix_products(precision: str, dtype: torch.dtype) -> None:
    launch = Launch(precision, "cpu")  # type: ignore[arg-type]
    with launch.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert launch.scaler is None
    assert launch.device == torch.device("cpu")
    assert launch.is_main
    assert launch.describe() == f"1 process, device cpu, precision {precision}"


def test_what_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="fp16 is for CUDA devices"):
        Launch("fp16", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="got 'cuda', and torch sees no CUDA device"):
        Launch("fp32", "cuda")
    with pytest.raises(RecipeError, match="got 'tensorbord', did you mean 'tensorboard'"):
        Launch("fp32", "cpu", ["tensorbord"])
    with pytest.raises(RecipeError, match="'clearml' is not installed here"):
        Launch("fp32", "cpu", ["clearml"])


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "mixed precision 'bf16', and the recipe for 'fp32'"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "4 accumulation steps"),
        ("WORLD_SIZE", "4", "started 4 processes, and 1 found each other"),
    ],
)
def test_launchers_do_not_decide_in_silence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, complaint: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=complaint):
        Launch("fp32", "cpu")


def test_several_processes_that_became_one_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate launch --cpu --num_processes 2` leaves in the environment of its only process."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    Launch("fp32", "cpu")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(RecipeError, match=r"asked for several processes and has started one.*torchrun"):
        Launch("fp32", "cpu")


def test_a_run_says_where_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, 1).train()
    assert capsys.readouterr().err.startswith("1 process, device cpu, precision fp32\n")


def test_one_process_needs_no_wrapping() -> None:
    launch, module = Launch("fp32", "cpu"), torch.nn.Linear(2, 2)
    assert launch.wrap(module) is module  # type: ignore[arg-type]
    with launch.without_averaging(module):
        pass
    launch.close()
