"""Absent samples and samples that are alike, in all losses of pairs: the slow loops, the loss of what is left, gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mmssl.losses.candidates import left_out_negatives
from mmssl.losses.info_nce import info_nce, info_nce_accuracy
from mmssl.losses.sigmoid import sigmoid_loss
from mmssl.losses.tiled_info_nce import tiled_info_nce
from mmssl.losses.tiled_sigmoid import tiled_sigmoid_loss
from mmssl.losses.tiles import candidate_counts
from tests.losses.inputs import unit_rows
from tests.losses.largest import Largest
from tests.losses.slow_loop import slow_loop

Loss = Callable[..., Tensor]
PLAIN: dict[str, Loss] = {"info_nce": info_nce, "sigmoid": sigmoid_loss}
TILED: dict[str, Loss] = {"info_nce": tiled_info_nce, "sigmoid": tiled_sigmoid_loss}
SIZES = {"whole": None, "tiles of 1": 1, "tiles of 3": 3, "tiles of 7": 7, "one tile": 64}
kinds = pytest.mark.parametrize("kind", PLAIN)
sizes = pytest.mark.parametrize("way", SIZES)
N = 16
PRESENT = torch.tensor([i not in (0, 3, 4, 5, 11) for i in range(N)])
# Two ids a sample: all different but for 1 = 7 = 12 in the first, and 2 = 7 = 14 in the second; 12 and 14 have none in common.
IDS = torch.stack([torch.arange(N), torch.arange(N)], 1)
IDS[[7, 12], 0] = 1
IDS[[7, 14], 1] = 2
FACTS: dict[str, dict[str, Tensor]] = {
    "present": {"present": PRESENT},
    "ids": {"ids": IDS},
    "both": {"present": PRESENT, "ids": IDS},
}
facts = pytest.mark.parametrize("which", FACTS)


def loss_of(kind: str, way: str) -> Loss:
    return PLAIN[kind] if way == "whole" else partial(TILED[kind], size=SIZES[way])


def inputs(kind: str, scale: float = 12.0, n: int = N, seed: int = 0) -> tuple[Tensor, ...]:
    numbers = [scale] if kind == "info_nce" else [scale, -scale / 2]
    return (*unit_rows(n, 5, seed), *(torch.tensor(x, dtype=torch.float64) for x in numbers))


def with_gradients(loss: Loss, given: Sequence[Tensor], **options: Any) -> tuple[Tensor, ...]:
    leaves = [x.clone().requires_grad_() for x in given]
    value = loss(*leaves, **options)
    return (value.detach(), *torch.autograd.grad(value, leaves))


def assert_close(got: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-12 * max(1.0, float(y.abs().max())))


@kinds
@sizes
@facts
@pytest.mark.parametrize("scale", [12.0, 300.0])
def test_equals_the_slow_loop(kind: str, way: str, which: str, scale: float) -> None:
    given, options = inputs(kind, scale), FACTS[which]
    numbers = [float(x) for x in given[2:]]
    present, ids = options.get("present", torch.ones(N) > 0), options.get("ids", torch.arange(N)[:, None])
    expected = slow_loop(PLAIN[kind])(*given[:2], *numbers, present.tolist(), ids.tolist())
    loss = loss_of(kind, way)
    assert loss(*given, **options).item() == pytest.approx(expected, rel=1e-12)
    assert abs(loss(*given) - expected) > 0.01  # the facts matter


@kinds
@sizes
@pytest.mark.parametrize("scale", [12.0, 300.0])
def test_absent_samples_might_as_well_not_be_there(kind: str, way: str, scale: float) -> None:
    given, loss = inputs(kind, scale), loss_of(kind, way)
    got = with_gradients(loss, given, present=PRESENT)
    value, grad_a, grad_b, *numbers = with_gradients(loss, [given[0][PRESENT], given[1][PRESENT], *given[2:]])
    for found, expected in ((got[1], grad_a), (got[2], grad_b)):
        assert (found[~PRESENT] == 0).all()
        assert_close([found[PRESENT]], [expected])
    assert_close((got[0], *got[3:]), (value, *numbers))


@kinds
@sizes
@facts
@pytest.mark.parametrize("scale", [12.0, 90.0, 400.0])
def test_tiles_have_the_gradients_of_the_whole(kind: str, way: str, which: str, scale: float) -> None:
    given = inputs(kind, scale)
    assert_close(
        with_gradients(loss_of(kind, way), given, **FACTS[which]), with_gradients(PLAIN[kind], given, **FACTS[which])
    )


@kinds
@pytest.mark.parametrize("way", ["whole", "tiles of 3"])
@facts
@pytest.mark.parametrize("scale", [5.0, 150.0])
def test_gradients_are_those_of_differences(kind: str, way: str, which: str, scale: float) -> None:
    given = [x.requires_grad_() for x in inputs(kind, scale, n=6)]
    options = {name: x[torch.tensor([1, 2, 3, 7, 12, 14])] for name, x in FACTS[which].items()}
    assert torch.autograd.gradcheck(lambda *x: loss_of(kind, way)(*x, **options), given)


@kinds
@sizes
@facts
@pytest.mark.parametrize(("processes", "scale"), [(2, 300.0), (4, 7.0)])
def test_shares_of_processes_average_to_the_loss_of_the_whole(
    kind: str, way: str, which: str, processes: int, scale: float
) -> None:
    """Of four, the second has one present sample and the others three or four."""
    given, options, size = inputs(kind, scale), FACTS[which], N // processes
    a, b, *numbers = (x.clone().requires_grad_() for x in given)
    columns: list[Tensor] = []

    def shares(join: Callable[[Tensor], Tensor]) -> list[Tensor]:
        more = [{}] * processes
        if kind == "info_nce":
            more = [{"all_a": a} if way == "whole" else {"over_processes": join}] * processes
        return [
            loss_of(kind, way)(
                a[i : i + size], b[i : i + size], *numbers, all_b=b, offset=i, **options, **more[i // size]
            )
            for i in range(0, N, size)
        ]

    shares(lambda x: columns.append(x) or x)  # type: ignore[func-returns-value]
    loss = torch.stack(shares(lambda _: torch.stack(columns).logsumexp(0))).mean()
    gradients = torch.autograd.grad(loss, (a, b, *numbers))
    assert_close((loss.detach(), *gradients), with_gradients(PLAIN[kind], given, **options))


@kinds
@sizes
@pytest.mark.parametrize("there", [0, 1])
def test_without_company_there_is_nothing_to_contrast(kind: str, way: str, there: int) -> None:
    present = torch.arange(N) == (2 if there else -1)
    got = with_gradients(loss_of(kind, way), inputs(kind), present=present)
    if there == 0 or kind == "info_nce":
        assert all((x == 0).all() for x in got)
    else:
        assert got[0] > 0
        assert (got[1][~present] == 0).all()
    rates = info_nce_accuracy(*inputs(kind)[:2], present=present)
    assert [float(x) for x in rates] == [there, there]


@kinds
@pytest.mark.parametrize("way", ["tiles of 3", "one tile"])
def test_what_stands_in_absent_rows_does_not_matter(kind: str, way: str) -> None:
    given = inputs(kind)
    expected = with_gradients(loss_of(kind, way), given, present=PRESENT)
    for x in given[:2]:
        x[~PRESENT] = math.nan
    assert_close(with_gradients(loss_of(kind, way), given, present=PRESENT), expected)


@kinds
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_far_from_zero_in_float32(kind: str, sign: float) -> None:
    """Where all logits of present samples are near +-`scale`, the zeros of absent ones must not decide what is in range."""
    n, steep = 6, 1000.0
    a = torch.nn.functional.normalize(
        torch.ones(n, 5) + 0.02 * torch.randn(n, 5, generator=torch.Generator().manual_seed(1)), dim=1
    )
    present = torch.tensor([True, True, False, True, True, False])
    given = [a, sign * a.flip(1), torch.tensor(steep), *([torch.tensor(0.0)] if kind == "sigmoid" else [])]
    exact = with_gradients(PLAIN[kind], [x.double() for x in given], present=present)
    for size in (2, 64):
        got = with_gradients(partial(TILED[kind], size=size), given, present=present)
        for x, y in zip(got, exact, strict=True):
            assert (x - y).abs().max() <= 2e-3 * y.abs().max() + 1e-6


def test_float32_at_scale_100_is_close_to_float64() -> None:
    random = torch.Generator().manual_seed(0)
    n = 1200
    a, b = unit_rows(n, 64, seed=3)
    present = torch.rand(n, generator=random) < 0.7
    ids = torch.randint(0, 400, (n,), generator=random)
    for kind, numbers in (("info_nce", [100.0]), ("sigmoid", [100.0, -30.0])):
        given = [x.float() for x in (a, b, *(torch.tensor(x) for x in numbers))]
        exact = with_gradients(PLAIN[kind], [x.double() for x in given], present=present, ids=ids)
        got = with_gradients(partial(TILED[kind], size=512), given, present=present, ids=ids)
        for x, y in zip(got, exact, strict=True):
            assert x.dtype == torch.float32
            assert (x - y).abs().max() < 5e-6 * y.abs().max()


@kinds
def test_tiles_stay_tiles(kind: str) -> None:
    n, d, size = 200, 8, 32
    given = (*unit_rows(n, d), *inputs(kind)[2:])
    with Largest() as largest:
        with_gradients(
            partial(TILED[kind], size=size), given, present=torch.arange(n) % 3 > 0, ids=torch.arange(n).view(n, 1) // 2
        )
    assert largest.numbers == n * d


@facts
@pytest.mark.parametrize("processes", [1, 2])
def test_accuracy_and_counts_are_those_of_the_candidates_that_are_left(which: str, processes: int) -> None:
    a, b = unit_rows(N, 3)
    b = torch.nn.functional.normalize(b + 0.8 * a, dim=1)
    options = FACTS[which]
    present, ids = options.get("present", torch.ones(N) > 0), options.get("ids", torch.arange(N)[:, None])
    alike = (ids[:, None] == ids).any(-1) & ~torch.eye(N, dtype=torch.bool)
    candidates = present & ~alike
    hits, counts = [0, 0], torch.ones(N, dtype=torch.float64)
    for i in present.nonzero()[:, 0].tolist():
        among = candidates[i].nonzero()[:, 0]
        counts[i] = len(among)
        hits[0] += int(among[(b[among] @ a[i]).argmax()] == i)
        hits[1] += int(among[(a[among] @ b[i]).argmax()] == i)
    assert 0 < hits[0] < present.sum()
    assert hits[0] != hits[1]
    size, found, counted = N // processes, [], []
    for start in range(0, N, size):
        own = slice(start, start + size)
        found.append(torch.stack(info_nce_accuracy(a[own], b[own], all_a=a, all_b=b, offset=start, **options)))
        counted.append(
            candidate_counts(torch.arange(start, start + size), N, options.get("present"), options.get("ids"))
        )
    torch.testing.assert_close(torch.stack(found).mean(0), torch.tensor(hits) / present.sum())
    assert torch.equal(torch.cat(counted), counts)


def test_no_negatives_keeps_every_positive() -> None:
    out = left_out_negatives(torch.arange(4, 8), N, PRESENT, IDS)
    assert out is not None
    assert not out[torch.arange(4), torch.arange(4, 8)].any()
    assert out[0].sum() == N - 1  # absent
    assert out[3].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 11, 12, 14]
    assert left_out_negatives(torch.arange(4), N, None, None) is None
