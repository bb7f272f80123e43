"""Batches on their way to the device: trimmed, one ahead, and nothing of it seen by a run."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mmssl.core.batch import Batch
from mmssl.core.objective import Learner
from mmssl.encoders.text_transformer import TextTransformerConfig
from mmssl.training.steps.prefetch import DeviceStream
from tests.training.toys import Agree, Stream, Tower, make_learner

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


def test_batches_and_positions_are_those_of_the_stream() -> None:
    plain, source = Stream(), Stream()
    stream = DeviceStream(source, make_learner(), CPU)
    stream.load_state_dict({"step": 3})
    plain.load_state_dict({"step": 3})
    assert stream.state_dict() == {"step": 3}
    for number, (ours, theirs) in enumerate(zip(stream, plain, strict=False), start=4):
        assert ours.keys == theirs.keys
        assert torch.equal(ours["a"]["view0"], theirs["a"]["view0"])
        assert stream.state_dict() == {"step": number}
        assert source.step == number  # nothing is taken before it is asked for
        if number == 8:
            break
    stream.close()
    assert source.closed


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
    # A view with gaps would be copied to a device through other memory, while the host waits.
    assert all(moved["text"][name].is_contiguous() for name in ("tokens0", "tokens1"))
    assert all(moved["text"][name] is mask for name, mask in masks.items())
    assert moved["a"]["view0"] is views["a"]["view0"]
