"""The text transformer's own options; its parity with open_clip stands in tests/interop."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from mmssl.encoders.text_transformer import TextTransformer, TextTransformerConfig
from tests.encoders.kinds import CONTEXT, END, VOCABULARY, differ, inputs, stir

POOLS = pytest.mark.parametrize(
    "settings", [{}, {"pool": "mean"}, {"causal": False}, {"pool": "mean", "causal": False}]
)


def transformer(**changes: object) -> TextTransformer:
    torch.manual_seed(0)
    settings = {"vocab_size": VOCABULARY, "context_length": CONTEXT, "width": 32, "depth": 2, "heads": 4} | changes
    encoder = TextTransformerConfig.model_validate(settings).build()
    stir(encoder)
    return encoder


@POOLS
def test_padding_has_no_influence(settings: dict[str, object]) -> None:
    encoder, ids = transformer(**settings), inputs("text")
    end = ids.argmax(1)
    other = torch.where(torch.arange(CONTEXT) > end[:, None], 5, ids)
    assert not torch.equal(other, ids)
    torch.testing.assert_close(encoder(other).pooled, encoder(ids).pooled)
    torch.testing.assert_close(encoder(other).tokens, encoder(ids).tokens)


@POOLS
def test_words_have_influence(settings: dict[str, object]) -> None:
    encoder, ids = transformer(**settings), inputs("text")
    for position in range(int(ids.argmax(1).min())):
        other = ids.clone()
        other[:, position] = 5
        assert differ(encoder(other).pooled, encoder(ids).pooled), position


def test_tokens_stop_at_the_end_and_pooled_is_the_last() -> None:
    ids = inputs("text")
    features = transformer()(ids)
    assert features.tokens is not None
    for row, end in enumerate(ids.argmax(1).tolist()):
        torch.testing.assert_close(features.tokens[row, end], features.pooled[row])
        assert features.tokens[row, : end + 1].abs().sum(1).min() > 0
        assert features.tokens[row, end + 1 :].abs().sum() == 0


def test_the_first_end_counts() -> None:
    encoder, ids = transformer(), inputs("text")
    twice = ids.clone()
    twice[:, -1] = END
    torch.testing.assert_close(encoder(twice).pooled, encoder(ids).pooled)


def test_causal_tokens_see_nothing_behind_them() -> None:
    ids = inputs("text")
    other = ids.clone()
    other[:, 2] = 5
    for causal in (True, False):
        encoder = transformer(causal=causal)
        before, after = encoder(ids).tokens, encoder(other).tokens
        assert before is not None
        assert after is not None
        assert torch.allclose(before[:, :2], after[:, :2]) == causal


def test_short_batches_and_wrong_ids() -> None:
    encoder = transformer()
    assert encoder(inputs("text")[:, :6]).pooled.shape == (3, 32)
    with pytest.raises(ValueError, match="with T at most 12"):
        encoder(torch.ones(1, 13, dtype=torch.int64))
    with pytest.raises(ValueError, match="wanted token ids"):
        encoder(torch.ones(1, 4))
    with pytest.raises(ValueError, match=r"got token ids 1 to 99, wanted 0 to 98: give the encoder the vocab_size"):
        encoder(torch.tensor([[1, 99]]))
    with pytest.raises(ValueError, match="cannot drop tokens"):
        encoder(inputs("text"), keep=torch.zeros(3, 1, dtype=torch.int64))
    with pytest.raises(ValidationError, match="width: got 32, wanted a multiple of heads 5"):
        transformer(heads=5)
