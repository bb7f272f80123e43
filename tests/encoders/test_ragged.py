"""Texts packed for attention with bounds, as on a GPU, beside the packing of the CPU: outputs and gradients in float64.

Torch's kernel runs on CUDA only; a loop over texts stands in for it, with the signature that each release of torch gives it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import varlen

from mmssl.core.batch import Batch
from mmssl.core.encoder import Features
from mmssl.encoders import attend, text_transformer
from mmssl.encoders.packing import RaggedPacking
from mmssl.training.steps.prefetch import trim_texts
from tests.encoders.kinds import differ
from tests.encoders.test_packing import CASES, LENGTHS, SETTINGS, equal, outcome, texts, transformer
from tests.training.steps import test_fast_step as fast

MIXED = LENGTHS["as a batch has them"]


def loop(q: Tensor, k: Tensor, v: Tensor, of_q: Tensor, of_k: Tensor, longest: tuple[int, int], causal: bool) -> Tensor:
    """Attention text by text; every row must belong to a text."""
    assert (int(of_q[-1]), int(of_k[-1]), len(of_q)) == (len(q), len(k), len(of_k))
    assert of_q.dtype == of_k.dtype == torch.int32
    assert longest[0] >= int(of_q.diff().max())
    assert longest[1] >= int(of_k.diff().max())
    out = []
    for (q0, q1), (k0, k1) in zip(of_q.unfold(0, 2, 1).tolist(), of_k.unfold(0, 2, 1).tolist(), strict=True):
        one = (x.transpose(0, 1) for x in (q[q0:q1], k[k0:k1], v[k0:k1]))
        out.append(F.scaled_dot_product_attention(*one, is_causal=causal).transpose(0, 1))
    return torch.cat(out)


def older(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
    is_causal: bool = False, return_aux: Any = None, scale: float | None = None,
) -> Tensor:  # fmt: skip
    return loop(query, key, value, cu_seq_q, cu_seq_k, (max_q, max_k), is_causal)


def newer(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
    return_aux: Any = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
) -> Tensor:  # fmt: skip
    assert window_size in ((-1, -1), (-1, 0))
    return loop(query, key, value, cu_seq_q, cu_seq_k, (max_q, max_k), window_size == (-1, 0))


@pytest.fixture
def kernel() -> Callable[..., Tensor]:
    """What stands in for torch's kernel."""
    return newer


@pytest.fixture
def on_gpu(kernel: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Call it, and encoders pack as on a GPU."""

    def switch() -> None:
        attend._names_causality.cache_clear()
        monkeypatch.setattr(varlen, "varlen_attn", kernel)
        monkeypatch.setattr(text_transformer, "_on_cpu", lambda x: False)
        monkeypatch.setattr(text_transformer, "takes_ragged", lambda device, dtype, size: True)

    yield switch
    attend._names_causality.cache_clear()


@CASES
@SETTINGS
def test_packed_with_bounds_gives_what_the_cpu_gives(
    settings: dict[str, Any], lengths: list[int], on_gpu: Callable[[], None]
) -> None:
    assert_the_same(settings, lengths, on_gpu)


@pytest.mark.parametrize("kernel", [older])
@pytest.mark.parametrize("causal", [False, True])
def test_earlier_releases_of_torch_say_causality_otherwise(causal: bool, on_gpu: Callable[[], None]) -> None:
    assert_the_same({"causal": causal}, MIXED, on_gpu)


def assert_the_same(settings: dict[str, Any], lengths: list[int], on_gpu: Callable[[], None]) -> None:
    encoder, ids = transformer(**settings), texts(lengths)
    ways: list[dict[str, Any]] = [{"pooled_only": True}, {"hidden": encoder.depth}]
    packed = [outcome(encoder, lambda way=way: encoder(ids, **way)) for way in ways]
    tokens, hidden = (encoder(ids, hidden=1).tokens, encoder(ids, hidden=1).hidden)
    rows: list[int] = []
    encoder.blocks.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    on_gpu()
    ragged = [outcome(encoder, lambda way=way: encoder(ids, **way, lengths=lengths)) for way in ways]
    equal(ragged, packed)
    features = encoder(ids, hidden=1, lengths=tuple(lengths))
    equal((features.tokens, features.hidden), (tokens, hidden))
    assert set(rows) == {(sum(lengths) // 128 + 1) * 128}


def test_replaced_and_masked_tokens_are_the_same(on_gpu: Callable[[], None]) -> None:
    encoder, ids = transformer(), texts(MIXED)
    mask = torch.rand(ids.shape, generator=torch.Generator().manual_seed(5)) < 0.4
    value = torch.linspace(-1, 1, 16, dtype=torch.float64)
    few = transformer(keep_tokens=9, masking="truncate").train()
    packed = [outcome(encoder, lambda: encoder(ids, replace=(mask, value))), outcome(few, lambda: few(ids))]
    on_gpu()
    ragged = [
        outcome(encoder, lambda: encoder(ids, replace=(mask, value), lengths=MIXED)),
        outcome(few, lambda: few(ids, lengths=MIXED)),
    ]
    equal(ragged, packed)
    assert differ(packed[0][0], packed[1][0])


@pytest.mark.parametrize("only", [False, True])
def test_the_same_texts_lose_their_branches(only: bool, on_gpu: Callable[[], None]) -> None:
    encoder, ids = transformer(drop_path=0.5), texts(MIXED)

    def run(**more: Any) -> Features:
        torch.manual_seed(6)
        return encoder(ids, pooled_only=only, **more)

    packed = outcome(encoder, run)
    on_gpu()
    equal(outcome(encoder, lambda: run(lengths=MIXED)), packed)


@pytest.mark.parametrize("kind", fast.STEPS)
def test_steps_hand_over_the_lengths_that_the_host_knows(kind: str, on_gpu: Callable[[], None]) -> None:
    """Of micro-batches too; a stream notes them before it moves a batch."""
    expected = fast.gradients(fast.learner(), fast.batch(), kind)
    model = fast.learner()
    noted = trim_texts(
        Batch(fast.batch().views, fast.batch().index, trimmable={"text": ("tokens0",)}), dict(model.encoders.items())
    )
    assert noted.token_counts == {"text": {"tokens0": tuple(fast.LENGTHS)}}
    packed: list[int] = []
    model.encoders["text"].blocks.register_forward_pre_hook(lambda module, args: packed.append(args[0].ndim))
    on_gpu()
    torch.testing.assert_close(fast.gradients(model, noted, kind), expected, atol=1e-12, rtol=1e-10)
    assert set(packed) == {2}


def test_no_value_is_read_from_the_device() -> None:
    """On the meta device there are none."""
    packing = RaggedPacking.of(torch.empty(5, dtype=torch.int64, device="meta"), [3, 1, 4, 1, 5])
    x = packing.pack(torch.empty(5, 8, 2, device="meta"))
    assert x.shape == (128, 2)
    assert packing.unpack(x, 8).shape == (5, 8, 2)
    assert packing.means(x).shape == (5, 2)
    assert packing.spread(torch.empty(5, 1, device="meta"), 128).shape == (128, 1)
    assert (packing.longest, packing.tokens) == (114, 14)


def test_only_half_precision_on_cuda_takes_bounds() -> None:
    cuda, half = torch.device("cuda"), torch.bfloat16
    assert attend.takes_ragged(cuda, half, 64)
    assert not attend.takes_ragged(cuda, torch.float32, 64)
    assert not attend.takes_ragged(cuda, half, 12)
    assert not attend.takes_ragged(cuda, half, 264)
    assert not attend.takes_ragged(torch.device("cpu"), half, 64)
    with torch.autocast("cuda", dtype=half, enabled=torch.cuda.is_available()):
        assert attend.takes_ragged(cuda, torch.float32, 64) == torch.cuda.is_available()


@pytest.mark.parametrize("causal", [False, True])
def test_the_kernel_of_this_torch_has_the_arguments(causal: bool) -> None:
    x = torch.empty(4, 2, 8)
    bounds = torch.tensor([0, 4], dtype=torch.int32)
    inspect.signature(varlen.varlen_attn).bind(x, x, x, bounds, bounds, 4, 4, **attend._causality(causal))
