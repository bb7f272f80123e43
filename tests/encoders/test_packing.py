"""Packed texts, and last blocks for pooled tokens alone, beside the whole computation: outputs and gradients in float64."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from mmssl.core.encoder import Encoder, Features
from mmssl.encoders import text_transformer
from mmssl.encoders.packing import SortedPacking
from mmssl.encoders.text_transformer import TextTransformer, TextTransformerConfig, trim_padding
from tests.encoders.kinds import build, differ, inputs, is_audio, stir

VOCABULARY, CONTEXT = 101, 77
LENGTHS = {
    "all": list(range(1, CONTEXT + 1)),
    "empty captions": [2, 9, 2, 2, 30],  # start and end only
    "equal": [11, 11, 11, 11],
    "one": [5],
    "as a batch has them": [13, 9, 21, 13, 8, 40, 13, 9, 77, 1],
}
CASES = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
SETTINGS = pytest.mark.parametrize(
    "settings",
    [{}, {"pool": "mean"}, {"causal": False}, {"pool": "mean", "causal": False}, {"layer_scale": 0.3}, {"depth": 1}],
    ids=["clip", "mean", "both_ways", "mean_both_ways", "scaled", "one_block"],
)


def transformer(**changes: Any) -> TextTransformer:
    torch.manual_seed(0)
    size = {"vocab_size": VOCABULARY, "context_length": CONTEXT, "width": 16, "depth": 3, "heads": 2}
    encoder = TextTransformerConfig.model_validate(size | changes).build().double()
    stir(encoder)
    return encoder


def texts(lengths: list[int]) -> Tensor:
    """[B, 77] ids of texts of these lengths, the end among them, in this order."""
    ids = torch.randint(1, VOCABULARY - 1, (len(lengths), CONTEXT), generator=torch.Generator().manual_seed(3))
    for row, length in enumerate(lengths):
        ids[row, length - 1] = VOCABULARY - 1
        ids[row, length:] = 0
    return ids


def outcome(encoder: Encoder, run: Callable[[], Features]) -> tuple[Tensor, list[Tensor | None]]:
    """Pooled features, and the gradients of a sum of them with random factors."""
    encoder.zero_grad()
    pooled = run().pooled
    factors = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    (pooled * factors).sum().backward()
    return pooled.detach(), [None if p.grad is None else p.grad.clone() for p in encoder.parameters()]


def equal(ours: object, theirs: object) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


@CASES
@SETTINGS
def test_packed_texts_give_what_padded_ones_give(
    settings: dict[str, Any], lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, ids = transformer(**settings), texts(lengths)
    rows: list[tuple[int, ...]] = []
    encoder.blocks.register_forward_pre_hook(lambda module, args: rows.append(tuple(args[0].shape)))
    packed = [outcome(encoder, lambda only=only: encoder(ids, pooled_only=only)) for only in (False, True)]
    features = encoder(ids, hidden=2 if settings.get("depth") is None else 1)
    monkeypatch.setattr(text_transformer, "_on_cpu", lambda x: False)
    padded = [outcome(encoder, lambda only=only: encoder(ids, pooled_only=only)) for only in (False, True)]
    for other in (packed[0], packed[1], padded[1]):
        equal(other, padded[0])
    on_gpu = encoder(ids, hidden=len(features.hidden or ()))
    equal((features.tokens, features.hidden), (on_gpu.tokens, on_gpu.hidden))
    assert rows[0] == rows[1] == (sum(lengths), 16)
    assert rows[-1] == (len(lengths), CONTEXT, 16)


@CASES
def test_trimming_before_the_device_changes_nothing(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_transformer, "_on_cpu", lambda x: False)
    encoder, ids = transformer(), texts(lengths)
    short = trim_padding(ids)
    assert short.shape == (len(lengths), min(CONTEXT, -(-max(lengths) // 8) * 8))
    equal(outcome(encoder, lambda: encoder(short)), outcome(encoder, lambda: encoder(ids)))
    assert trim_padding(ids[:0]).shape == (0, CONTEXT)
    assert encoder.trim is trim_padding


def test_replaced_tokens_are_the_same_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, ids = transformer(), texts([13, 9, 77, 13])
    mask = torch.rand(ids.shape, generator=torch.Generator().manual_seed(5)) < 0.4
    value = torch.linspace(-1, 1, 16, dtype=torch.float64)
    packed = outcome(encoder, lambda: encoder(ids, replace=(mask, value)))
    assert differ(packed[0], encoder(ids).pooled)
    monkeypatch.setattr(text_transformer, "_on_cpu", lambda x: False)
    equal(packed, outcome(encoder, lambda: encoder(ids, replace=(mask, value))))


@pytest.mark.parametrize("only", [False, True])
def test_the_same_texts_lose_their_branches_packed_or_not(only: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, ids = transformer(drop_path=0.5), texts(LENGTHS["as a batch has them"])

    def run() -> Features:
        torch.manual_seed(6)
        return encoder(ids, pooled_only=only)

    packed = outcome(encoder, run)
    monkeypatch.setattr(text_transformer, "_on_cpu", lambda x: False)
    equal(packed, outcome(encoder, run))
    encoder.eval()
    assert differ(packed[0], encoder(ids).pooled)


def test_checkpointed_blocks_give_the_same_gradients_packed() -> None:
    ids = texts(LENGTHS["as a batch has them"])
    plain, checkpointed = (transformer(checkpointing=on, dropout=0.2) for on in (False, True))
    results = []
    for encoder in (plain, checkpointed):
        torch.manual_seed(7)
        results.append(outcome(encoder, lambda encoder=encoder: encoder(ids, pooled_only=True)))
    equal(*results)


@pytest.mark.parametrize("only", [False, True])
def test_under_autocast_packed_and_padded_differ_by_rounding(only: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, ids = transformer().float(), texts(LENGTHS["as a batch has them"])
    results = []
    for cast in (torch.autocast("cpu", torch.bfloat16), nullcontext()):
        with cast:
            results.append(encoder(ids, pooled_only=only).pooled.float())
    monkeypatch.setattr(text_transformer, "_on_cpu", lambda x: False)
    with torch.autocast("cpu", torch.bfloat16):
        results.append(encoder(ids).pooled.float())
    packed, exact, padded = results
    assert 0 < (packed - exact).abs().max() < 0.1
    assert (packed - padded).abs().max() < 0.05


@pytest.mark.parametrize("name", ["vit", "vit_mean", "audio_transformer", "audio_transformer_mean", "text_transformer"])
@pytest.mark.parametrize("changes", [{}, {"drop_path": 0.3}, {"checkpointing": True}])
def test_pooled_alone_equals_pooled_of_everything(name: str, changes: dict[str, Any], tmp_path: Any) -> None:
    encoder, x = build(name, tmp_path, **changes).double(), inputs(name, 4)
    x = x.double() / 32768 if is_audio(name) else x

    def run(only: bool) -> Features:
        torch.manual_seed(8)
        return encoder(x, pooled_only=only)

    whole, short = (outcome(encoder, lambda only=only: run(only)) for only in (False, True))
    torch.testing.assert_close(short, whole, atol=1e-12, rtol=1e-12)
    assert run(False).tokens is not None
    if "mean" not in name:
        assert run(True).tokens is None


def test_pooled_alone_works_on_one_row_in_the_last_block(tmp_path: Any) -> None:
    encoder, rows = build("vit", tmp_path), []
    for block in encoder.blocks:
        block.mlp.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[1]))
    encoder(inputs("vit"), pooled_only=True)
    assert rows == [17, 1]
    kept = torch.arange(5).expand(3, -1)
    equal(encoder(inputs("vit"), keep=kept, pooled_only=True).pooled.double().shape, torch.Size([3, 32]))
    assert encoder(inputs("vit"), hidden=1, pooled_only=True).hidden[0].shape == (3, 16, 32)


def test_a_packing_says_where_things_lie() -> None:
    packing = SortedPacking.of(torch.tensor([3, 1, 3, 2]))
    assert packing.order.tolist() == [1, 3, 0, 2]
    assert packing.groups == ((1, 1), (1, 2), (2, 3))
    x = torch.arange(4 * 5.0).reshape(4, 5)
    packed = packing.pack(x)
    assert packed.tolist() == [5, 15, 16, 0, 1, 2, 10, 11, 12]
    assert packing.restore(packed[packing.last]).tolist() == [2, 5, 12, 16]
    assert packing.restore(packing.means(packed[:, None])).flatten().tolist() == [1, 5, 11, 15.5]
    unpacked = packing.unpack(packed[:, None], 5)[..., 0]
    assert unpacked.tolist() == [[0, 1, 2, 0, 0], [5, 0, 0, 0, 0], [10, 11, 12, 0, 0], [15, 16, 0, 0, 0]]
