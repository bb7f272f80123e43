"""ImageBind's layout: its towers of pictures and texts give the same embeddings in ours; its other towers are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mmssl
from mmssl.core.errors import CheckpointError
from mmssl.encoders.audio_transformer import AudioTransformerConfig
from mmssl.encoders.spectrogram import MelConfig
from mmssl.encoders.vit import VisionTransformerConfig
from mmssl.recipe.imported import describe_model, write_imported_run
from tests.encoders.kinds import stir

WIDTH, DEPTH, SPACE, CONTEXT, WORDS = 32, 2, 12, 9, 49408
EPS = 1e-6


class Block(nn.Module):
    """A block, with torch's attention."""

    def __init__(self, extra: bool) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, 16, add_bias_kv=extra, batch_first=True)
        self.norm_1, self.norm_2 = (nn.LayerNorm(WIDTH, eps=EPS) for _ in range(2))
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(WIDTH, 4 * WIDTH), "fc2": nn.Linear(4 * WIDTH, WIDTH)})

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.norm_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm_2(x))))


class Names(nn.Module):
    """A part whose children have these names."""

    def __init__(self, **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def small(*modalities: str) -> Any:
    """Towers under ImageBind's names."""
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Identity(), nn.Conv3d(3, WIDTH, (2, 8, 8), (2, 8, 8), bias=False))
    pictures = Names(
        rgbt_stem=Names(proj=stem),
        cls_token=nn.Parameter(torch.randn(1, 1, WIDTH)),
        pos_embedding_helper=Names(pos_embed=nn.Parameter(torch.randn(1, 17, WIDTH))),
    )
    words = Names(token_embedding=nn.Embedding(WORDS, WIDTH), pos_embed=nn.Parameter(torch.randn(1, CONTEXT, WIDTH)))
    trunks = {}
    for name in modalities:
        blocks = nn.Sequential(*(Block(name == "audio") for _ in range(DEPTH)))
        norm = nn.LayerNorm(WIDTH, eps=EPS)
        trunks[name] = Names(
            blocks=blocks, pre_transformer_layer=nn.Sequential(norm if name == "vision" else nn.Identity())
        )
    ends = [(nn.LayerNorm(WIDTH, eps=EPS), nn.Linear(WIDTH, SPACE, bias=False)) for _ in range(2)]
    model = Names(
        modality_preprocessors=nn.ModuleDict({"vision": pictures, "text": words}),
        modality_trunks=nn.ModuleDict(trunks),
        modality_heads=nn.ModuleDict(
            {
                "vision": nn.Sequential(ends[0][0], nn.Identity(), ends[0][1]),
                "text": Names(proj=nn.Sequential(*ends[1])),
            }
        ),
        modality_postprocessors=nn.ModuleDict(
            {"text": nn.Sequential(nn.Identity(), Names(log_logit_scale=nn.Parameter(torch.tensor(3.1))))}
        ),
    )
    stir(model)  # type: ignore[arg-type]
    return model.eval()


def of_pictures(model: Any, pixels: Tensor) -> Tensor:
    front, trunk = model.modality_preprocessors["vision"], model.modality_trunks["vision"]
    tokens = front.rgbt_stem.proj(pixels[:, :, None].repeat(1, 1, 2, 1, 1)).flatten(2).transpose(1, 2)
    x = torch.cat([front.cls_token.expand(len(pixels), -1, -1), tokens], 1) + front.pos_embedding_helper.pos_embed
    x = trunk.pre_transformer_layer(x)
    for block in trunk.blocks:
        x = block(x, None)
    return F.normalize(model.modality_heads["vision"](x)[:, 0], dim=-1)


def of_texts(model: Any, ids: Tensor) -> Tensor:
    front = model.modality_preprocessors["text"]
    x = front.token_embedding(ids) + front.pos_embed
    mask = torch.full((CONTEXT, CONTEXT), -torch.inf).triu(1)
    for block in model.modality_trunks["text"].blocks:
        x = block(x, mask)
    return F.normalize(model.modality_heads["text"].proj(x[torch.arange(len(ids)), ids.argmax(1)]), dim=-1)


def test_pictures_and_texts_become_a_run(tmp_path: Path) -> None:
    theirs = small("vision", "text", "audio")
    torch.save(theirs.state_dict(), tmp_path / "imagebind.pth")
    described = describe_model(tmp_path / "imagebind.pth")
    assert described.notes == (
        "left out are audio: their attention has bias_k and bias_v, a learned key and value, which ours lack",
    )
    write_imported_run(described, tmp_path / "run")
    model = mmssl.load(tmp_path / "run")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    texts = ["a cat", "two dogs"]
    prepared = model.embedding.encoders["image"].prepare(torch.from_numpy(pixels).permute(0, 3, 1, 2))  # type: ignore[operator]
    with torch.no_grad():
        image, text = of_pictures(theirs, prepared), of_texts(theirs, model.modalities["text"].tokenize(texts))
    ours = model.encode(image=list(pixels), text=texts)
    torch.testing.assert_close(ours["image"], image, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours["text"], text, atol=1e-5, rtol=0)
    scale = theirs.modality_postprocessors["text"][1].log_logit_scale.detach().exp()
    assert model.logit_scales["image", "text"] == pytest.approx(float(scale), rel=1e-5)


def test_the_epsilon_of_its_norms_is_kept() -> None:
    x = torch.full((1, 3, 32, 32), 0.4822)
    x[..., 0] += 1e-3  # hardly any variance: the epsilon decides
    outs = []
    for eps in (1e-6, 1e-5):
        torch.manual_seed(0)
        config = VisionTransformerConfig(size=32, patch_size=8, width=32, depth=1, heads=2, norm_eps=eps)
        encoder = config.build().eval()
        with torch.no_grad():
            encoder.class_embedding.mul_(1e-3)  # type: ignore[union-attr]
            encoder.positional_embedding.mul_(1e-3)
            outs.append(encoder(x, pooled_only=True).pooled)
    assert (outs[0] - outs[1]).abs().max() > 1e-2


def test_its_sounds_are_refused_by_what_they_have_beyond_ours(tmp_path: Path) -> None:
    torch.save(small("vision", "text", "audio").state_dict(), tmp_path / "imagebind.pth")
    front_end = MelConfig(rate=8000, window=256, hop=80, mels=32)
    config = AudioTransformerConfig(
        front_end=front_end,
        seconds=0.39,
        patch_size=(8, 10),
        width=WIDTH,
        depth=DEPTH,
        heads=16,
        weights=tmp_path / "imagebind.pth",
    )
    with pytest.raises(CheckpointError, match=r"modality_trunks\.audio\.blocks\.0\.attn\.bias_k, bias_v"):
        config.build()


def test_a_file_without_its_texts_says_what_is_missing(tmp_path: Path) -> None:
    state = small("vision", "text").state_dict()
    torch.save({k: x for k, x in state.items() if "token_embedding" not in k}, tmp_path / "half.pth")
    with pytest.raises(CheckpointError, match=r"has no tensor for token_embedding\.weight, wanted ImageBind's towers"):
        describe_model(tmp_path / "half.pth")
