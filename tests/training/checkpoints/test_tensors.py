"""Tensors in files: 0-dimensional, shared, laid out in any way, on the same bytes for the same values."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mmssl.core.errors import CheckpointError
from mmssl.training.checkpoints.tensors import dump_tensors, load_exactly, read_tensors
from tests.training.toys import assert_equal


def dumped(tensors: dict[str, Tensor]) -> bytes:
    file = io.BytesIO()
    dump_tensors(tensors, file)
    return file.getvalue()


def test_all_kinds_come_back(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    tensors = {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True, False]),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "one": shared,
        "same": shared,
        "part": shared[2:4],
    }
    path = tmp_path / "x.safetensors"
    path.write_bytes(dumped(tensors))
    assert_equal(read_tensors(path), tensors)
    assert {name: tensor.dtype for name, tensor in read_tensors(path).items()} == {
        n: t.dtype for n, t in tensors.items()
    }
    without = dumped({name: tensor for name, tensor in tensors.items() if name != "same"})
    assert len(dumped(tensors)) - len(without) < 6 * 4 + 40, "a shared tensor is stored once"
    assert len({without, dumped({n: t for n, t in tensors.items() if n != "same"})}) == 1


def test_tied_weights_load(tmp_path: Path) -> None:
    def tied() -> nn.ModuleDict:
        one, two = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        two.weight = one.weight
        return nn.ModuleDict({"one": one, "two": two})

    path, source, target = tmp_path / "x.safetensors", tied(), tied()
    path.write_bytes(dumped(source.state_dict()))
    load_exactly(target, read_tensors(path), path)
    assert_equal(target.state_dict(), source.state_dict())


def test_what_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"x\.safetensors: cannot be read as safetensors"):
        read_tensors(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_tensors(tmp_path / "missing")


def test_an_empty_bank_stays_empty_and_any_other_size_is_refused(tmp_path: Path) -> None:
    def module(samples: int) -> nn.Module:
        made = nn.Linear(2, 2)
        made.register_buffer("bank", torch.arange(3.0 * samples).reshape(samples, 3))
        return made

    saved, loaded = module(5).state_dict(), module(0)
    load_exactly(loaded, saved, tmp_path)
    assert loaded.bank.shape == (0, 3)
    assert torch.equal(loaded.weight, saved["weight"])
    with pytest.raises(CheckpointError, match=r"bank is \[5, 3\] in the checkpoint and \[4, 3\] in the recipe"):
        load_exactly(module(4), saved, tmp_path)
    del saved["bank"]
    with pytest.raises(CheckpointError, match="1 missing in the checkpoint: bank"):
        load_exactly(loaded, saved, tmp_path)


def test_long_lists_are_cut(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"40 missing in the checkpoint: 0\.weight.*, and 32 more"):
        load_exactly(nn.Sequential(*(nn.Linear(1, 1) for _ in range(20))), {}, tmp_path)
