"""The same gradient in every run: sums over samples do not depend on how threads come and go."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.encoders.kinds import KINDS, build, inputs, is_text


@pytest.mark.parametrize("name", filter(is_text, KINDS))
def test_gradients_repeat_bit_by_bit_on_several_threads(name: str, tmp_path: Path) -> None:
    """torch adds up gradients of gathered rows atomically from 32,768 numbers on: enough texts for that many."""
    encoder = build(name, tmp_path).eval()
    x = inputs(name, 256)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = set()
        for _ in range(4):
            encoder.zero_grad(set_to_none=True)
            encoder(x).pooled.square().sum().backward()
            seen.add(b"".join(p.grad.numpy().tobytes() for p in encoder.parameters() if p.grad is not None))
    finally:
        torch.set_num_threads(threads)
    assert len(seen) == 1
