"""Absent rows are not encoded, leave no trace in statistics, and every parameter gets a gradient; equal symbols, equal numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.heads.batch_norm import SyncBatchNorm, synchronise_batch_norm
from mmssl.objectives.presence import content_hash, encode_present
from tests.distributed.processes import Processes


def network(norm: type[nn.Module] = nn.BatchNorm1d) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), norm(5), nn.ReLU(), nn.Linear(5, 3))


X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
PRESENT = torch.tensor([True, False, True, True, False, True])


def test_only_what_is_there_is_encoded() -> None:
    seen: list[Tensor] = []
    net, other = network(), network()
    got = encode_present(lambda x: seen.append(x) or net(x), net, X, PRESENT)  # type: ignore[func-returns-value]
    assert torch.equal(seen[0], X[PRESENT])
    assert torch.equal(got[PRESENT], other(X[PRESENT]))
    assert (got[~PRESENT] == 0).all()
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, other.get_buffer(name))
    blank = X.masked_fill(~PRESENT[:, None], 1e6)
    assert torch.equal(encode_present(network(), net, blank, PRESENT), got)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
def test_without_any_every_parameter_has_a_gradient_of_zero_and_statistics_stay(norm: type[nn.Module]) -> None:
    net = network(norm)
    net[0].eval()  # somebody's choice, which must outlive the call
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    got = encode_present(net, net, X.fill_(0), torch.zeros(6, dtype=torch.bool))
    assert got.shape == (6, 3)
    assert (got == 0).all()
    F.normalize(got, dim=-1).sum().backward()
    for parameter in net.parameters():
        assert parameter.grad is not None
        assert (parameter.grad == 0).all()
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    assert [module.training for module in net] == [False, True, True, True]


@pytest.mark.parametrize("kind", [nn.SyncBatchNorm, SyncBatchNorm])
def test_layers_that_other_processes_wait_for_stay_in_training(kind: type[nn.Module]) -> None:
    layer = kind(5)
    modes: list[tuple[bool, bool]] = []
    net = nn.ModuleList([layer, nn.BatchNorm1d(5)])

    def note(x: Tensor) -> Tensor:
        modes.append((layer.training, net[1].training))
        return x

    encode_present(note, net, X, torch.zeros(6, dtype=torch.bool))
    assert modes == [(True, False)]
    assert (layer.training, net[1].training) == (True, True)


def on_one_of_two() -> list[Tensor]:
    """The first process has four rows, the second none."""
    net = network()
    synchronise_batch_norm(net)
    here = PRESENT if distributed.is_main() else torch.zeros(6, dtype=torch.bool)
    encode_present(net, net, X.masked_fill(~here[:, None], 0), here).sum().backward()
    return [*net.buffers(), *(distributed.total_detached(p.grad) for p in net.parameters() if p.grad is not None)]


def test_a_process_without_any_keeps_no_other_waiting(two_processes: Processes) -> None:
    first, second = two_processes.run(on_one_of_two, [()] * 2)
    assert len(first) == len(second) == 3 + 6
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_equal_rows_have_equal_numbers_and_others_do_not() -> None:
    random = torch.Generator().manual_seed(1)
    rows = torch.randint(0, 4, (4000, 7), generator=random)  # 4 ** 7 rows are possible: some are alike
    numbers = content_hash(rows)
    assert numbers.dtype == torch.int64
    assert 2000 < len(rows.unique(dim=0)) < 4000
    assert len(numbers.unique()) == len(rows.unique(dim=0))
    assert torch.equal(content_hash(rows.flip(0)), numbers.flip(0))
    pairs = torch.cat([rows[:, None, :3], rows[:, None, 3:6]], 1)
    assert torch.equal(content_hash(pairs), content_hash(rows[:, :6]))
    assert torch.equal(content_hash(F.pad(rows, (0, 5))), numbers)  # padding with zeros
    assert (content_hash(rows.flip(1)) != numbers).float().mean() > 0.9  # the order counts


def test_numbers_do_not_follow_a_pattern() -> None:
    """Rows that differ in one place by one, or by a swap, as captions do."""
    base = torch.arange(1, 78) * 631
    rows = base.repeat(77, 1) + torch.eye(77, dtype=torch.int64)
    swapped = torch.stack([base[torch.arange(77).roll(k)] for k in range(1, 77)])
    numbers = content_hash(torch.cat([base[None], rows, swapped]))
    assert len(numbers.unique()) == 1 + 77 + 76
    bits = torch.stack([(numbers >> bit) & 1 for bit in range(64)]).double().mean(1)
    assert (bits - 0.5).abs().max() < 0.2
    assert (
        content_hash(torch.tensor([[49406, 320, 49407]])).tolist()
        == content_hash(torch.tensor([[49406, 320, 49407]])).tolist()
    )
