"""A batch of samples: tensors of views by modality and name, with keys, indices, presence masks and lengths."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, overload

from mmssl.core.sample import Fault

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Views = Mapping[str, "Tensor"]
Needs = Mapping[str, Mapping[str, int]]
"""Views that an objective or evaluator needs: modality -> kind of view -> how many. `{"m": {"crop": 2}}` gives crop0, crop1."""


def view_names(kind: str, count: int) -> list[str]:
    """Names of the views of one kind: crop0, crop1, and so on."""
    return [f"{kind}{number}" for number in range(count)]


def merge_needs(*many: Needs) -> dict[str, dict[str, int]]:
    """The smallest needs that cover all of the given ones: views of equal kind are shared, so counts take the maximum."""
    merged: dict[str, dict[str, int]] = {}
    for needs in many:
        for modality, kinds in needs.items():
            for kind, count in kinds.items():
                slot = merged.setdefault(modality, {})
                slot[kind] = max(slot.get(kind, 0), count)
    return merged


_ENCODER = json.JSONEncoder(separators=(",", ":"))


class Records(Sequence[Mapping[str, Any]]):
    """The random augmentation parameters drawn for each sample, one record a sample: JSON, sent between processes as text.

    A record is parsed each time it is read, so unread records cost almost nothing.

    Args:
        texts: of the records, from `text`.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._texts = tuple(texts)

    @staticmethod
    def text(record: Mapping[str, Any]) -> str:
        """A record as text.

        Raises:
            TypeError: it holds something other than numbers, strings, lists and dicts of them, such as an array.
        """
        return _ENCODER.encode(record)

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, place: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> Records: ...
    def __getitem__(self, place: int | slice) -> Mapping[str, Any] | Records:
        if isinstance(place, slice):
            return Records(self._texts[place])
        record: Mapping[str, Any] = json.loads(self._texts[place])
        return record

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Records) and self._texts == other._texts

    def __hash__(self) -> int:
        return hash(self._texts)


@dataclass(frozen=True)
class Batch:
    """Views of B samples. `batch["audio"]["crop0"]` is [B, ...]; sample i is row i of every view.

    Attributes:
        views: modality -> view name -> tensor [B, ...].
        index: [B] int64, dense number of the sample in its data set.
        keys: B sample keys, for people.
        present: modality -> [B] bool, only for modalities that some sample of the batch lacks.
        lengths: modality -> [B] int64, only for views padded in dimension 1: how many entries are real.
        trimmable: modality -> names of its views of padded token ids [B, T], the only ones that `Encoder.trim` may cut.
        token_counts: modality -> such a view -> for each sample how many leading ids have influence, where its encoder says so; the
            host knows them without a wait for the device.
        faults: samples of this batch that were replaced, with the reason.
        records: what was drawn for each sample: `records[i]["views"][modality][view]` holds the parameters of a view, enough to
            make it again; further entries are for the loader's internal use.
        notes: for each sample, short sentences that are counted and logged.
    """

    views: Mapping[str, Views]
    index: Tensor
    keys: tuple[str, ...] = ()
    present: Mapping[str, Tensor] = field(default_factory=dict)
    lengths: Mapping[str, Tensor] = field(default_factory=dict)
    trimmable: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    token_counts: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    records: Records = field(default_factory=Records)
    notes: tuple[tuple[str, ...], ...] = ()

    def __getitem__(self, modality: str) -> Views:
        return self.views[modality]

    def __len__(self) -> int:
        return len(self.index)

    def view(self, modality: str, name: str) -> Tensor:
        """A view [B, ...] of a modality, e.g. "crop0"; rows of samples that lack the modality are blank.

        Raises:
            ValueError: the batch lacks the view.
        """
        views = self.views.get(modality, {})
        if name not in views:
            raise ValueError(
                f"objective needs view {name!r} of {modality!r}, and the batch has {sorted(views) or 'no view of it'}; "
                "declare it in needs(): the views of a kind are numbered from 0"
            )
        return views[name]

    def parameters(self, modality: str, view: str) -> list[Mapping[str, Any] | None]:
        """The drawn parameters of a view, one mapping a sample; None: the sample lacks the modality.

        For logs and inspection. An objective that needs parameters declares a view of them, such as `crop.geometry` for the place
        of `crop` in its picture, and finds them on its device: `batch["image"]["crop.geometry0"]` is [B, 5].
        """
        return [record["views"].get(modality, {}).get(view) for record in self.records]

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Apply `function` to every tensor; used to move, pin and slice."""
        return replace(
            self,
            views={m: {name: function(x) for name, x in views.items()} for m, views in self.views.items()},
            index=function(self.index),
            present={m: function(x) for m, x in self.present.items()},
            lengths={m: function(x) for m, x in self.lengths.items()},
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch on `device`."""
        return self.map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in pinned (page-locked) memory (the DataLoader calls this by name)."""
        return self.map(lambda x: x.pin_memory())

    def rows(self, start: int, stop: int) -> Batch:
        """Samples start ... stop-1 as a separate batch. Faults without a row go with the first sample."""
        part = self.map(lambda x: x[start:stop])
        faults = tuple(
            fault if fault.row is None else replace(fault, row=fault.row - start)
            for fault in self.faults
            if start <= (fault.row or 0) < stop
        )
        of_rows = slice(start, stop)
        return replace(
            part,
            keys=self.keys[of_rows],
            token_counts={m: {name: n[of_rows] for name, n in views.items()} for m, views in self.token_counts.items()},
            faults=faults,
            records=self.records[of_rows],
            notes=self.notes[of_rows],
        )

    def chunks(self, size: int) -> Iterator[Batch]:
        """Consecutive batches of at most `size` samples; together they are this batch."""
        for start in range(0, len(self), size):
            yield self.rows(start, start + size)
