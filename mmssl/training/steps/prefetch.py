"""Training batches on their way to the device: trimmed, and copied while a step runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mmssl.core.batch import Batch
from mmssl.core.encoder import Encoder
from mmssl.core.objective import Learner
from mmssl.core.sample import Drawn
from mmssl.data.modality import View
from mmssl.training.steps.state import Stream

Unfinished = Mapping[str, Mapping[str, View]]
"""Modality -> kind -> view that is finished on the device; see `View.on_device`."""


class DeviceStream:
    """A stream that trims batches (see `Encoder.trim`) and moves them to the device.

    All token views of a modality keep one length, that of the longest text, so that they can be encoded in one call. Pixels are
    copied as uint8. On CUDA the copy runs in its own CUDA stream, from pinned memory: asked for while the device works on a step, a
    batch shorter to copy than the step costs no time. On the CPU nothing is copied.

    Args:
        stream: where batches come from.
        learner: its encoders trim the views.
        device: where batches go.
        unfinished: modality -> kind -> view that is finished on the device.
    """

    def __init__(
        self, stream: Stream, learner: Learner, device: torch.device, unfinished: Unfinished | None = None
    ) -> None:
        self._stream, self._device = stream, device
        self._unfinished = unfinished or {}
        self._encoders = dict(learner.encoders.items())
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._stream:
            with torch.cuda.stream(self._copies):
                moved = self._move(batch)
            yield finish_views(self._arrived(moved), self._unfinished, self._encoders)

    def state_dict(self) -> dict[str, Any]:
        """See `Stream`."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Stream`."""
        self._stream.load_state_dict(state)

    def drawn(self) -> Mapping[str, Drawn]:
        """See `Stream`."""
        return self._stream.drawn()

    def close(self) -> None:
        """See `Stream`."""
        self._stream.close()

    def _move(self, batch: Batch) -> Batch:
        batch = trim_texts(batch, self._encoders)
        if self._copies is not None:  # the loader has pinned all but what was trimmed
            batch = batch.map(lambda x: x if x.is_pinned() else x.pin_memory())
        return batch.to(self._device, non_blocking=True)

    def _arrived(self, batch: Batch) -> Batch:
        """Make the current CUDA stream wait for the copy of a batch."""
        if self._copies is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._copies)

            def keep(x: torch.Tensor) -> torch.Tensor:
                x.record_stream(
                    current
                )  # its memory belongs to the copying stream, and must not be reused before the step is done
                return x

            batch.map(keep)
        return batch


def finish_views(batch: Batch, unfinished: Unfinished, encoders: Mapping[str, nn.Module]) -> Batch:
    """Finish the views of a batch on its device for their encoders, by the parameters that were drawn for its samples."""
    views = dict(batch.views)
    for modality, kinds in unfinished.items():
        made = dict(views.get(modality, {}))
        for kind, view in kinds.items():
            for name in [name for name in made if name.startswith(kind) and name[len(kind) :].isdigit()]:
                encoder = encoders[modality]
                assert isinstance(encoder, Encoder)
                made[name] = view.finish(made[name], batch.parameters(modality, name), encoder)
        if made:
            views[modality] = made
    return replace(batch, views=views)


def trim_texts(batch: Batch, encoders: Mapping[str, nn.Module]) -> Batch:
    """Cut padding off the token views of a batch, all of a modality to the length of its longest text; see `Encoder.trim`.

    How many ids of each text have influence is noted in `Batch.token_counts`.

    What is cut is dense in memory: a view with gaps cannot be copied to a device while the host goes on.
    """
    views, counts = dict(batch.views), dict(batch.token_counts)
    for modality, encoder in encoders.items():
        assert isinstance(encoder, Encoder)
        names = batch.trimmable.get(modality, ())
        if encoder.token_counts is not None and names:
            counts[modality] = {name: tuple(encoder.token_counts(views[modality][name]).tolist()) for name in names}
        if encoder.trim is not None and names:
            longest = max(encoder.trim(views[modality][name]).shape[1] for name in names)
            cut = {name: views[modality][name][:, :longest].contiguous() for name in names}
            views[modality] = {**views[modality], **cut}
    return replace(batch, views=views, token_counts=counts)
