"""A bank of rows of every sample: the latest, on all processes alike."""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.core import distributed
from mmssl.heads.bank import SampleBank
from tests.distributed.processes import Processes


def test_the_latest_row_of_a_sample_is_kept() -> None:
    bank = SampleBank(6, 2)
    assert bank.known().tolist() == []
    rows = torch.arange(1.0, 9.0).view(4, 2)
    bank.write(torch.tensor([4, 1, 4, 0]), rows)
    assert bank.known().tolist() == [0, 1, 4]
    assert bank.rows.tolist() == [[7, 8], [3, 4], [0, 0], [0, 0], [5, 6], [0, 0]]
    bank.write(torch.tensor([1]), torch.tensor([[0.5, 0.0]], dtype=torch.float64))
    assert bank.rows[1].tolist() == [0.5, 0]
    bank.write(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2))
    assert bank.known().tolist() == [0, 1, 4]
    assert [*bank.state_dict()] == ["rows"]


def written() -> Tensor:
    """Both processes have sample 2; the first has one row more."""
    bank = SampleBank(5, 1)
    index = torch.tensor([2, 0, 1]) if distributed.rank() == 0 else torch.tensor([3, 2])
    bank.write(index, 10.0 * (1 + distributed.rank()) + index[:, None].float())
    return bank.rows


def test_of_two_processes_the_later_rank_is_kept_on_both(two_processes: Processes) -> None:
    for rows in two_processes.run(written, [()] * 2):
        assert rows[:, 0].tolist() == [10, 11, 22, 23, 0]
