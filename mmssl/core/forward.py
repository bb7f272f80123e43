"""Forward passes of one training step: each network encodes each view once, whichever objectives read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from mmssl.core.batch import Batch
from mmssl.core.batch_norm import SyncBatchNorm
from mmssl.core.compat import BatchNorm, NormBase
from mmssl.core.encoder import Features

Network = Literal["student", "teacher"]


@dataclass(frozen=True)
class Request:
    """What is asked of a network: which tokens are dropped or replaced, and which outputs are read.

    Attributes:
        keep: [B, T_keep] positions that are encoded; None: all.
        mask: [B, T] bool of tokens that are replaced; None: none.
        value: [D] replacement of masked tokens.
        hidden: number of last blocks whose outputs are read.
        mlps: whether those of their mlps are read instead.
        pooled_only: whether only `Features.pooled` is read.
        lengths: B numbers of tokens that have influence, see `Encoder.token_counts`; None: unknown.
    """

    keep: Tensor | None = None
    mask: Tensor | None = None
    value: Tensor | None = None
    hidden: int = 0
    mlps: bool = False
    pooled_only: bool = True
    lengths: tuple[int, ...] | None = None

    @property
    def inputs(self) -> tuple[int, ...]:
        """Identity of everything that changes the forward pass."""
        return id(self.keep), id(self.mask), id(self.value)

    def covers(self, other: Request) -> bool:
        """Whether features of this request, of equal `inputs`, hold what `other` asks for."""
        same = not other.hidden or self.mlps == other.mlps
        return self.hidden >= other.hidden and same and self.pooled_only <= other.pooled_only


@dataclass
class _Done:
    """Features of a request, with the tensors whose identity is its key, so that no other tensor takes it over."""

    request: Request
    features: Features
    view: Tensor


@dataclass
class SharedForward:
    """Features of the views of one step, computed at first request and returned again at the next.

    Attributes:
        networks: network -> modality -> encoder.
        whole: modalities of which some objective reads tokens, so that one forward pass serves all.
        layers: network -> modality -> most hidden layers that some objective reads, for the same reason.
        optional: modalities that samples may lack.
    """

    networks: Mapping[Network, Mapping[str, nn.Module]]
    whole: frozenset[str] = frozenset()
    layers: Mapping[Network, Mapping[str, int]] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    _done: dict[tuple[object, ...], list[_Done]] = field(default_factory=dict)

    def features(
        self,
        batch: Batch,
        modality: str,
        views: Sequence[str],
        network: Network,
        requests: Sequence[Request],
        together: bool,
    ) -> list[Features]:
        """See `StepContext.features`."""
        encoder = self._network(network, modality)
        xs = [batch.view(modality, name) for name in views]
        present = self._present(batch, modality)
        read = [request.hidden for request in requests]
        counts = batch.token_counts.get(modality, {})
        requests = [
            replace(self._widened(network, modality, request), lengths=counts.get(name))
            for name, request in zip(views, requests, strict=True)
        ]
        repeats = _repeats(xs, requests)
        found: dict[int, Features] = {}
        for group in _groups(xs, requests, together):
            # Batch norm in training sees what is encoded together, so only an equal group gives the same features.
            among = tuple(id(xs[i]) for i in group) if _couples_samples(encoder) else ()
            keys = {
                i: (network, modality, id(xs[i]), *requests[i].inputs, torch.is_grad_enabled(), among) for i in group
            }
            for i in group:
                fitting = [d for d in self._done.get(keys[i], ()) if d.request.covers(requests[i])]
                if len(fitting) > repeats[i]:
                    found[i] = fitting[repeats[i]].features
            missing = [i for i in group if i not in found]
            if missing:
                rows = _encode(encoder, [xs[i] for i in missing], [requests[i] for i in missing], present)
                for i, features in zip(missing, rows, strict=True):
                    self._done.setdefault(keys[i], []).append(_Done(requests[i], features, xs[i]))
                    found[i] = features
        return [_last_hidden(found[i], read[i]) for i in range(len(views))]

    def _network(self, network: Network, modality: str) -> nn.Module:
        networks = self.networks[network]
        if modality not in networks:
            raise ValueError(
                f"got a request for the {network} of {modality!r}, and there are {network}s for {sorted(networks) or 'none'}; "
                "an objective names its teachers in teachers()"
            )
        return networks[modality]

    def _present(self, batch: Batch, modality: str) -> Tensor | None:
        """Mask [B] of the samples that have the modality; None: all do."""
        present = batch.present.get(modality)
        if present is not None and modality not in self.optional:
            raise ValueError(
                f"{int((~present).sum())} of {len(batch)} samples have no {modality!r}, and it is not optional; leave such samples "
                "out of the shards, or name it in data.optional"
            )
        return present

    def _widened(self, network: Network, modality: str, request: Request) -> Request:
        hidden = max(request.hidden, self.layers.get(network, {}).get(modality, 0))
        return replace(request, hidden=hidden, pooled_only=request.pooled_only and modality not in self.whole)


def _repeats(xs: Sequence[Tensor], requests: Sequence[Request]) -> list[int]:
    """How often each view was named before in this call: named twice, it is encoded twice, with other noise (SimCSE)."""
    asked = [(id(x), request.inputs) for x, request in zip(xs, requests, strict=True)]
    return [asked[:i].count(one) for i, one in enumerate(asked)]


def _groups(xs: Sequence[Tensor], requests: Sequence[Request], together: bool) -> list[list[int]]:
    """Numbers of the views that are encoded in one call: of equal shape and with equal kinds of requests; or each view alone."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, (x, r) in enumerate(zip(xs, requests, strict=True)):
        kept = None if r.keep is None else r.keep.shape[1]
        key = (x.shape[1:], x.dtype, kept, r.mask is None, id(r.value), r.hidden, r.mlps, r.pooled_only)
        groups.setdefault(key, []).append(number)
    return [*groups.values()] if together else [[number] for group in groups.values() for number in group]


def _couples_samples(encoder: nn.Module) -> bool:
    """Whether a layer normalises by the statistics of the batch."""
    return any(isinstance(layer, BatchNorm) and layer.training for layer in encoder.modules())


def _encode(
    encoder: nn.Module, xs: Sequence[Tensor], requests: Sequence[Request], present: Tensor | None
) -> list[Features]:
    """Encode views of one shape in one call; rows of absent samples are zeros, and are not encoded.

    If no sample is present, the first (blank) row is encoded anyway, with zero gradients: DDP waits for every parameter on every
    process, and FSDP and SyncBatchNorm for every process in every layer. Plain batch norm then uses its running statistics, which
    stay the same; SyncBatchNorm counts the blank row.
    """
    first = requests[0]
    if present is None:
        return _call(encoder, xs, requests, first)
    rows = present.nonzero()[:, 0]
    nobody = len(rows) == 0
    rows = rows.new_zeros(1) if nobody else rows
    some = [replace(r, keep=_rows(r.keep, rows), mask=_rows(r.mask, rows), lengths=None) for r in requests]
    with held_statistics(encoder, nobody):
        encoded = _call(encoder, [x[rows] for x in xs], some, first)
    return [_scattered(features, rows, present) for features in encoded]


def _rows(x: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if x is None else x[rows]


def _call(encoder: nn.Module, xs: Sequence[Tensor], requests: Sequence[Request], first: Request) -> list[Features]:
    asked: dict[str, object] = {"pooled_only": first.pooled_only}
    if first.keep is not None:
        asked["keep"] = torch.cat([r.keep for r in requests if r.keep is not None])
    if first.mask is not None:
        asked["replace"] = (torch.cat([r.mask for r in requests if r.mask is not None]), first.value)
    if first.hidden:
        asked["hidden"] = first.hidden
    if first.mlps:
        asked["mlps"] = True
    lengths = [r.lengths for r in requests if r.lengths is not None]
    if len(lengths) == len(requests):
        asked["lengths"] = [length for lengths_of_view in lengths for length in lengths_of_view]
    features: Features = encoder(xs[0] if len(xs) == 1 else torch.cat([*xs]), **asked)
    return _split(features, len(xs))


def _split(features: Features, count: int) -> list[Features]:
    """Features of `count` views, which were encoded one after the other, each alone."""
    if count == 1:
        return [features]
    pooled = features.pooled.chunk(count)
    tokens = [None] * count if features.tokens is None else features.tokens.chunk(count)
    hidden = (
        [None] * count if features.hidden is None else [*zip(*(x.chunk(count) for x in features.hidden), strict=True)]
    )
    embedded = [None] * count if features.embedded is None else features.embedded.chunk(count)
    parts = zip(pooled, tokens, hidden, embedded, strict=True)
    return [Features(p, t, features.grid, h, e) for p, t, h, e in parts]


def _last_hidden(features: Features, count: int) -> Features:
    if features.hidden is None or len(features.hidden) == count:
        return features
    return replace(features, hidden=features.hidden[-count:] if count else None)


def _scattered(features: Features, rows: Tensor, present: Tensor) -> Features:
    """Features of some rows as those of all samples, zeros where absent."""

    def scatter(x: Tensor) -> Tensor:
        everyone = x.new_zeros(len(present), *x.shape[1:]).index_copy(0, rows, x)
        return everyone.masked_fill(~present.view(-1, *[1] * (x.ndim - 1)), 0)

    return Features(
        scatter(features.pooled),
        None if features.tokens is None else scatter(features.tokens),
        features.grid,
        None if features.hidden is None else tuple(scatter(x) for x in features.hidden),
        None if features.embedded is None else scatter(features.embedded),
    )


@contextmanager
def held_statistics(encoder: nn.Module, hold: bool = True) -> Iterator[None]:
    """Put batch norm into evaluation mode, except SyncBatchNorm, for which other processes wait."""
    layers = [
        module
        for module in encoder.modules()
        if hold
        and isinstance(module, NormBase)
        and module.training
        and not isinstance(module, SyncBatchNorm | nn.SyncBatchNorm)
    ]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()
