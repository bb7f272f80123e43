"""Word order: does a model prefer a caption to the same words in another order (ARO's COCO-Order and Flickr30k-Order)?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

from pydantic import Field
from torch import Tensor

from mmssl.core.errors import RecipeError
from mmssl.core.evaluator import Score, Table
from mmssl.core.seeding import generator
from mmssl.data.modalities.captions.captions import Captions
from mmssl.data.modalities.captions.shuffle import SHUFFLES, shuffle_words
from mmssl.data.modality import Modality
from mmssl.data.samples import EncodedSample
from mmssl.evaluation.common import require_modalities
from mmssl.evaluation.ranking import choice_accuracy
from mmssl.evaluation.relations.base import ANCHOR, Embedded, Pieces, RelationConfig, RelationEvaluator
from mmssl.evaluation.statistics import share_by_cluster
from mmssl.evaluation.texts import shorten_text

_TRIALS = 10
"""Draws of a shuffle until it differs from the caption."""


class WordOrderConfig(RelationConfig):
    """Settings of the choice between a caption and four orders of its words.

    Attributes:
        pair: the modality that captions describe, and the captions; e.g. [image, text]. Captions that some shuffle leaves as they
            are, because they are too short, are left out; samples without another one are excluded.
        resamples: number of bootstrap draws (over samples) for the intervals.
        seed: seed of the orders, which depend on it and on the caption alone, and of the bootstrap.
    """

    kind: Literal["word_order"] = "word_order"
    resamples: int = Field(default=2000, ge=100)
    seed: int = 0

    def build(self, modalities: Mapping[str, Modality]) -> WordOrder:
        require_modalities(modalities, self.pair)
        anchor, captions = self.pair
        if not modalities[captions].language or modalities[anchor].language:
            raise RecipeError(
                f"pair: got {list(self.pair)} for kind word_order, wanted the captions second, and what they describe first"
            )
        return WordOrder(self, modalities)


class WordOrder(RelationEvaluator):
    """Share of captions that lie nearer to their sample than all four orders of their words (Yuksekgonul et al. 2023, section 2.2).

    The orders are those of `shuffle_words`. ARO finds nouns and adjectives by a tagger, here a rule does (`names_something`); so
    scores of "things" and "grammar", and of all, are near the published ones, not equal to them.

    Scores: acc (of five captions; chance 0.2), and acc_<shuffle> (against that order alone; chance 0.5), with intervals by
    bootstrap over samples; equal ones count as chance; tie_rate; n_captions, n (samples).
    Table "samples": one row a caption.
    """

    headlines = ("acc", *(f"acc_{shuffle}" for shuffle in SHUFFLES))

    def __init__(self, config: WordOrderConfig, modalities: Mapping[str, Modality]) -> None:
        captions = config.pair[1]
        remedy = f"the encoder of {captions!r} knows no places of words, or it has collapsed"
        super().__init__(config, modalities, remedy)
        self.resamples, self.seed = config.resamples, config.seed

    def pieces(self, sample: EncodedSample) -> Pieces | None:
        values = sample.decode().values
        anchor, captions = self.config.pair
        found = self._all_orders(values[captions])
        if not found:
            return None
        views = {
            name: self._views(captions, Captions([orders[name] for orders in found])) for name in ("true", *SHUFFLES)
        }
        return {ANCHOR: self._views(anchor, values[anchor])[:1], **views}

    def _all_orders(self, captions: Captions) -> list[dict[str, str]]:
        """The orders of each caption of a sample that has some."""
        return [orders for caption in captions if (orders := self._orders(caption)) is not None]

    def _texts(self, owner: Sequence[int]) -> dict[str, list[str]]:
        """Each caption, and its orders."""
        found = [orders for value in self._again(owner) for orders in self._all_orders(value)]
        columns = {name: [shorten_text(orders[name]) for orders in found] for name in ("true", *SHUFFLES)}
        return {"text" if name == "true" else f"text_{name}": column for name, column in columns.items()}

    def _orders(self, caption: str) -> dict[str, str] | None:
        """The caption and its orders; None: a shuffle leaves it as it is."""
        made = {"true": " ".join(caption.split())}
        for shuffle in SHUFFLES:
            rng = generator(self.seed, "word_order", caption, shuffle)
            drawn = (shuffle_words(shuffle, caption, rng) for _ in range(_TRIALS))
            other = next((one for one in drawn if one != made["true"]), None)
            if other is None:
                return None
            made[shuffle] = other
        return made

    def scores(self, embedded: Embedded) -> dict[str, Score]:
        earned, tied = choice_accuracy(embedded.near("true", *SHUFFLES))
        columns: dict[str, Tensor] = {"acc": earned}
        columns |= {f"acc_{shuffle}": choice_accuracy(embedded.near("true", shuffle))[0] for shuffle in SHUFFLES}
        scores: dict[str, Score] = {}
        for name, column in columns.items():
            mean, low, high = share_by_cluster(column, embedded.owner, resamples=self.resamples, seed=self.seed)
            around = {f"{name}_ci95_low": low, f"{name}_ci95_high": high}
            scores |= {name: mean, **around, f"{name}_chance": 1 / (1 + len(SHUFFLES)) if name == "acc" else 0.5}
        rows: dict[str, Sequence[Score]] = {"key": [embedded.keys[number] for number in embedded.owner.tolist()]}
        rows |= {name: column.tolist() for name, column in columns.items()}
        texts = partial(self._texts, embedded.owner.tolist())
        self.tables = {"samples": Table(rows, tuple(columns), texts=texts)}
        counts = {"n_captions": len(earned), "n": len(set(embedded.owner.tolist())), "bootstrap_seed": self.seed}
        return scores | {"tie_rate": int(tied.sum()) / len(tied)} | counts
