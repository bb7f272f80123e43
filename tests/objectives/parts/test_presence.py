"""Content hashes: equal symbols, equal numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mmssl.objectives.parts.presence import content_hash


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
