"""What must hold on a GPU as on a CPU: the losses, cached gradients, packed texts, and resumed runs."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.encoders.text_transformer import TextTransformer, TextTransformerConfig, trim_padding
from mmssl.losses.info_nce import info_nce
from mmssl.losses.tiled_info_nce import tiled_info_nce
from mmssl.training.steps.compilation import CompileMode

from .bench import Bench, Figures, Rows
from .models import ClipShape, TowerShape, free_memory, our_step, random_batch, trimmed

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/training/test_cuda.py", "tests/evaluation/test_ranking.py")


def rows(bench: Bench) -> Rows:
    """Each value is an error, or the number of what fails; the roofline is the largest that is right."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts; cuBLAS asks for it
    if bench.device.type == "cuda":
        yield "tests on CUDA: failures", partial(_tests, bench)
    for tf32 in (False, True):
        name = f"InfoNCE, tiled to float64{', TF32' if tf32 else ''}"
        yield name, partial(_loss, bench, tf32)
    yield "cached to plain step, bf16", partial(_cached, bench)
    yield "text on the device to packed on the CPU, float64", partial(_packed, bench)
    yield "text packed with bounds to float64, bf16", partial(_ragged, bench)
    for tokens in (5,) if bench.tiny else (50, 197, 257):
        for mode in ("off", "blocks") if tokens == 197 else ("off",):
            for deterministic in (False, True):
                kind = f"{'compiled' if mode != 'off' else 'eager'}{', deterministic' if deterministic else ''}"
                yield (
                    f"6 steps to 3 + 3, {tokens} tokens, {kind}",
                    partial(_resumed, bench, tokens, mode, deterministic),
                )


def _tests(bench: Bench) -> Figures:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-W", "default", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=bench.seconds, check=False)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    end = (done.stdout.strip().splitlines() or [done.stderr[-200:]])[-1]
    return {"value": max(len(failed), int(done.returncode != 0)), "unit": "failures", "roofline": 0, "said": end}


def _loss(bench: Bench, tf32: bool) -> Figures:
    pairs = 64 if bench.tiny else 8192
    random = torch.Generator(bench.device).manual_seed(0)
    a, b = (F.normalize(torch.randn(pairs, 512, device=bench.device, generator=random), dim=-1) for _ in "ab")
    b = F.normalize(a + 3 * b, dim=-1)  # neither solved nor at chance: float32 says little of gradients near 0

    def gradient(function: object, dtype: torch.dtype, **settings: Any) -> Tensor:
        x, y = (z.detach().clone().to(dtype).requires_grad_() for z in (a, b))
        function(x, y, torch.tensor(30.0, device=bench.device, dtype=dtype), **settings).backward()  # type: ignore[operator]
        assert x.grad is not None
        return x.grad.double()

    exact = gradient(info_nce, torch.float64)
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        sizes = (16,) if bench.tiny else (2048, 8192)
        tiled = {size: gradient(tiled_info_nce, torch.float32, size=size) for size in sizes}
        whole = gradient(info_nce, torch.float32)
        three = gradient(tiled_info_nce, torch.float32, size=sizes[0], products="tf32x3")
    finally:
        torch.set_float32_matmul_precision("highest")
    errors = {size: float((x - exact).norm() / exact.norm()) for size, x in tiled.items()}
    whole_error, three_error = (float((x - exact).norm() / exact.norm()) for x in (whole, three))
    bound = 2e-3 if tf32 else 2e-5
    beside = {"whole matrix": f"{whole_error:.1e}", "tf32x3": f"{three_error:.1e}"}
    return {"value": max(errors.values()), "unit": "", "roofline": bound, **beside}


def _small(tokens: int) -> ClipShape:
    """Two blocks a tower, with as many tokens of a picture as asked for."""
    side = {5: 2, 50: 7, 197: 14, 257: 16}[tokens]
    width = 32 if tokens == 5 else 128
    tower = TowerShape(width, 2, width // 16 if tokens == 5 else 2)
    return ClipShape("", tower, tower, side * 8, 8, 32, 16)


def _cached(bench: Bench) -> Figures:
    model = _small(5 if bench.tiny else 50)
    batch, found = trimmed(random_batch(model, 16, bench.device)), []
    for parts in (1, 4):
        step, learner = our_step(model, bench.device, micro_batches=parts)
        step.step.gradients(batch, 0, 10)
        found.append(torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None]).double())
    plain, cached = found
    return {"value": float((plain - cached).norm() / plain.norm()), "unit": "", "roofline": 2e-2}


ENDS = (3, 19, 7, 7, 1, 12)


def _texts() -> tuple[TextTransformer, Tensor]:
    torch.manual_seed(0)
    encoder = TextTransformerConfig(vocab_size=40, context_length=40, width=32, depth=2, heads=4).build().double()
    ids = torch.randint(1, 39, (len(ENDS), 40))
    for row, end in enumerate(ENDS):
        ids[row, end], ids[row, end + 1 :] = 39, 0
    return encoder, ids


def _ragged(bench: Bench) -> Figures:
    """The largest error of a gradient, beside that of padded texts: packing may not add to the rounding."""
    encoder, ids = _texts()

    def gradient(ids: Tensor, lengths: tuple[int, ...] | None) -> Tensor:
        encoder.zero_grad()
        encoder(ids, pooled_only=True, lengths=lengths).pooled.square().sum().backward()
        return torch.cat([p.grad.flatten().double() for p in encoder.parameters() if p.grad is not None]).cpu()

    exact, ids = gradient(ids, None), trim_padding(ids).to(bench.device)
    encoder.float().to(bench.device)
    with torch.autocast(bench.device.type, dtype=torch.bfloat16):
        found = [gradient(ids, lengths) for lengths in (tuple(end + 1 for end in ENDS), None)]
    packed, padded = (float((x - exact).norm() / exact.norm()) for x in found)
    return {"value": packed, "unit": "", "roofline": 2e-2, "padded": f"{padded:.1e}"}


def _packed(bench: Bench) -> Figures:
    encoder, ids = _texts()
    packed = encoder(ids, pooled_only=True).pooled.detach()
    there = encoder.to(bench.device)(trim_padding(ids).to(bench.device), pooled_only=True).pooled.detach().cpu()
    return {"value": float((there - packed).abs().max() / packed.abs().max()), "unit": "", "roofline": 1e-10}


def _resumed(bench: Bench, tokens: int, mode: CompileMode, deterministic: bool) -> Figures:
    torch.use_deterministic_algorithms(deterministic)
    try:
        whole, cut = (_hash_of_weights(bench, _small(tokens), mode, stop) for stop in (None, 3))
    finally:
        torch.use_deterministic_algorithms(False)
    return {"value": float(whole != cut), "unit": "differ", "roofline": 0 if deterministic else None}


def _hash_of_weights(bench: Bench, model: ClipShape, mode: CompileMode, stop: int | None) -> str:
    """SHA-256 of all weights after 6 steps; with `stop`, of new objects that took the weights and moments over after it."""
    backend = "eager" if bench.tiny else "inductor"
    step, learner = our_step(model, bench.device, mode, backend)
    for number in range(6):
        if number == stop:
            weights = {name: x.clone() for name, x in learner.state_dict().items()}
            moments = step.state.optimizer.state_dict()
            free_memory(bench.device)
            step, learner = our_step(model, bench.device, mode, backend)
            learner.load_state_dict(weights)
            step.state.optimizer.load_state_dict(moments)
        step.state.step = number
        step(trimmed(random_batch(model, 16, bench.device, seed=number)))
    digest = hashlib.sha256()
    for x in learner.state_dict().values():
        digest.update(x.cpu().contiguous().numpy().tobytes())
    free_memory(bench.device)
    return digest.hexdigest()
