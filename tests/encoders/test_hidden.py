"""Hidden layers: the outputs of the last blocks, for content tokens alone, whoever else is asked for what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmssl.core.encoder import Encoder, Features
from mmssl.encoders.adapters.adapter import Adapter
from tests.encoders.kinds import KINDS, build, differ, inputs, is_audio, is_text, is_video

DEPTH = {
    name: 2
    for name in KINDS
    if name.startswith(
        ("vit", "text_transformer", "audio_transformer", "audio_waveform", "series_transformer", "video_frames")
    )
}
DEPTH |= dict.fromkeys(["video_space_time", "video_space_time_joint", "hf_ast_audio", "hf_bert", "hf_clip_text"], 2)
DEPTH |= {"hf_vit": 2, "hf_clip_vision": 2, "timm_vit": 6}
DEPTH.pop("video_frames_mean")  # a residual network on each frame
HIDDEN = pytest.mark.parametrize("name", DEPTH)
MLPS = [name for name in DEPTH if not name.startswith(("hf", "timm", "video_frames"))]
PLACES = {
    "timm_vit": 4,
    "video_frames": 4,
    "video_frames_sinusoidal": 4,
    "video_space_time": 32,
    "video_space_time_joint": 64,
}
"""Content tokens where they are not the 16 patches of the picture or sound."""


def blocks(encoder: Encoder) -> list[nn.Module]:
    """The blocks, found by their number: those of a video encoder run over time."""
    stacks = [one for one in encoder.modules() if isinstance(one, nn.ModuleList | nn.Sequential)]
    found = [stack for stack in stacks if len(stack) == encoder.depth and not isinstance(stack[0], nn.Linear)]
    return list(getattr(encoder, "time", None) or found[0])


def observed(encoder: Encoder, x: Tensor, **options: Any) -> tuple[Features, list[Tensor]]:
    """Features of one sample, and the outputs of its blocks [1, T', D] that hooks see."""
    seen: list[Tensor] = []

    def record(module: nn.Module, args: object, out: Any) -> None:
        out = out[0] if isinstance(out, tuple) else out
        seen.append(out[None] if out.ndim == 2 else out)  # a text without padding, packed

    hooks = [block.register_forward_hook(record) for block in blocks(encoder)]
    features = encoder(x, **options)
    for hook in hooks:
        hook.remove()
    return features, seen


@pytest.mark.parametrize("name", KINDS)
def test_who_gives_hidden_layers_says_how_many(name: str, tmp_path: Path) -> None:
    encoder = build(name, tmp_path)
    assert encoder.depth == DEPTH.get(name, 0)
    assert (Encoder.HIDDEN in encoder.capabilities) == (name in DEPTH)
    assert name in DEPTH or Encoder.BIDIRECTIONAL not in encoder.capabilities
    wanted = f"0 to {encoder.depth}, the depth of" if encoder.depth else "0: there are no hidden layers in"
    for count in (encoder.depth + 1, -1):
        with pytest.raises(ValueError, match=rf"hidden: got {count}, wanted {wanted} {type(encoder).__name__}"):
            encoder(inputs(name), hidden=count)


@HIDDEN
def test_hidden_layers_are_the_outputs_of_the_last_blocks(name: str, tmp_path: Path) -> None:
    encoder, x = build(name, tmp_path).eval(), inputs(name)
    for count in (1, encoder.depth):
        together = encoder(x, hidden=count).hidden
        for row in range(len(x)):
            features, seen = observed(encoder, x[row : row + 1], hidden=count)
            assert len(seen) == encoder.depth
            assert len(together) == len(features.hidden) == count
            for whole, state, output in zip(together, features.hidden, seen[-count:], strict=True):
                length = int(x[row].argmax()) + 1 if is_text(name) else PLACES.get(name, 16)
                assert torch.equal(state[:, :length], output[:, output.shape[1] - state.shape[1] :][:, :length])
                torch.testing.assert_close(whole[row : row + 1], state, atol=1e-5, rtol=1e-5)
                assert not state[:, length:].any()  # padding of texts


@pytest.mark.parametrize("name", KINDS)
def test_who_gives_outputs_of_mlps_says_so(name: str, tmp_path: Path) -> None:
    assert (Encoder.MLPS in build(name, tmp_path).capabilities) == (name in MLPS)


@pytest.mark.parametrize("name", MLPS)
def test_outputs_of_mlps_are_those_of_the_last_blocks(name: str, tmp_path: Path) -> None:
    """Before LayerScale, and before they are added to the stream: as hooks see them; nothing else changes."""
    encoder, x = build(name, tmp_path).eval(), inputs(name)
    seen: list[Tensor] = []
    for block in blocks(encoder):
        getattr(block, "space", block).mlp.register_forward_hook(lambda _, __, out: seen.append(out))
    together, plain = encoder(x, hidden=2, mlps=True), encoder(x)
    torch.testing.assert_close((together.pooled, together.tokens), (plain.pooled, plain.tokens), atol=1e-6, rtol=1e-6)
    for row in range(len(x)):
        seen.clear()
        found = encoder(x[row : row + 1], hidden=2, mlps=True).hidden
        assert len(seen) == len(found) == 2
        for whole, state, output in zip(together.hidden, found, seen, strict=True):
            flat = output.reshape(1, -1, encoder.width)  # packed texts, and times of clips apart
            length = int(x[row].argmax()) + 1 if is_text(name) else PLACES.get(name, 16)
            assert torch.equal(state[:, :length], flat[:, flat.shape[1] - state.shape[1] :][:, :length])
            torch.testing.assert_close(whole[row : row + 1], state, atol=1e-5, rtol=1e-5)
            assert not state[:, length:].any()
    assert not torch.equal(encoder(x, hidden=1, mlps=True).hidden[0], encoder(x, hidden=1).hidden[0])


@HIDDEN
def test_hidden_layers_have_a_row_for_each_content_token(name: str, tmp_path: Path) -> None:
    encoder, x = build(name, tmp_path), inputs(name)
    features = encoder(x, hidden=2)
    count = x.shape[1] if is_text(name) else PLACES.get(name, 16)
    assert [state.shape for state in features.hidden] == [(3, count, encoder.width)] * 2
    assert features.tokens is None or features.tokens.shape == features.hidden[0].shape
    assert encoder(x).hidden is None


@HIDDEN
def test_asking_for_hidden_layers_changes_nothing_else(name: str, tmp_path: Path) -> None:
    encoder, x = build(name, tmp_path).eval(), inputs(name)
    plain, asked, pooled = encoder(x), encoder(x, hidden=2), encoder(x, hidden=2, pooled_only=True)
    torch.testing.assert_close((asked.pooled, asked.tokens), (plain.pooled, plain.tokens), atol=1e-6, rtol=1e-6)
    assert asked.grid == plain.grid
    torch.testing.assert_close((pooled.pooled, pooled.hidden), (asked.pooled, asked.hidden), atol=1e-6, rtol=1e-6)


@HIDDEN
def test_the_first_token_depends_on_the_last_where_the_encoder_is_bidirectional(name: str, tmp_path: Path) -> None:
    encoder, x = build(name, tmp_path).eval(), inputs(name)
    later = x.clone()
    if is_text(name):
        later[torch.arange(3), x.argmax(1) - 1] = 5  # the last word
    elif is_audio(name):
        later[..., 2500:] = 30_000
    elif is_video(name):
        later[:, -1, :, -8:, -8:] = 255 - later[:, -1, :, -8:, -8:]
    else:
        later[..., -8:, -8:] = 255 - later[..., -8:, -8:]
    before, after = (encoder(one, hidden=1).hidden[0] for one in (x, later))
    assert differ(before, after)
    assert torch.equal(before[:, 0], after[:, 0]) == (name in ("text_transformer", "hf_clip_text"))
    assert (Encoder.BIDIRECTIONAL in encoder.capabilities) == (name not in ("text_transformer", "hf_clip_text"))


@HIDDEN
def test_gradients_reach_the_blocks_below(name: str, tmp_path: Path) -> None:
    encoder = build(name, tmp_path)
    first, second = encoder(inputs(name), hidden=2).hidden
    (first * torch.randn(first.shape, generator=torch.Generator().manual_seed(4))).sum().backward()
    learned = [any(p.grad is not None for p in block.parameters()) for block in blocks(encoder)]
    assert learned == [True] * (encoder.depth - 1) + [False]
    assert second.requires_grad


@pytest.mark.parametrize("name", [name for name in DEPTH if "frames" not in name])
def test_checkpointed_blocks_give_the_same_hidden_layers(name: str, tmp_path: Path) -> None:
    results = []
    for checkpointing in (False, True):
        encoder = build(name, tmp_path, checkpointing=checkpointing)
        hidden = encoder(inputs(name), hidden=2).hidden
        sum((state * torch.arange(len(state)).reshape(-1, 1, 1)).sum() for state in hidden).backward()
        results.append((hidden, [p.grad for p in encoder.parameters()]))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in DEPTH if name.startswith(("vit", "audio_tr", "video_space"))])
def test_dropped_and_replaced_tokens_have_hidden_layers_too(name: str, tmp_path: Path) -> None:
    encoder, x = build(name, tmp_path).eval(), inputs(name)
    keep = torch.tensor([[0, 5, 15], [5, 2, 3], [9, 0, 12]])
    mask = torch.zeros(3, PLACES.get(name, 16), dtype=torch.bool).scatter(1, keep, True)
    for options in ({"keep": keep}, {"replace": (mask, torch.ones(32))}):
        features = encoder(x, hidden=2, **options)
        torch.testing.assert_close(encoder.norm_post(features.hidden[-1]), features.tokens)
        torch.testing.assert_close(features.tokens, encoder(x, **options).tokens, atol=1e-6, rtol=1e-6)
        assert not torch.allclose(features.hidden[0], features.hidden[1], atol=0.01)


@pytest.mark.parametrize("name", [name for name in DEPTH if is_audio(name)])
def test_windows_of_a_sound_have_no_hidden_layers(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wanted sounds"):
        build(name, tmp_path)(inputs(name, 6).unflatten(0, (3, 2)), hidden=1)


def test_patches_of_frames_have_the_hidden_layers_of_the_image_encoder(tmp_path: Path) -> None:
    image = KINDS["vit"].model_dump()
    encoder = build("video_frames", tmp_path, image=image, pool="mean", tokens="patches").eval()
    x = inputs("video_frames")
    features = encoder(x, hidden=1)
    assert features.hidden[0].shape == features.tokens.shape == (3, 64, 32)
    alone = encoder.image(x[1], hidden=1).hidden[0]  # [4, 16, D]
    torch.testing.assert_close(features.hidden[0][1], alone.flatten(0, 1), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(encoder(x, hidden=1, pooled_only=True).hidden, features.hidden, atol=1e-6, rtol=1e-6)
    frames = build("video_frames", tmp_path, image=image, pool="mean", tokens="frames")
    assert (frames.depth, Encoder.HIDDEN in frames.capabilities) == (0, False)


@pytest.mark.parametrize(
    "name",
    ["vit", "text_transformer_mean", "audio_transformer", "series_transformer", "video_frames", "video_space_time"],
)
def test_one_graph_gives_hidden_layers(name: str, tmp_path: Path) -> None:
    encoder, x = build(name, tmp_path).eval(), inputs(name)
    torch.compiler.reset()
    graph = torch.compile(encoder, backend="eager", fullgraph=True)
    ours, wanted = graph(x, hidden=2), encoder(x, hidden=2)
    torch.testing.assert_close((ours.pooled, ours.hidden), (wanted.pooled, wanted.hidden), atol=1e-5, rtol=1e-5)


class Normalises(nn.Module):
    """A library's model with two blocks, whose hidden states are what `states` makes of them."""

    def __init__(self, normalise: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.norm = nn.LayerNorm(4)
        self.normalise = normalise

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        first = self.blocks[0](x)
        last = self.blocks[1](first)
        return self.norm(last), (first, self.norm(last) if self.normalise else last)


class Wrapped(Adapter):
    """An adapter to it; a class token goes first."""

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor, *, hidden: int = 0, **options: Any) -> Features:
        self.check_hidden(hidden)
        tokens, states = self.model(x)
        return Features(
            tokens[:, 0], tokens[:, 1:], None, tuple(state[:, 1:] for state in states[2 - hidden :]) or None
        )


def test_states_that_a_library_normalises_are_not_offered() -> None:
    example = torch.randn(1, 5, 4)
    for normalise in (False, True):
        encoder = Wrapped(Normalises(normalise))
        encoder.offer_hidden(example, 2, bidirectional=False)
        assert encoder.depth == (0 if normalise else 2)
        assert encoder.capabilities == (frozenset() if normalise else {Encoder.HIDDEN})
        assert encoder.training
        assert not any(block._forward_hooks for block in encoder.model.blocks)
    broken = Wrapped(Normalises(False))
    broken.offer_hidden(torch.randn(1, 5, 3), 2)  # the model raises
    assert broken.depth == 0
