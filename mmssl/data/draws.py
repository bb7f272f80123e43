"""Views of a sample: their random parameters are drawn, then they are made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmssl.core.batch import Needs, view_names
from mmssl.core.sample import NO_PARTNERS, Partners, Sample
from mmssl.core.seeding import generator
from mmssl.data.modality import Modality, View

if TYPE_CHECKING:
    from torch import Tensor

Parameters = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Modality -> view name -> drawn parameters of that view."""
DrawKey = tuple[int | str, ...]


def draw_views(
    sample: Sample, modalities: Mapping[str, Modality], needs: Needs, key: DrawKey, partners: Partners = NO_PARTNERS
) -> Parameters:
    """Draw the parameters of all views in `needs`, for the modalities that the sample has.

    Args:
        key: key of the random draws, such as (seed, epoch, source, shard, number); each view adds its modality and name, or the
            name of the view that it draws as.
        partners: of views that mix in another sample.
    """
    return {
        name: {
            one: view.draw(_value(view, value, partners, name, one), generator(*key, name, seed))
            for kind, count in needs[name].items()
            for view in [modalities[name].views[kind]]
            for one, seed in zip(view_names(kind, count), view_names(view.draws_as or kind, count), strict=True)
        }
        for name, value in sample.values.items()
    }


def make_views(
    sample: Sample,
    modalities: Mapping[str, Modality],
    needs: Needs,
    parameters: Parameters,
    partners: Partners = NO_PARTNERS,
) -> dict[str, dict[str, Tensor]]:
    """Make all views in `needs`, for the modalities that the sample has: modality -> view name -> tensor.

    Args:
        parameters: from `draw_views`, or from a record in `Batch.records`: equal parameters give bit-equal views.
        partners: as given to `draw_views`, or loaded again.
    """
    return {
        name: {
            one: view(_value(view, value, partners, name, one), parameters[name][one])
            for kind, count in needs[name].items()
            for view in [modalities[name].views[kind]]
            for one in view_names(kind, count)
        }
        for name, value in sample.values.items()
    }


def _value(view: View, value: Any, partners: Partners, modality: str, name: str) -> Any:
    return (value, partners.get(modality, {}).get(name)) if view.partner else value
