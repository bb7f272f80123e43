"""Words that are left out in training: which, how many, and none in evaluation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmssl.encoders.text_transformer import TextTransformer, TextTransformerConfig
from mmssl.encoders.token_masking import TokenMasking, mask_tokens
from tests.encoders.kinds import differ

EVERY = pytest.mark.parametrize("how", ["truncate", "random", "block"])
LENGTHS = [2, 5, 6, 7, 12, 20]


def texts() -> Tensor:
    """Texts of LENGTHS: 90, then 1, 2, 3, ..., then 99, then zeros."""
    ids = torch.zeros(len(LENGTHS), 20, dtype=torch.int64)
    for row, length in enumerate(LENGTHS):
        ids[row, :length] = torch.tensor([90, *range(1, length - 1), 99])
    return ids


def encoder(how: TokenMasking = "random") -> TextTransformer:
    torch.manual_seed(0)
    config = TextTransformerConfig(
        vocab_size=100, context_length=20, width=8, depth=1, heads=2, keep_tokens=6, masking=how
    )
    return config.build()


@EVERY
def test_texts_keep_their_ends_and_words_in_order(how: TokenMasking) -> None:
    torch.manual_seed(0)
    seen = set()
    for _ in range(200):
        short = mask_tokens(texts(), 6, how)
        assert short.shape == (6, 6)
        assert torch.equal(short[:3], texts()[:3, :6])  # those that fit
        for row in short[3:].tolist():
            assert (row[0], row[-1]) == (90, 99)
            assert row[1:-1] == sorted(set(row[1:-1]))
            assert 99 not in row[1:-1]
        seen.add(tuple(short[5].tolist()))
    words = [text[1:-1] for text in seen]
    if how == "truncate":
        assert words == [(1, 2, 3, 4)]
    else:
        assert {word for text in words for word in text} == set(range(1, 19))
    if how == "block":
        assert {text[-1] - text[0] for text in words} == {3}
        assert len(words) == 15
    assert mask_tokens(texts(), 20, how) is not None


@EVERY
def test_training_sees_less_and_evaluation_everything(how: TokenMasking) -> None:
    model, ids = encoder(how), texts()
    torch.manual_seed(1)
    short = mask_tokens(ids, 6, how)
    torch.manual_seed(1)
    trained = model(ids)
    torch.testing.assert_close(trained.pooled, model.eval()(short).pooled)
    assert trained.tokens is not None
    assert trained.tokens.shape == (6, 6, 8)
    whole = model(ids)
    assert whole.tokens is not None
    assert whole.tokens.shape == (6, 20, 8)
    assert differ(whole.pooled[5], trained.pooled[5])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"keep_tokens": 20}, r"keep_tokens: got 20, wanted less than context_length \(20\)"),
        ({"masking": "random"}, "masking: got random without keep_tokens, which has no effect"),
    ],
)
def test_options_that_leave_texts_whole_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        TextTransformerConfig(context_length=20, width=8, heads=2, **options)
    TextTransformerConfig(context_length=20, width=8, heads=2, **(options | {"keep_tokens": 19}))
