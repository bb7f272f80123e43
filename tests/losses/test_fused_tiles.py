"""Triton kernels of InfoNCE: their values in Triton's interpreter, and that they compile for a GPU, without one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from mmssl.losses.info_nce import info_nce
from tests.losses.inputs import unit_rows

triton = pytest.importorskip("triton", reason="needs Triton, which comes with torch for CUDA")
ROOT = Path(__file__).resolve().parents[2]


def test_values_and_gradients_in_the_interpreter() -> None:
    """Of `interpreted`, in a process whose kernels are interpreted: Triton asks when it is imported."""
    code = "from tests.losses.test_fused_tiles import interpreted; interpreted()"
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["right"] * 9


def interpreted() -> None:
    """Compare the loss and gradients of the kernels in small blocks with the torch path and with float64."""
    from mmssl.losses import fused_tiles, tiled_info_nce

    torch.set_num_threads(1)
    blocks: Any = {"ROWS": 16, "COLUMNS": 16, "DEPTH": 16, "BLOCKS": 2, "ELEMENTS": 16}
    present = torch.arange(45) % 7 > 0
    nobody = torch.zeros(45, dtype=torch.bool)
    one, two = torch.arange(45) % 20, torch.stack([torch.arange(45) % 41, torch.arange(45).clamp(min=9)], 1)
    with mock.patch.multiple(fused_tiles, **blocks):
        for scale, size, there, ids, bound in (
            (100.0, 64, None, None, 1e-5), (100.0, 40, present, None, 1e-5), (1.0, 20, None, None, 1e-5),
            (1e4, 64, None, None, 1e-3), (20.0, 64, nobody, None, 0), (500.0, 33, present, None, 1e-4),
            (100.0, 20, None, one, 1e-5), (20.0, 64, present, two, 1e-5), (5.0, 40, None, torch.zeros(45).long(), 1e-5),
        ):  # fmt: skip
            a, b = (x.float() for x in unit_rows(45, 20, seed=3))
            b[3] = -a[3]  # a row far below all others
            exact = _gradients(info_nce, a.double(), b.double(), scale, present=there, ids=ids)
            with mock.patch.object(tiled_info_nce, "fuses", return_value=True):
                fused = _gradients(tiled_info_nce.tiled_info_nce, a, b, scale, present=there, ids=ids, size=size)
            plain = _gradients(tiled_info_nce.tiled_info_nce, a, b, scale, present=there, ids=ids, size=size)
            for x, y, z in zip(fused, exact, plain, strict=True):
                largest = float(y.abs().max())
                assert float((x - y).abs().max()) <= bound * largest, (scale, size)
                assert float((x - z.double()).abs().max()) <= 2 * bound * largest, (scale, size)
            print("right")


def _gradients(loss: Callable[..., Tensor], a: Tensor, b: Tensor, scale: float, **options: Any) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in (a, b, torch.tensor(scale, dtype=a.dtype))]
    value = loss(*leaves, **options)
    return [value.detach().double(), *(x.double() for x in torch.autograd.grad(value, leaves))]


POINTERS = dict.fromkeys(("row_tops", "row_sums", "column_tops", "column_sums"), "*fp32")
IDS = dict.fromkeys(("row_ids", "column_ids"), "*i64")
SIGNATURES = {
    "sums_kernel": {"a": "*fp32", "b": "*fp32", "row_present": "*u8", "column_present": "*u8", **IDS, **POINTERS}
    | dict.fromkeys(("n", "m", "shift"), "i32"),
    "weigh_kernel": {
        "logits": "*fp32", "row_top": "*fp32", "row_factor": "*fp32", "column_top": "*fp32", "column_factor": "*fp32",
        "row_present": "*u8", "column_present": "*u8", **IDS, "m": "i32",
    },
}  # fmt: skip


@pytest.mark.parametrize("kernel", SIGNATURES)
def test_kernels_compile_for_compute_capability_9(kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products run on tensor cores, and blocks fit into the shared memory of a multiprocessor (227 KB)."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mmssl.losses import fused_tiles

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(fused_tiles, kernel)
    sizes = {name: getattr(fused_tiles, name) for name in ("ROWS", "COLUMNS", "DEPTH", "BLOCKS", "ELEMENTS")}
    constants = {"WIDTH": 512, "MASKED": True, "IDS": 3} | sizes
    constants = {name: x for name, x in constants.items() if name in function.arg_names}
    source = ASTSource(
        fn=function,
        signature={**SIGNATURES[kernel], **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
    )
    try:
        options = {"num_warps": fused_tiles.WARPS, "num_stages": fused_tiles.STAGES}
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    except (FileNotFoundError, RuntimeError) as e:
        if "ptxas" in str(e) and "not" in str(e).lower():
            pytest.skip(f"this Triton has no assembler for CUDA: {e}")
        raise
    assert made.asm["cubin"]
    assert made.metadata.shared < 227 * 1024
    if kernel == "sums_kernel":
        assert "wgmma" in made.asm["ptx"]
