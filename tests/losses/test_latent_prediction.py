"""Targets and errors of latent prediction against their loops, torch's norms, golden and analytic values."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.losses.latent_prediction import (
    OverFeatures,
    TargetNorm,
    latent_targets,
    masked_latent_error,
    masked_sums,
    place_error,
    token_std,
)
from tests.distributed.processes import WORLD, Processes
from tests.losses.slow_loop import slow_loop

# Of fairseq's three losses, one for each modality: beta, and what is done over the features.
LOSSES: list[tuple[float | None, OverFeatures]] = [(2.0, "mean"), (None, "sqrt"), (4.0, "sum"), (0.3, "sqrt")]
REAL = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]], dtype=torch.bool)
MASK = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 1, 0], [1, 0, 1, 0, 1]], dtype=torch.bool)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def waves(a: float, c: float, e: float, f: float) -> Tensor:
    """T3(3, 5, 6, a, c, e, f)[b, t, j] = sin(a b + c t + e j + f t j + 0.05 b j), float64, of the golden values."""
    b, t, j = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (3, 5, 6)), indexing="ij")
    return torch.sin(a * b + c * t + e * j + f * t * j + 0.05 * b * j)


LAYERS = [waves(0.3 * k, 0.5 + k, 0.8, 0.1 * k) for k in (1, 2, 3)]
PREDICTION = waves(0.15, 0.6, 1.9, 0.07)


@pytest.mark.parametrize(("norm", "norm_mean"), itertools.product(["layer", "instance"], [False, True]))
def test_targets_equal_the_slow_loop(norm: TargetNorm, norm_mean: bool) -> None:
    layers = [3 * random(3, 5, 6, seed=k) + k for k in range(4)]
    for real in (REAL, torch.ones_like(REAL)):
        expected = slow_loop(latent_targets)(layers, real, norm, norm_mean)
        torch.testing.assert_close(
            latent_targets(layers, real, norm=norm, norm_mean=norm_mean), expected, rtol=1e-10, atol=1e-12
        )
    torch.testing.assert_close(latent_targets(layers, norm=norm, norm_mean=norm_mean), expected, rtol=1e-10, atol=1e-12)


def test_targets_equal_norms_of_torch() -> None:
    x = random(3, 5, 6) + 2
    torch.testing.assert_close(latent_targets([x], norm="layer", norm_mean=False), F.layer_norm(x, (6,)))
    torch.testing.assert_close(latent_targets([x], norm="instance", norm_mean=False), F.instance_norm(x.mT).mT)


def test_padding_does_not_change_targets() -> None:
    """fairseq's instance norm runs over it."""
    x = random(3, 5, 6)
    whole = latent_targets([x], REAL, norm="instance", norm_mean=False)
    torch.testing.assert_close(whole[1:2, :3], latent_targets([x[1:2, :3]], norm="instance", norm_mean=False))
    other = torch.where(REAL[..., None], x, x + 100)
    assert torch.equal(latent_targets([other], REAL, norm="instance", norm_mean=False), whole)
    assert (whole[~REAL] == 0).all()


def test_targets_have_no_gradient_and_at_least_float32() -> None:
    layers = [random(3, 5, 6).to(torch.bfloat16).requires_grad_()]
    target = latent_targets(layers, norm="layer", norm_mean=True)
    assert not target.requires_grad
    assert target.dtype == torch.float32
    torch.testing.assert_close(target, latent_targets([layers[0].double()], norm="layer", norm_mean=True).float())


@pytest.mark.parametrize(("beta", "over"), LOSSES)
def test_error_equals_the_slow_loop(beta: float | None, over: OverFeatures) -> None:
    prediction, target = 2 * random(3, 5, 6), random(3, 5, 6, seed=1)
    for mask in (MASK, MASK & torch.tensor([[True], [False], [True]])):  # one sample has no masked token
        expected = slow_loop(masked_latent_error)(prediction, target, mask, beta, over)
        assert masked_latent_error(prediction, target, mask, beta, over).tolist() == pytest.approx(expected, rel=1e-12)


def test_golden_values() -> None:
    """Of ssl-golden-values-2.json, by slow loops in numpy: means over the six masked tokens of all samples."""
    counts = MASK.sum(1)
    for norm, norm_mean, beta, over, value in (
        ("instance", False, None, "sqrt", 1.8487886671727676),  # data2vec_audio_l2
        ("layer", True, 2.0, "mean", 0.3391974731844),  # data2vec_vision_smooth_l1_beta2
    ):
        target = latent_targets(LAYERS, norm=norm, norm_mean=norm_mean)  # type: ignore[arg-type]
        errors = masked_latent_error(PREDICTION, target, MASK, beta, over)  # type: ignore[arg-type]
        assert ((errors * counts).sum() / counts.sum()).item() == pytest.approx(value, rel=1e-12)


def test_the_error_of_predicting_zero_is_analytic() -> None:
    """A normalised target of D features has the squared length D; smooth L1 of a standard normal one is 0.247 (beta 2)."""
    target = latent_targets([random(4, 200, 64)], norm="layer", norm_mean=True)
    mask = torch.ones(4, 200, dtype=torch.bool)
    zero = torch.zeros_like(target)
    assert masked_latent_error(zero, target, mask, None, "sqrt").tolist() == pytest.approx([8.0] * 4, rel=1e-4)
    assert masked_latent_error(zero, target, mask, 2.0, "mean").mean().item() == pytest.approx(0.247, rel=0.01)


def test_only_masked_tokens_have_a_gradient() -> None:
    prediction = random(3, 5, 6).requires_grad_()
    masked_latent_error(prediction, random(3, 5, 6, seed=1), MASK, 2.0, "mean").sum().backward()
    assert prediction.grad is not None
    assert torch.equal((prediction.grad != 0).all(-1), MASK)
    assert torch.equal((prediction.grad != 0).any(-1), MASK)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"wanted \[B, T, D\], \[B, T, D\] and \[B, T\]"):
        masked_latent_error(random(3, 5, 6), random(3, 5, 6), MASK[:, :4], None, "mean")


def std_of(part: int) -> Tensor:
    rows = slice(0, 2) if part == 0 else slice(2, 3)
    return token_std(masked_sums(random(3, 5, 6)[rows], MASK[rows]), MASK[rows].sum(1))


def test_spread_of_tokens_is_that_of_torch_over_all_processes(two_processes: Processes) -> None:
    x = random(3, 5, 6)
    expected = x[MASK].std(0).mean()
    torch.testing.assert_close(token_std(masked_sums(x, MASK), MASK.sum(1)), expected)
    for found in two_processes.run(std_of, [(rank,) for rank in range(WORLD)]):
        torch.testing.assert_close(found, expected)


def test_tokens_that_are_alike_or_absent_have_no_spread() -> None:
    same = torch.ones(3, 5, 6, dtype=torch.float64) * 0.3
    assert token_std(masked_sums(same, MASK), MASK.sum(1)).item() == pytest.approx(0, abs=1e-7)
    nothing = torch.zeros_like(MASK)
    assert token_std(masked_sums(same, nothing), nothing.sum(1)).item() == 0


IJEPA, VJEPA = 0.5928355077118092, 1.0286203409994497
"""Of ssl-golden-values-2.json: ijepa_smooth_l1_beta1 at places 1, 2, 4; vjepa_l1_two_generators, the other at 0, 3."""


def test_errors_at_places_have_golden_and_analytic_values() -> None:
    target = F.layer_norm(LAYERS[0], (6,), eps=1e-5)
    first, second = ((PREDICTION[:, places], target[:, places]) for places in ([1, 2, 4], [0, 3]))
    assert place_error(*first, beta=1.0).mean().item() == pytest.approx(IJEPA, rel=1e-13)
    both = [place_error(*given, beta=0.0).mean() for given in (first, second)]
    assert torch.stack(both).mean().item() == pytest.approx(VJEPA, rel=1e-13)
    for beta in (0.3, 1.0, None):
        expected = torch.tensor(slow_loop(place_error)(*first, beta), dtype=torch.float64)
        torch.testing.assert_close(place_error(*first, beta=beta), expected)
    gaussian = random(4, 2000, 50)
    assert place_error(0 * gaussian, gaussian, beta=1.0).mean().item() == pytest.approx(0.4247, abs=0.003)
    assert place_error(0 * gaussian, gaussian, beta=0.0).mean().item() == pytest.approx(0.7979, abs=0.003)
