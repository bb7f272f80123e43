"""Batches on their way to the device: trimmed, one ahead, and nothing of it seen by a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mmssl.core.batch import Batch
from mmssl.core.errors import DataError
from mmssl.core.objective import Learner
from mmssl.encoders.text_transformer import TextTransformerConfig
from mmssl.training.steps.prefetch import DeviceStream
from tests.training.steps.test_cached import noisy
from tests.training.toys import Agree, Stream, Tower, assert_equal, make_learner, make_run, tensors

CPU = torch.device("cpu")


class CutStream(Stream):
    """Cuts the power before step 6."""

    def act(self, step: int) -> None:
        if step == 6:
            raise ConnectionAbortedError


class ShortStream(Stream):
    """Ends after three batches, by an error if it has one."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error

    def __iter__(self) -> Iterator[Batch]:
        for batch, _ in zip(super().__iter__(), range(3), strict=False):
            yield batch
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("ahead", [False, True])
def test_batches_and_positions_are_those_of_the_stream(ahead: bool) -> None:
    plain, source = Stream(), Stream()
    stream = DeviceStream(source, make_learner(), CPU, ahead=ahead)
    stream.load_state_dict({"step": 3})
    plain.load_state_dict({"step": 3})
    assert stream.state_dict() == {"step": 3}
    for number, (ours, theirs) in enumerate(zip(stream, plain, strict=False), start=4):
        assert ours.keys == theirs.keys
        assert torch.equal(ours["a"]["view0"], theirs["a"]["view0"])
        assert stream.state_dict() == {"step": number}
        assert source.step == number + ahead
        if number == 8:
            break
    stream.close()
    assert source.closed


def test_a_stream_that_has_begun_may_be_sent_elsewhere() -> None:
    stream = DeviceStream(Stream(), make_learner(), CPU, ahead=True)
    next(iter(stream))
    stream.load_state_dict({"step": 7})
    assert stream.state_dict() == {"step": 7}
    assert next(iter(stream)).keys[0] == "7-0"


@pytest.mark.parametrize("ahead", [False, True])
def test_an_error_waits_for_its_batch(ahead: bool) -> None:
    batches = iter(DeviceStream(ShortStream(DataError("gone")), make_learner(), CPU, ahead=ahead))
    assert [next(batches).keys[0] for _ in range(3)] == ["0-0", "1-0", "2-0"]
    with pytest.raises(DataError, match="gone"):
        next(batches)
    assert len(list(DeviceStream(ShortStream(), make_learner(), CPU, ahead=ahead))) == 3


@pytest.mark.parametrize("ahead", [False, True])
def test_resume_is_bit_exact_with_a_batch_ahead(tmp_path: Path, ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_run(tmp_path / "whole", learner=noisy())
    whole.train()
    start = DeviceStream.__init__
    monkeypatch.setattr(DeviceStream, "__init__", lambda self, *args: start(self, *args, ahead=ahead))
    with pytest.raises(ConnectionAbortedError):
        make_run(tmp_path / "cut", learner=noisy(), stream=CutStream()).train()
    resumed = make_run(tmp_path / "cut", learner=noisy(1))
    resumed.train()
    assert_equal(tensors(resumed), tensors(whole))
    assert resumed.state.numbers() == whole.state.numbers()


def test_views_are_trimmed_where_their_encoder_allows_it() -> None:
    text = TextTransformerConfig(vocab_size=9, context_length=20, width=4, depth=1, heads=1).build()
    learner = Learner({"a": Tower(False), "b": Tower(False), "text": text}, Agree())
    ids = torch.zeros(4, 20, dtype=torch.int64)
    ids[torch.arange(4), torch.tensor([2, 9, 3, 1])] = 8
    short = torch.zeros_like(ids).index_fill(1, torch.tensor([1]), 8)
    masks = {"words0": ids.argsort(1), "mask0": ids > 0, "choice0": torch.zeros(4, dtype=torch.int64)}
    views = {"text": {"tokens0": ids, "tokens1": short, **masks}, "a": {"view0": torch.ones(4, 6)}}
    batch = Batch(views, torch.arange(4), trimmable={"text": ("tokens0", "tokens1")})

    class One(Stream):
        def __iter__(self) -> Iterator[Batch]:
            yield batch

    (moved,) = DeviceStream(One(), learner, CPU)
    assert torch.equal(moved["text"]["tokens0"], ids[:, :16])
    assert torch.equal(moved["text"]["tokens1"], short[:, :16])  # the longest of all token views: they may be joined
    assert all(moved["text"][name] is mask for name, mask in masks.items())
    assert moved["a"]["view0"] is views["a"]["view0"]
