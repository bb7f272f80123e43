"""Prefetch training batches to the device: the next one is copied while a step runs."""

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
from mmssl.training.steps.state import Stream


class DeviceStream:
    """A stream that trims batches (see `Encoder.trim`) and moves them to the device, one ahead on CUDA.

    All token views of a modality keep one length, that of the longest text, so that they can be encoded in one call.
    On CUDA one batch is fetched ahead and copied in a separate CUDA stream: a copy shorter than a step costs no time. Pixels are
    copied as uint8. The position counts batches that were handed out, and an error of the batch ahead is raised when that batch is
    requested. On the CPU nothing is copied or fetched ahead.

    Args:
        stream: where batches come from.
        learner: its encoders trim the views.
        device: where batches go.
        ahead: whether to fetch one batch ahead; None: on CUDA only.
    """

    def __init__(self, stream: Stream, learner: Learner, device: torch.device, ahead: bool | None = None) -> None:
        self._stream, self._device = stream, device
        self._encoders = dict(learner.encoders.items())
        self._ahead = device.type == "cuda" if ahead is None else ahead
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._position: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._stream)
        if not self._ahead:
            yield from map(self._move, batches)
            return
        following, position, error = self._take(batches)
        while following is not None:
            batch, self._position = self._arrived(following), position
            following, position, error = self._take(batches)
            yield batch
        if error is not None:
            raise error

    def state_dict(self) -> dict[str, Any]:
        """See `Stream`."""
        return self._stream.state_dict() if self._position is None else self._position

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Stream`."""
        self._position = None
        self._stream.load_state_dict(state)

    def drawn(self) -> Mapping[str, Drawn]:
        """See `Stream`; includes a batch that was fetched ahead."""
        return self._stream.drawn()

    def close(self) -> None:
        """See `Stream`."""
        self._stream.close()

    def _take(self, batches: Iterator[Batch]) -> tuple[Batch | None, dict[str, Any] | None, Exception | None]:
        """Start copying the next batch; return it with the position after it, or None with the error that ended the stream."""
        if self._position is None:
            self._position = self._stream.state_dict()
        try:
            batch = next(batches, None)
        except Exception as error:  # raised when its batch is due
            return None, None, error
        if batch is None:
            return None, None, None
        with torch.cuda.stream(self._copies):
            return self._move(batch), self._stream.state_dict(), None

    def _move(self, batch: Batch) -> Batch:
        return trimmed(batch, self._encoders).to(self._device, non_blocking=True)

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


def trimmed(batch: Batch, encoders: Mapping[str, nn.Module]) -> Batch:
    """Cut padding off the token views of a batch, all of a modality to the length of its longest text; see `Encoder.trim`."""
    views = dict(batch.views)
    for modality, encoder in encoders.items():
        assert isinstance(encoder, Encoder)
        names = batch.trimmable.get(modality, ())
        if encoder.trim is not None and names:
            longest = max(encoder.trim(views[modality][name]).shape[1] for name in names)
            cut = {name: views[modality][name][:, :longest] for name in names}
            views[modality] = {**views[modality], **cut}
    return replace(batch, views=views)
