"""Selective checkpointing: the gradients of kept activations, products computed once, and memory in between."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmssl.core.compat import attention_operations
from mmssl.encoders.transformer import Transformer
from tests.encoders.kinds import build, inputs

WAYS: tuple[Any, ...] = (False, "selective", True)


class Made(TorchDispatchMode):
    """Context that counts products and attention, and knows which of the tensors made in it still have memory."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.attention = 0
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.products += function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        self.attention += function in attention_operations()
        out = function(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                self.storages[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        return out

    def kept(self, others: Iterable[Tensor]) -> int:
        """Bytes of the tensors that are alive, without those of `others`."""
        gc.collect()
        known = {x.untyped_storage().data_ptr() for x in others}
        alive = {place: size for place, (reference, size) in self.storages.items() if not reference.expired()}
        return sum(size for place, size in alive.items() if place not in known)


def measured(checkpointing: Any, **noise: float) -> dict[str, Any]:
    """One step of three blocks of width 32 on 2 x 20 tokens: gradients, kept bytes and work."""
    torch.manual_seed(0)
    stack = Transformer(32, 3, 4, causal=True, checkpointing=checkpointing, **noise)
    x = torch.randn(2, 20, 32, requires_grad=True)
    with Made() as forward:
        out, _ = stack(x)
        kept = forward.kept([out, x, *stack.parameters()])
    with Made() as backward:
        out.square().sum().backward()
    gradients = [x.grad, *(p.grad for p in stack.parameters())]
    return {"gradients": gradients, "kept": kept, "work": (backward.products, backward.attention), "made": forward}


def test_gradients_are_equal_and_nothing_large_is_computed_twice() -> None:
    plain, selective, whole = (measured(way) for way in WAYS)
    assert (plain["made"].products, plain["made"].attention) == (4 * 3, 3)
    assert selective["work"] == plain["work"]
    assert whole["work"][0] > plain["work"][0]
    assert whole["work"][1] > plain["work"][1]
    for other in (selective, whole):
        assert all(torch.equal(one, same) for one, same in zip(plain["gradients"], other["gradients"], strict=True))


def test_noise_is_drawn_again_and_costs_one_product_of_each_block() -> None:
    """Dropout after the second layer of an mlp is recomputed, and with it that layer."""
    plain, selective = (measured(way, dropout=0.2, drop_path=0.3) for way in WAYS[:2])
    assert selective["work"] == (plain["work"][0] + 3, plain["work"][1])
    for one, same in zip(plain["gradients"], selective["gradients"], strict=True):
        assert torch.equal(one, same)


def test_memory_lies_between_that_of_keeping_all_and_of_keeping_nothing() -> None:
    """Of a block of width D a token: about 16 D, 10 D (its input, queries, keys, values, attention, two products) and D."""
    plain, selective, whole = (measured(way)["kept"] for way in WAYS)
    token = 3 * 2 * 20 * 32 * 4
    assert 15 * token < plain < 18 * token
    assert 9 * token < selective < 11 * token
    assert whole < 2 * token


@pytest.mark.parametrize("name", ["vit", "text_transformer", "video_space_time"])
def test_own_transformers_take_it(name: str, tmp_path: Path) -> None:
    """Texts are packed, and the last block is computed for one token alone."""
    found = []
    for way in (False, "selective"):
        encoder = build(name, tmp_path, checkpointing=way).train()
        encoder(inputs(name), pooled_only=True).pooled.square().sum().backward()
        found.append([p.grad for p in encoder.parameters() if p.grad is not None])
    assert found[0]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
