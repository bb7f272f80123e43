"""Patches, targets and masked error of masked autoencoders against their loops, transformers and analytic values."""

from __future__ import annotations

import pytest
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from mmssl.losses.mae import masked_mean_square, normalise_patches, patch_shape, patchify
from tests.losses.slow_loop import slow_loop


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def reference() -> ViTMAEForPreTraining:
    """A tiny model of transformers with random weights."""
    config = ViTMAEConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=12, patch_size=4,
        decoder_hidden_size=8, decoder_num_hidden_layers=1, decoder_num_attention_heads=1, decoder_intermediate_size=8,
        norm_pix_loss=True,
    )  # fmt: skip
    return ViTMAEForPreTraining(config)


@pytest.mark.parametrize(("shape", "patch"), [((2, 3, 8, 12), (4, 3)), ((1, 1, 6, 6), (2, 6)), ((3, 2, 4, 4), (1, 1))])
def test_patchify_equals_the_slow_loop(shape: tuple[int, ...], patch: tuple[int, int]) -> None:
    x = random(*shape)
    assert torch.equal(patchify(x, patch), slow_loop(patchify)(x, patch))


def test_patchify_equals_transformers(reference: ViTMAEForPreTraining) -> None:
    x = random(2, 3, 12, 12)
    assert torch.equal(patchify(x, (4, 4)), reference.patchify(x))


def test_patchify_of_three_axes() -> None:
    x = random(2, 3, 4, 6, 8)
    patches = patchify(x, (2, 3, 4))
    assert patches.shape == (2, 8, 72)
    block = x[1, :, 2:4, 0:3, 4:8]  # cell (1, 0, 1), which is token 5 in reading order
    assert torch.equal(patches[1, 5], block.permute(1, 2, 3, 0).flatten())


@pytest.mark.parametrize("patch", [(5, 4), (4,), (4, 4, 4)])
def test_patches_that_do_not_tile_are_refused(patch: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="tiled by patches"):
        patchify(random(1, 3, 12, 12), patch)


def test_patch_shape_from_input_and_grid() -> None:
    assert patch_shape((2, 3, 32, 48), (4, 3)) == (8, 16)
    assert patch_shape((2, 1, 8, 4, 4), (4, 2, 1)) == (2, 2, 4)
    for grid in [(5, 3), (4,)]:
        with pytest.raises(ValueError, match="whole multiple of the grid"):
            patch_shape((2, 3, 32, 48), grid)


def test_normalised_patches_and_the_loss_of_predicting_zero() -> None:
    patches = random(3, 5, 12) * 4 + 2
    normalised = normalise_patches(patches, eps=0.0)
    torch.testing.assert_close(normalised.mean(-1), torch.zeros(3, 5, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(normalised.std(-1), torch.ones(3, 5, dtype=torch.float64))
    zero = masked_mean_square(torch.zeros_like(patches), normalise_patches(patches), torch.ones(3, 5, dtype=torch.bool))
    assert zero.item() == pytest.approx(11 / 12, rel=1e-6)
    flat = normalise_patches(torch.full((1, 1, 12), 7.0))
    assert torch.equal(flat, torch.zeros(1, 1, 12))


def test_masked_mean_square_equals_the_slow_loop() -> None:
    prediction, target = random(4, 6, 5), random(4, 6, 5, seed=1)
    mask = torch.tensor(
        [[1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 0, 1], [0, 1, 1, 0, 1, 1]], dtype=torch.bool
    )
    assert 1 <= mask.sum(1).min() < mask.sum(1).max()  # samples weigh the same, however many tokens they hide
    expected = slow_loop(masked_mean_square)(prediction, target, mask)
    assert masked_mean_square(prediction, target, mask).item() == pytest.approx(expected, rel=1e-12)


def test_loss_equals_transformers(reference: ViTMAEForPreTraining) -> None:
    x = random(4, 3, 12, 12).float()
    with torch.no_grad():
        out = reference(x, noise=random(4, 9, seed=2))
    assert out.mask.sum(1).tolist() == [7, 7, 7, 7]
    ours = masked_mean_square(out.logits, normalise_patches(patchify(x, (4, 4))), out.mask.bool())
    torch.testing.assert_close(ours, out.loss, rtol=1e-6, atol=0)


def test_seen_tokens_do_not_count() -> None:
    prediction, target, mask = random(2, 6, 5), random(2, 6, 5, seed=1), torch.zeros(2, 6, dtype=torch.bool)
    mask[:, 2:4] = True
    prediction.requires_grad_()
    loss = masked_mean_square(prediction, target, mask)
    loss.backward()
    assert prediction.grad is not None
    assert (prediction.grad[:, 2:4] != 0).all()
    assert (prediction.grad[:, :2] == 0).all()
    assert (prediction.grad[:, 4:] == 0).all()


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"wanted \[B, T, P\], \[B, T, P\] and \[B, T\]"):
        masked_mean_square(random(2, 6, 5), random(2, 6, 5), torch.ones(2, 5, dtype=torch.bool))
