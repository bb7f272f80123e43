"""Text encoders of other libraries tell which token ids they take: a longer text, or an id above, fails inside the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmssl.core.sample import TokenIds
from mmssl.encoders.adapters.open_clip import OpenClipConfig
from mmssl.encoders.adapters.transformers import HfTextConfig
from tests.encoders.kinds import CONTEXT, OPEN_CLIP, VOCABULARY

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 99}
GPT = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 99}
DISTIL = {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64, "vocab_size": 99}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 2, "vocab_size": 99}
BART = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}
MODERN = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize(
    ("kind", "settings", "longest"),
    [
        ("bert", SIZES | {"max_position_embeddings": 16}, 16),
        ("roberta", SIZES | {"max_position_embeddings": 16, "pad_token_id": 1}, 14),
        ("mpnet", SIZES | {"max_position_embeddings": 16, "pad_token_id": 1}, 14),
        ("distilbert", DISTIL | {"max_position_embeddings": 16}, 16),
        ("gpt2", GPT | {"n_positions": 16}, 16),
        ("opt", SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 16}, 16),
        ("bart", BART | {"vocab_size": 99, "max_position_embeddings": 16, "pad_token_id": 1, "eos_token_id": 2}, 16),
        ("clip_text_model", SIZES | {"max_position_embeddings": 16, "eos_token_id": 98}, 16),
        ("modernbert", SIZES | MODERN | {"max_position_embeddings": 16}, None),
        ("t5", T5, None),
    ],
)
def test_text_models_tell_which_ids_they_take(kind: str, settings: dict[str, Any], longest: int | None) -> None:
    encoder = HfTextConfig(config={"model_type": kind, **settings}, pool="mean", pad_id=1).build().eval()
    assert encoder.token_ids == TokenIds(longest, 99)
    with torch.no_grad():
        encoder(torch.full((1, longest or 40), 98))
        for wrong in (torch.full((1, 4), 99), *([torch.full((1, longest + 1), 5)] if longest else [])):
            with pytest.raises((IndexError, RuntimeError, ValueError)):
                encoder(wrong)


@pytest.mark.parametrize("coca", [False, True])
def test_text_towers_of_open_clip_tell_which_ids_they_take(coca: bool, tmp_path: Path) -> None:
    text = OPEN_CLIP["text_cfg"] | ({"embed_cls": True, "output_tokens": True} if coca else {})
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP | {"text_cfg": text}}))
    encoder = OpenClipConfig(model=f"local-dir:{tmp_path}", tower="text").build().eval()
    assert encoder.token_ids == TokenIds(CONTEXT, VOCABULARY)
    encoder(torch.full((1, CONTEXT), VOCABULARY - 1))
    for wrong in (torch.full((1, CONTEXT + 1), 5), torch.full((1, CONTEXT), VOCABULARY)):
        with pytest.raises((IndexError, RuntimeError)):
            encoder(wrong)
