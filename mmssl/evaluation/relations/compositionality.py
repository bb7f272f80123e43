"""Compositionality: does a model prefer a true caption to one with a word swapped, replaced or added (ARO, SugarCrepe)?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mmssl.core.errors import RecipeError
from mmssl.core.evaluator import Score, Table
from mmssl.core.seeding import generator
from mmssl.data.modalities.captions.captions import Captions
from mmssl.data.modalities.views.hard_negatives import Falsehood, false_caption
from mmssl.data.modality import Modality
from mmssl.data.samples import EncodedSample
from mmssl.evaluation.common import require_modalities
from mmssl.evaluation.ranking import choice_accuracy
from mmssl.evaluation.relations.base import ANCHOR, KIND, Embedded, Pieces, RelationConfig, RelationEvaluator
from mmssl.evaluation.statistics import share_by_cluster
from mmssl.evaluation.texts import shorten_text

REPLACED: tuple[Falsehood, ...] = ("side", "order", "number", "attribute")
"""Falsehoods that replace a word by another of its kind."""


class CompositionalityConfig(RelationConfig):
    """Settings of the choice between a true caption and false ones that differ by a word or by its place.

    Attributes:
        pair: the modality that captions describe, and the captions; e.g. [image, text]. Samples without a caption that can be made
            false are excluded.
        falsehoods: ways to make a caption false, each once: "swap" exchanges two attributes or numbers of different things; "side",
            "order", "number" and "attribute" replace a word by another of its kind; "add" adds a colour to one that is named;
            "given" takes a false caption of the data (`modalities.text.negatives`).
        resamples: number of bootstrap draws (over samples) for the intervals.
        seed: seed of the false captions, which depend on it and on the true caption alone, and of the bootstrap.
    """

    kind: Literal["compositionality"] = "compositionality"
    falsehoods: tuple[Falsehood, ...] = Field(default=("swap", *REPLACED, "add"), min_length=1)
    resamples: int = Field(default=2000, ge=100)
    seed: int = 0

    def build(self, modalities: Mapping[str, Modality]) -> Compositionality:
        require_modalities(modalities, self.pair)
        anchor, captions = self.pair
        if not modalities[captions].language or modalities[anchor].language:
            raise RecipeError(
                f"pair: got {list(self.pair)} for kind compositionality, wanted the captions second, and what they describe first"
            )
        return Compositionality(self, modalities)


class Compositionality(RelationEvaluator):
    """Share of choices between a true and a false caption that are right (Yuksekgonul et al. 2023, arXiv:2210.01936).

    A caption of a sample is compared with one false version of each falsehood that it allows; a tie counts 1/2, and chance is 0.5.

    Scores: acc (of all choices), and of each kind acc_swap, acc_replace (all that replace a word; also acc_side, acc_order,
    acc_number, acc_attribute), acc_add, acc_given (arXiv:2306.14610 has these names), None without a choice; each with _n
    (choices), _chance and an interval by bootstrap over samples; tie_rate; n (samples).
    Table "samples": one row a choice.
    """

    headlines = ("acc", "acc_swap", "acc_replace", "acc_add", "acc_given")

    def __init__(self, config: CompositionalityConfig, modalities: Mapping[str, Modality]) -> None:
        captions = config.pair[1]
        remedy = f"the words that differ are cut off (`context_length` of {captions!r}), or the encoder has collapsed"
        super().__init__(config, modalities, remedy)
        self.falsehoods, self.resamples, self.seed = config.falsehoods, config.resamples, config.seed

    def pieces(self, sample: EncodedSample) -> Pieces | None:
        values = sample.decode().values
        anchor, captions = self.config.pair
        found = self._choices(values[captions])
        if not found:
            return None
        true, false, kinds = zip(*found, strict=True)
        return {
            ANCHOR: self._views(anchor, values[anchor])[:1],
            "true": self._views(captions, Captions(true)),
            "false": self._views(captions, Captions(false)),
            KIND: torch.tensor(kinds),
        }

    def _choices(self, captions: Captions) -> list[tuple[str, str, int]]:
        """A true caption, a false one, and the number of its falsehood, of each choice of a sample."""
        found = []
        for caption in captions:
            for kind, falsehood in enumerate(self.falsehoods):
                rng = generator(self.seed, "compositionality", caption, falsehood)
                made = false_caption(falsehood, caption, captions.negatives, rng)
                if made is not None and made != caption:
                    found.append((caption, made, kind))
        return found

    def _texts(self, owner: Sequence[int]) -> dict[str, list[str]]:
        """The true and the false caption of each choice."""
        choices_of = [self._choices(value) for value in self._again(owner)]
        true, false, _ = zip(*(one for some in choices_of for one in some), strict=True)
        return {"text": [*map(shorten_text, true)], "other_text": [*map(shorten_text, false)]}

    def scores(self, embedded: Embedded) -> dict[str, Score]:
        earned, tied = choice_accuracy(embedded.near("true", "false"))
        of, owner = embedded.rows[KIND], embedded.owner
        self.tables = {"samples": self._table(embedded, earned)}
        scores: dict[str, Score] = self._mean("acc", earned, owner)
        groups: dict[str, Sequence[str]] = {"replace": [one for one in self.falsehoods if one in REPLACED]}
        groups |= {falsehood: (falsehood,) for falsehood in self.falsehoods}
        for name, members in groups.items():
            if members:
                numbers = torch.tensor([self.falsehoods.index(one) for one in members], device=of.device)
                inside = torch.isin(of, numbers)
                scores |= self._mean(f"acc_{name}", earned[inside], owner[inside])
        samples = len(torch.unique(owner))
        return scores | {"tie_rate": int(tied.sum()) / len(tied), "n": samples, "bootstrap_seed": self.seed}

    def _mean(self, name: str, earned: Tensor, owner: Tensor) -> dict[str, Score]:
        if not len(earned):
            return {name: None, f"{name}_n": 0}
        mean, low, high = share_by_cluster(earned, owner, resamples=self.resamples, seed=self.seed)
        around = {f"{name}_ci95_low": low, f"{name}_ci95_high": high, f"{name}_chance": 0.5}
        return {name: mean, **around, f"{name}_n": len(earned)}

    def _table(self, embedded: Embedded, earned: Tensor) -> Table:
        columns: dict[str, Sequence[Score]] = {
            "key": [embedded.keys[number] for number in embedded.owner.tolist()],
            "class": [self.falsehoods[kind] for kind in embedded.rows[KIND].tolist()],
            "acc": earned.tolist(),
        }
        return Table(columns, ("acc",), texts=partial(self._texts, embedded.owner.tolist()))
