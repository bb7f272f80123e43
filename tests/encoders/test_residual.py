"""A residual stream in bfloat16: only under autocast, close to that in float32, and in half its memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmssl.encoders.norms import StreamNorm
from tests.encoders.kinds import build, inputs

NAMES = pytest.mark.parametrize("name", ["vit", "text_transformer", "audio_transformer", "video_space_time"])


def encoded(name: str, folder: Path, residual: str, autocast: bool) -> tuple[Tensor, list[Tensor], set[torch.dtype]]:
    """Pooled features, gradients, and the types of what enters norms of blocks."""
    torch.manual_seed(0)
    encoder = build(name, folder, residual=residual)
    seen: set[torch.dtype] = set()

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.add(arguments[0].dtype)

    for module_name, module in encoder.named_modules():
        if isinstance(module, nn.LayerNorm) and ".norm" in module_name:
            module.register_forward_pre_hook(note)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        pooled = encoder(inputs(name), pooled_only=True).pooled
    pooled.float().square().sum().backward()
    return pooled.detach().float(), [p.grad for p in encoder.parameters() if p.grad is not None], seen


@NAMES
def test_the_stream_is_bfloat16_where_products_are(name: str, tmp_path: Path) -> None:
    exact, gradients, _ = encoded(name, tmp_path, "float32", autocast=False)
    rounded, _, wide = encoded(name, tmp_path, "float32", autocast=True)
    more, grads, narrow = encoded(name, tmp_path, "bf16", autocast=True)
    assert wide == {torch.float32}
    assert narrow == {torch.bfloat16}
    size = exact.abs().max()
    assert 0 < (more - rounded).abs().max() < 0.1 * size
    assert (more - exact).norm() < 0.05 * exact.norm()
    assert len(grads) == len(gradients)
    both = [torch.cat([x.flatten() for x in some]) for some in (grads, gradients)]
    assert torch.nn.functional.cosine_similarity(*both, dim=0) > 0.98
    assert all(x.dtype == torch.float32 for x in grads)


@NAMES
def test_without_autocast_nothing_changes(name: str, tmp_path: Path) -> None:
    one, other = (encoded(name, tmp_path, residual, autocast=False) for residual in ("float32", "bf16"))
    assert torch.equal(one[0], other[0])
    assert all(torch.equal(x, y) for x, y in zip(one[1], other[1], strict=True))


def test_the_norm_computes_in_float32_inside() -> None:
    norm, x = StreamNorm(64), 100 + torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    x = x.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        made = norm(x)
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made.float(), norm(x.float()), atol=0.02, rtol=0.01)
