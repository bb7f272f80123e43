"""Attention kernels at the shapes of our models: time, error to float64, and whether gradients repeat bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .bench import Bench, Figures, Rows
from .models import seconds_of

BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


@dataclass(frozen=True)
class Shape:
    """Samples, heads, tokens, length of the queries, and what masks them."""

    samples: int
    heads: int
    tokens: int
    queries: int | None = None
    causal: bool = False
    masked: bool = False

    def operations(self) -> float:
        """Of a forward and backward pass with 64 numbers a head."""
        return 14 * self.samples * self.heads * self.tokens * (self.queries or self.tokens) * 64 / (1 + self.causal)


SHAPES = {
    "B/32 image": Shape(1024, 12, 50),
    "B/16 image": Shape(512, 12, 197),
    "L/14 image": Shape(192, 16, 257),
    "text of 24": Shape(1024, 8, 24, causal=True),
    "text of 64": Shape(1024, 8, 64, causal=True),
    "text of 77": Shape(1024, 8, 77, causal=True),
    "one query": Shape(512, 12, 197, queries=1),
    "one query, masked": Shape(1024, 8, 77, queries=1, masked=True),
}
TOY = {"image": Shape(2, 2, 9), "one query, masked": Shape(2, 2, 9, queries=1, masked=True)}


def rows(bench: Bench) -> Rows:
    """A row for each shape: torch's choice, and each backend beside it."""
    for name, shape in (TOY if bench.tiny else SHAPES).items():
        yield name, partial(_measure, bench, shape)


def _measure(bench: Bench, shape: Shape) -> Figures:
    inputs = _inputs(shape, bench.device)
    *drawn, mask = inputs
    exact = _gradients(*(x.double() for x in drawn if x is not None), mask, causal=shape.causal)  # type: ignore[misc]
    peak = bench.card.bf16
    best = peak and 1e6 * shape.operations() / peak
    out: Figures = {"unit": "us", "roofline": best}
    for name in ("torch's choice", *BACKENDS):
        chosen = [BACKENDS[name]] if name in BACKENDS else [*BACKENDS.values()]
        try:
            with sdpa_kernel(chosen):
                first, second = (_gradients(*inputs, causal=shape.causal) for _ in "ab")
                run = partial(_gradients, *inputs, causal=shape.causal)
                figure = 1e6 * seconds_of(run, bench.device, bench.repeats)
        except RuntimeError as error:
            if name not in BACKENDS:
                raise
            lacking = any(words in str(error) for words in ("No available kernel", "No viable backend"))
            out[name] = "no kernel" if lacking else str(error).splitlines()[0][:60]
            continue
        wrong = max(float((x.double() - y).abs().max() / y.abs().max()) for x, y in zip(first, exact, strict=True))
        repeats = all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
        out[name] = f"{figure:.0f} us, error {wrong:.0e}{'' if repeats else ', does not repeat'}"
        out.setdefault("value", figure)
    return out


def _inputs(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    random = torch.Generator(device).manual_seed(0)

    def draw(tokens: int) -> Tensor:
        size = shape.samples, shape.heads, tokens, 64
        return torch.randn(size, device=device, generator=random).bfloat16()

    lengths = torch.randint(shape.tokens // 2, shape.tokens + 1, (shape.samples, 1), device=device, generator=random)
    mask = (torch.arange(shape.tokens, device=device) < lengths)[:, None, None] if shape.masked else None
    queries = shape.queries or shape.tokens
    return draw(queries), draw(shape.tokens), draw(shape.tokens), draw(queries), mask


def _gradients(
    q: Tensor, k: Tensor, v: Tensor, towards: Tensor, mask: Tensor | None, *, causal: bool
) -> tuple[Tensor, ...]:
    """The output and the gradients of its inner product with `towards`."""
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return (out.detach(), *torch.autograd.grad(out, (q, k, v), towards))
