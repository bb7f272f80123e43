"""Partners of samples, for views that mix in another sample: each drawn by the identity of the sample and the name of the view."""

from __future__ import annotations

from mmssl.core.batch import Needs, view_names
from mmssl.core.sample import Partner, Partners, Sample
from mmssl.core.seeding import generator
from mmssl.data.draws import DrawKey, Parameters
from mmssl.data.samples import BadSample, Samples
from mmssl.data.synchronized.chain import Synchronized


def draw_partners(synchronized: Synchronized, samples: Samples, sample: Sample, needs: Needs, key: DrawKey) -> Partners:
    """Draw and load the partners of all views in `needs` that mix in another sample, any other one equally likely.

    Operations that are synchronized act on partners too. A partner that is unusable or lacks the modality is left out.

    Args:
        synchronized: loads partners.
        samples: index with the sample and its partners.
        sample: the loaded sample.
        needs: views that are made of it.
        key: of the sample's random draws.

    Raises:
        DataError: the shard of a partner cannot be read.
    """
    found: dict[str, dict[str, Partner]] = {}
    for name, view in _mixing(synchronized, sample, needs):
        if len(samples) > 1:
            own = (*key, name, view, "partner")
            drawn = int(generator(*own).integers(len(samples) - 1))
            number = drawn + (drawn >= sample.index)
            try:
                other = synchronized.load(samples, number, own)
            except BadSample:  # it counts as a fault only when it is drawn itself
                continue
            if name in other.values:
                found.setdefault(name, {})[view] = Partner(number, other.record, other.values[name])
    return found


def replay_partners(
    synchronized: Synchronized, samples: Samples, sample: Sample, needs: Needs, parameters: Parameters
) -> Partners:
    """Load the partners that recorded parameters of views name (`Batch.records`); see `draw_partners`."""
    found: dict[str, dict[str, Partner]] = {}
    for name, view in _mixing(synchronized, sample, needs):
        drawn = parameters[name][view]
        if "partner" in drawn:
            other = synchronized.replay(samples, drawn["partner"], drawn["partner_record"])
            found.setdefault(name, {})[view] = Partner(drawn["partner"], other.record, other.values[name])
    return found


def _mixing(synchronized: Synchronized, sample: Sample, needs: Needs) -> list[tuple[str, str]]:
    """Modality and name of each view that mixes in another sample."""
    return [
        (name, view)
        for name in sample.values
        for kind, count in needs[name].items()
        if synchronized.modalities[name].views[kind].partner
        for view in view_names(kind, count)
    ]
