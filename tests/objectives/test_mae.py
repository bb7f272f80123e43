"""MAE: equal to transformers from pixels to loss; hidden tokens are really hidden; clear errors."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import ViTMAEForPreTraining

from mmssl.core.batch import Batch
from mmssl.core.encoder import Encoder, Features
from mmssl.core.objective import Learner
from mmssl.core.plan import Plan
from mmssl.encoders.audio_transformer import AudioTransformerConfig
from mmssl.encoders.space_time import SpaceTimeConfig
from mmssl.encoders.spectrogram import MelConfig
from mmssl.losses.mae import patchify
from mmssl.objectives.mae import MaeConfig, MaeObjective
from tests.contracts import toys
from tests.heads.test_decoders import reference

CONFIG: dict[str, Any] = {
    "modality": "picture", "view": "crop", "patch_values": 12, "decoder": {"width": 12, "depth": 1, "heads": 2},
}  # fmt: skip


def build(encoder: Encoder | None = None, **changes: Any) -> tuple[Learner, MaeObjective]:
    torch.manual_seed(0)
    encoder = encoder or toys.Patches()
    objective = MaeConfig.model_validate_json(json.dumps(CONFIG | changes)).build({"picture": encoder}, Plan.unknown())
    return Learner({"picture": encoder}, objective), objective


class Borrowed(Encoder):
    """The encoder of transformers behind our protocol; its mask is steered by the noise that it sorts."""

    width, grid = 8, (4, 4)
    capabilities = frozenset({Encoder.TOKENS, Encoder.MASK_DROP})

    def __init__(self, model: ViTMAEForPreTraining) -> None:
        super().__init__()
        self.model = model

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def forward(
        self,
        x: Tensor,
        *,
        keep: Tensor | None = None,
        replace: tuple[Tensor, Tensor] | None = None,
        hidden: int = 0,
        pooled_only: bool = False,
    ) -> Features:
        assert keep is not None
        noise = torch.full((len(x), 16), 2.0).scatter(1, keep, torch.linspace(0, 1, keep.shape[1]).expand(len(x), -1))
        encoded = self.model.vit(x, noise=noise).last_hidden_state
        return Features(encoded[:, 0], encoded[:, 1:])

    def layers(self) -> list[list[nn.Parameter]]:
        return [list(self.model.vit.parameters())]


def test_equals_transformers_from_pixels_to_gradients() -> None:
    theirs, decoder = reference()
    random = torch.Generator().manual_seed(1)
    x = torch.randn(3, 3, 16, 16, generator=random, dtype=torch.float64, requires_grad=True)
    noise = torch.rand(3, 16, generator=random)
    batch = Batch({"picture": {"crop0": x, "order0": noise.argsort(1)}}, torch.arange(3))
    objective = MaeObjective("picture", "crop", "order", decoder, mask_ratio=0.75, normalise_targets=True)
    learner = Learner({"picture": Borrowed(theirs)}, objective)

    out, latents = learner(batch)
    expected = theirs(x, noise=noise)
    assert not latents["target"].requires_grad  # although the pixels do
    torch.testing.assert_close(latents["mask"].double(), expected.mask.double())
    torch.testing.assert_close(latents["prediction"], expected.logits, rtol=1e-10, atol=1e-10)
    # Targets are float32 where the pixels are not float64; the total is float32 always.
    torch.testing.assert_close(out.terms["reconstruction"], expected.loss, rtol=1e-10, atol=0)

    weight = theirs.vit.embeddings.patch_embeddings.projection.weight
    ours = torch.autograd.grad(out.terms["reconstruction"], [weight, decoder.mask_token])
    other = torch.autograd.grad(expected.loss, [weight, theirs.decoder.mask_token])
    torch.testing.assert_close(ours[0], other[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours[1], other[1].flatten(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("ratio", "visible"), [(0.75, 4), (0.9, 2), (0.5, 8), (0.05, 15)])
def test_the_first_tokens_of_the_order_are_visible(ratio: float, visible: int) -> None:
    learner, objective = build(mask_ratio=ratio)
    assert objective.visible == visible
    batch = toys.batch(3)
    seen: list[Tensor] = []
    learner.encoders["picture"].norm.register_forward_pre_hook(  # type: ignore[union-attr]
        lambda _, inputs: seen.append(inputs[0])
    )
    _, latents = learner(batch)
    assert seen[0].shape == (3, visible, 16)  # the encoder never computes on hidden tokens
    order = batch["picture"]["order0"]
    for row in range(3):
        assert sorted(order[row, :visible].tolist()) == (~latents["mask"][row]).nonzero().flatten().tolist()


def test_predictions_do_not_depend_on_hidden_pixels() -> None:
    learner, _ = build()
    batch = toys.batch(2)
    _, latents = learner(batch)
    hidden = latents["mask"].view(2, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    crop = batch["picture"]["crop0"]
    other = Batch({"picture": {**batch["picture"], "crop0": torch.where(hidden, 255 - crop, crop)}}, batch.index)
    out, changed = learner(other)
    assert torch.equal(changed["prediction"], latents["prediction"])
    assert not torch.equal(changed["target"], latents["target"])
    shown = Batch({"picture": {**batch["picture"], "crop0": torch.where(hidden, crop, 255 - crop)}}, batch.index)
    assert not torch.equal(learner(shown)[1]["prediction"], latents["prediction"])
    assert out.total > 0


def test_targets_are_prepared_pixels_without_graph() -> None:
    learner, _ = build(normalise_targets=False)
    batch = toys.batch(2)
    out, latents = learner(batch)
    assert torch.equal(latents["target"], patchify(batch["picture"]["crop0"].float() / 127.5 - 1, (2, 2)))
    assert not latents["target"].requires_grad
    assert latents["target"].dtype == torch.float32
    assert out.metrics["zero_loss"].item() == pytest.approx(1 / 3, rel=0.2)  # variance of uniform pixels in [-1, 1]
    normalised, _ = build()
    assert normalised(batch)[0].metrics["zero_loss"].item() == pytest.approx(11 / 12, rel=1e-4)


def test_targets_of_augmented_sounds_are_those_of_evaluation() -> None:
    """SpecAugment hides bands of the input; what is to be predicted is the sound as it is."""
    plain, x, values = sounds("mean")
    encoder, _, _ = sounds("mean", spec_augment={"filter_width": 12, "time_width": 40})
    learner, _ = build(encoder, patch_values=values, mask_ratio=0.5, normalise_targets=False)
    encoder.load_state_dict(plain.state_dict())
    seen: list[Tensor] = []
    encoder.patch_embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # type: ignore[union-attr]
    order = torch.arange(10).expand(4, -1)
    _, latents = learner.train()(Batch({"picture": {"crop0": x, "order0": order}}, torch.arange(4)))
    clean = plain.eval().prepare(x)
    assert torch.equal(latents["target"], patchify(clean, (8, 10)))
    assert (seen[0] != clean).float().mean() > 0.05


def test_needs_and_requirements() -> None:
    _, objective = build(order="shuffle")
    assert objective.needs() == {"picture": {"crop": 1, "shuffle": 1}}
    assert objective.requires() == {"picture": {"tokens", "mask_drop"}}
    assert objective.heads() == {}


def test_an_order_of_another_grid_is_refused() -> None:
    learner, _ = build()
    batch = toys.batch(2)
    for order in (torch.arange(9).expand(2, 9), torch.arange(16)[:, None]):
        wrong = Batch({"picture": {**batch["picture"], "order0": order}}, batch.index)
        sentence = (
            r"got token orders .* from modalities.picture.views.order, wanted \[B, 16\] for the token grid \(4, 4\) of"
        )
        with pytest.raises(ValueError, match=sentence):
            learner(wrong)
        with pytest.raises(ValueError, match=sentence):
            learner.objective.check_views(wrong, learner.context())


def test_a_wrong_patch_size_says_the_right_one() -> None:
    learner, _ = build(patch_values=768)
    with pytest.raises(ValueError, match="patch_values: got 768, wanted 12, the numbers of a token"):
        learner(toys.batch(2))
    with pytest.raises(ValueError, match="patch_values: got 768, wanted 12, the numbers of a token"):
        learner.objective.check_views(toys.batch(1), learner.context())


def test_encoders_without_grid_are_refused_at_build() -> None:
    with pytest.raises(ValueError, match="with a token grid, and Words has none; use a transformer"):
        build(toys.Words())


def test_ratios_that_hide_all_or_nothing_are_refused() -> None:
    for ratio in (0.01, 0.99):
        with pytest.raises(ValueError, match="wanted at least one visible and one masked token"):
            build(mask_ratio=ratio)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"mask_ratio": 1.0}, "less than 1"),
        ({"mask_ratio": 0.0}, "greater than 0"),
        ({"decoder": {"width": 10, "heads": 4}}, "width: got 10, wanted a multiple of heads 4"),
        ({"decoder": {"kind": "linear"}}, "Extra inputs"),
        ({"patch_values": 1}, "greater than or equal to 2"),
    ],
)
def test_config_refuses(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        MaeConfig.model_validate_json(json.dumps(CONFIG | changes))


@pytest.mark.parametrize("field", ["modality", "view", "patch_values"])
def test_config_has_no_default_for_what_must_be_stated(field: str) -> None:
    stated = {name: value for name, value in CONFIG.items() if name != field}
    with pytest.raises(ValidationError, match=rf"{field}\n.*Field required"):
        MaeConfig.model_validate_json(json.dumps(stated))


def test_decoder_defaults_are_those_of_the_paper() -> None:
    config = MaeConfig.model_validate_json('{"modality": "picture", "view": "crop", "patch_values": 768}')
    assert (config.decoder.width, config.decoder.depth, config.decoder.heads) == (512, 8, 16)
    assert (config.mask_ratio, config.normalise_targets, config.order) == (0.75, True, "order")


def sounds(channel: str, **front: Any) -> tuple[Encoder, Tensor, int]:
    """An encoder of two by five patches, sounds, and the numbers in a patch."""
    front_end = MelConfig.model_validate(
        {"rate": 8000, "window": 256, "hop": 80, "mels": 16, "frames": 50, "channel": channel, **front}
    )
    encoder = AudioTransformerConfig(
        front_end=front_end, seconds=0.5, patch_size=(8, 10), width=16, depth=1, heads=2
    ).build()
    waves = 0.1 * torch.randn(4, 2, 4000, generator=torch.Generator().manual_seed(0))
    return encoder, waves, 8 * 10 * front_end.planes


def clips(attention: str) -> tuple[Encoder, Tensor, int]:
    """An encoder of 2 x 2 x 2 tubelets, clips whose last tubelet is filled, and the numbers in a tubelet."""
    values = {"size": 16, "frames": 4, "patch_size": 8, "tubelet": 2, "attention": attention}
    encoder = SpaceTimeConfig.model_validate({**values, "width": 16, "depth": 1, "heads": 2}).build()
    frames = torch.randint(0, 256, (4, 3, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return encoder, frames, 2 * 8 * 8 * 3


@pytest.mark.parametrize(("make", "kind"), [(sounds, "mean"), (sounds, "both"), (clips, "divided"), (clips, "joint")])
def test_sounds_and_clips_are_masked_like_pictures(make: Any, kind: str) -> None:
    """Hidden content has no influence, all of it is to be predicted in the encoder's own order, and everything learns."""
    torch.manual_seed(0)
    encoder, x, values = make(kind)
    tokens = math.prod(encoder.grid)
    learner, objective = build(encoder, patch_values=values, mask_ratio=0.5)
    order = torch.stack([torch.randperm(tokens, generator=torch.Generator().manual_seed(row)) for row in range(4)])
    batch = Batch(views={"picture": {"crop0": x, "order0": order}}, index=torch.arange(4))
    out, latents = learner(batch, 0, 10)
    assert latents["target"].shape == latents["prediction"].shape == (4, tokens, values)
    assert latents["mask"].sum(1).tolist() == [tokens // 2] * 4
    out.terms["reconstruction"].backward()
    assert not [name for name, p in learner.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    raw = objective._target(x, encoder).clone()
    last = encoder.prepare(x)
    spatial = [slice(-size // cells, None) for size, cells in zip(last.shape[2:], encoder.grid, strict=True)]
    patch = last[(slice(None), slice(None), *spatial)].flatten(2).transpose(1, 2).flatten(1)  # channel fastest
    wanted = (patch - patch.mean(1, keepdim=True)) / (patch.var(1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(raw[:, -1], wanted)
