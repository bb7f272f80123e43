"""MFCC of tokens: scipy's cosine transform, differences of a ramp, refusals."""

from __future__ import annotations

import pytest
import torch

from mmssl.losses.mfcc import mfcc_of_tokens


def test_coefficients_are_the_cosine_transform_of_the_filters() -> None:
    fft = pytest.importorskip("scipy.fft")
    x = torch.randn(2, 2, 20, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = mfcc_of_tokens(x, (20, 3), coefficients=5)
    assert found.shape == (2, 4, 15)
    frames = fft.dct(x.mean(1).numpy(), norm="ortho", axis=1)[:, :5].reshape(2, 5, 4, 3).mean(-1)
    torch.testing.assert_close(found[..., :5], torch.from_numpy(frames).transpose(1, 2), rtol=1e-5, atol=1e-6)


def test_differences_of_a_ramp_are_its_slope_and_zero() -> None:
    ramp = torch.arange(20.0)[None, None, None].expand(1, 1, 8, -1) * 3
    found = mfcc_of_tokens(ramp, (8, 1), coefficients=1)[0, 8]  # far from the borders
    torch.testing.assert_close(found[1:], torch.tensor([3 * 8**0.5, 0.0]), rtol=1e-4, atol=1e-4)


def test_tokens_without_all_filters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"wanted spectrograms .* in tokens of all filters"):
        mfcc_of_tokens(torch.zeros(1, 1, 32, 8), (16, 4))
