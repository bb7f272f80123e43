"""A trained model, ready for use: encoders, heads, and how raw inputs become embeddings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core.encoder import EmbeddingModel, Encoder
from mmssl.core.errors import DataError, os_words
from mmssl.data.modalities.class_names import check_class_names
from mmssl.data.modality import DecodeError, Modality
from mmssl.evaluation.common import inference
from mmssl.evaluation.prompts import NAMED_TEMPLATES, build_classifier, check_templates, named_templates
from mmssl.recipe.calibrations import calibration_of, other_models, read_calibrations
from mmssl.recipe.digest import model_digest
from mmssl.recipe.recipe import Recipe

EncodeViews = Callable[[str, Tensor], Tensor]
"""(modality, views [n, ...]) -> rows [n, ...]."""
LONG = 1000
"""Inputs of one modality above which a terminal shows a progress bar."""


@dataclass(frozen=True)
class Classification:
    """Zero-shot classes of N inputs among K names.

    Attributes:
        names: the K class names.
        probabilities: [N, K], float32, on the CPU; each row sums to 1.
    """

    names: tuple[str, ...]
    probabilities: Tensor

    @property
    def labels(self) -> list[str]:
        """The most probable name of each input."""
        return [self.names[k] for k in self.probabilities.argmax(1).tolist()]


@dataclass(frozen=True)
class Nearest:
    """The nearest of M candidates of each of N queries.

    Attributes:
        indices: [N, K] int64, numbers of the candidates, the nearest first.
        cosines: [N, K] float32, in that order.
    """

    indices: Tensor
    cosines: Tensor


class Model:
    """A trained model: encoders, heads, and the decoders and evaluation views that go with them.

    An input is the path of a file, its bytes, or a value in Python, checked like a file: for pictures PIL, or an array or tensor
    [H, W, 3], in grey [H, W] (uint8, or floats in [0, 1]); for sounds an array or tensor [channels, samples] or [samples] (floats
    in [-1, 1], or int16) at the modality's rate, or a pair (array, rate in Hz); for videos a pair (frames [T, H, W, 3], frames a
    second), or a `mmssl.data.timeline.Clip`; for texts a string, which is one caption as it is. Channels are mixed as in files
    (`channels`).

    Attributes:
        recipe: recipe that trained it.
        checkpoint: folder it was loaded from; None if untrained.
        embedding: the encoders and heads, for evaluators.
        modalities: name -> decoder and views.
        logit_scales: pair of modalities -> trained logit scale of their cosines, 1 / temperature.
        logit_biases: pair of modalities -> trained number that is added to their logits; pairs of the sigmoid loss only.
    """

    def __init__(
        self,
        recipe: Recipe,
        checkpoint: Path | None,
        embedding: EmbeddingModel,
        logit_biases: Mapping[tuple[str, str], float] | None = None,
    ) -> None:
        self.recipe = recipe
        self.checkpoint = checkpoint
        self.embedding = embedding
        self.modalities: Mapping[str, Modality] = recipe.build_modalities()
        self.logit_scales = embedding.logit_scales
        self.logit_biases = dict(logit_biases or {})

    def __repr__(self) -> str:
        """The checkpoint, and of each encoder its kind, size and widths, one line a modality."""
        lines = [f"Model of {self.checkpoint or 'an untrained recipe'} on {self.embedding.device}"]
        for name, encoder in self.embedding.encoders.items():
            assert isinstance(encoder, Encoder)
            millions = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
            shared = (
                f"embeddings [E = {self._embedding_width(name)}]" if name in self.embedding.heads else "no embeddings"
            )
            lines.append(
                f"  {name}: {type(encoder).__name__}, {millions:.2f} M parameters, features [D = {encoder.width}], {shared}"
            )
        return "\n".join(lines)

    def digest(self) -> str:
        """SHA-256 of all that answers depend on: models with equal digests give equal embeddings, logits and probabilities."""
        return model_digest(self.recipe, self.embedding, self.logit_biases)

    def to(self, device: str | torch.device) -> Self:
        """Move encoders and heads to a device, in place."""
        self.embedding.to(device)
        return self

    def encode(self, *, batch_size: int = 64, progress: bool | None = None, **inputs: Any) -> dict[str, Tensor]:
        """Unit-norm embeddings of raw inputs in the shared space.

        Args:
            batch_size: number of inputs decoded and encoded at once.
            progress: show a progress bar; None: on a terminal, for more than `LONG` inputs.
            **inputs: modality -> list of inputs (or one), see `Model`; or a generator of them, which is read batch by batch.

        Returns:
            modality -> float32 [B, E] on the CPU.

        Raises:
            ValueError: unknown modality, no shared space, no input, or one that cannot be used (named by its position).
        """
        return self._encode_all(inputs, self.embedding.embed, batch_size, progress)

    def features(self, *, batch_size: int = 64, progress: bool | None = None, **inputs: Any) -> dict[str, Tensor]:
        """Pooled features of the encoders, before any head: modality -> float32 [B, D] on the CPU. Otherwise as `encode`."""
        return self._encode_all(inputs, self.embedding.features, batch_size, progress)

    def similarity(self, *embeddings: Tensor, batch_size: int = 64, **inputs: Any) -> Tensor:
        """Cosines [N, M] between two sides: inputs of a modality (see `encode`), or precomputed embeddings of any norm.

        `model.similarity(image=pictures, text=captions)`, `model.similarity(known, text=["a cat"])`, `model.similarity(a, b)`.

        Args:
            *embeddings: tensors [N, E].
            batch_size: number of inputs encoded at once.
            **inputs: modality -> list of inputs (or one). Rows are the first side, embeddings before inputs.

        Raises:
            ValueError: not exactly two sides, or embeddings of different widths.
        """
        a, b = self._sides(embeddings, batch_size, inputs)
        return a @ b.T

    def nearest(self, *embeddings: Tensor, top: int = 1, batch_size: int = 64, **inputs: Any) -> Nearest:
        """The nearest candidates of each query, by cosine: `model.nearest(text=queries, image=pictures, top=5)`.

        Args:
            *embeddings, batch_size, **inputs: as in `similarity`; queries are the first side, candidates the second.
            top: K, number of candidates of each query.

        Raises:
            ValueError: as in `similarity`, or `top` is not from 1 to the number of candidates.
        """
        a, b = self._sides(embeddings, batch_size, inputs)
        if not isinstance(top, int) or not 1 <= top <= len(b):
            raise ValueError(f"top: got {top!r}, wanted a whole number from 1 to {len(b)}, the number of candidates")
        best = [(rows @ b.T).topk(top) for rows in a.split(LONG)]  # not all N x M at once
        return Nearest(torch.cat([found.indices for found in best]), torch.cat([found.values for found in best]))

    def _sides(self, embeddings: tuple[Tensor, ...], batch_size: int, inputs: Mapping[str, Any]) -> list[Tensor]:
        """Unit-norm rows [N, E] and [M, E] of two sides: embeddings before inputs."""
        if len(embeddings) + len(inputs) != 2:
            raise ValueError(
                f"got {len(embeddings) + len(inputs)} sides to compare, wanted two: modality=inputs, or embeddings [N, E]"
            )
        for side in embeddings:
            if not isinstance(side, Tensor):
                raise ValueError(f"got a {type(side).__name__} to compare, wanted a tensor [N, E], or modality=inputs")
        encoded = self.encode(batch_size=batch_size, **inputs).values() if inputs else ()
        a, b = (F.normalize(side.float().cpu(), dim=-1) for side in (*embeddings, *encoded))
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
            raise ValueError(f"got embeddings {list(a.shape)} and {list(b.shape)}, wanted [N, E] and [M, E]")
        return [a, b]

    def match(self, *, prior: float | None = None, batch_size: int = 64, **inputs: Any) -> Tensor:
        """Probabilities [N, M] that inputs of two modalities match, by the calibration of `mmssl evaluate --calibrate`.

        `model.match(image=pictures, text=captions)`

        Args:
            prior: share of matches among the pairs that are asked about; None: that of the fit, 0.5 unless it was told otherwise.
            batch_size: number of inputs encoded at once.
            **inputs: modality -> list of inputs (or one). Rows are the first side.

        Raises:
            ValueError: not exactly two modalities; no calibration of these weights; a prior that is no share; see `encode`.
        """
        if prior is not None and not 0 < prior < 1:
            raise ValueError(f"prior: got {prior}, wanted a share between 0 and 1")
        for name in inputs:
            self.embedding.require(name, shared_space=True)
        fitted = read_calibrations(self.checkpoint, self.digest()) if self.checkpoint is not None else {}
        found = calibration_of(fitted, inputs)
        if found is None:
            raise ValueError(
                f"no calibration of {' and '.join(inputs) or 'nothing'} for these weights; it has "
                f"{', '.join(map(str, fitted)) or 'none'}{other_models(self.checkpoint, self.digest())}: run "
                "`mmssl evaluate RUN --calibrate SHARDS --pair A,B` first"
            )
        probabilities: Tensor = found(self.similarity(batch_size=batch_size, **inputs), prior)
        return probabilities

    def classify(
        self,
        inputs: Any,
        names: Sequence[str],
        *,
        templates: Sequence[str] | str = "simple",
        modality: str | None = None,
        prompts: str = "text",
        batch_size: int = 64,
        progress: bool | None = None,
    ) -> Classification:
        """Zero-shot classification: softmax of cosines to prompts, at the model's trained temperature.

        Args:
            inputs: list of inputs (or one) of the modality.
            names: K different class names.
            templates: sentences with `{}` where the class name goes; or "simple", "plain" or "openai".
            modality: of the inputs; None: the one that is paired with `prompts`, if there is only one.
            prompts: modality of the sentences.
            batch_size: number of inputs encoded at once.
            progress: as in `encode`.

        Raises:
            ValueError: names or templates that cannot be used; modalities without a temperature; inputs as in `encode`.
        """
        if isinstance(names, str):
            raise ValueError(f"names: got the text {names!r}, wanted a list of class names")
        names = tuple(names)
        modality, scale = self._paired(modality, prompts)
        language = [name for name in self.embedding.encoders if self.modalities[name].language]
        if prompts not in language:
            raise ValueError(
                f"prompts: got {prompts!r}, wanted a modality of sentences: {', '.join(language) or 'it has none'}"
            )
        lines = named_templates(templates) if isinstance(templates, str) else tuple(templates)
        if isinstance(templates, str) and not lines:
            raise ValueError(f"templates: got {templates!r}, wanted sentences with {{}}, or one of {NAMED_TEMPLATES}")
        check_class_names(names, [f"names[{i}]" for i in range(len(names))])
        check_templates(lines, [f"templates[{i}]" for i in range(len(lines))])
        embed = self.embedding.embed
        rows = self._encode(modality, inputs, embed, batch_size, progress)
        classes = build_classifier(
            lambda some: self._encode(prompts, list(some), embed, len(some), False), names, lines
        )
        return Classification(names, (scale * rows @ classes.T).softmax(1))

    def _paired(self, modality: str | None, prompts: str) -> tuple[str, float]:
        """The modality compared with prompts, and the logit scale of the pair."""
        scales = {b if a == prompts else a: scale for (a, b), scale in self.logit_scales.items() if prompts in (a, b)}
        if modality is None and len(scales) == 1:
            modality = next(iter(scales))
        if modality not in scales:
            raise ValueError(
                f"modality: got {modality!r}, wanted one trained to match {prompts!r}: "
                f"{', '.join(scales) or 'there is none'}"
            )
        return modality, scales[modality]

    def _encode_all(
        self, inputs: Mapping[str, Any], function: EncodeViews, batch_size: int, progress: bool | None
    ) -> dict[str, Tensor]:
        if not inputs:
            raise ValueError(f"got no inputs, wanted modality=inputs, one of {', '.join(self.embedding.encoders)}")
        return {name: self._encode(name, values, function, batch_size, progress) for name, values in inputs.items()}

    def _encode(self, name: str, values: Any, function: EncodeViews, batch_size: int, progress: bool | None) -> Tensor:
        if name not in self.embedding.encoders:
            raise ValueError(f"no encoder for {name!r}; this model has {', '.join(self.embedding.encoders)}")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size!r}, wanted a whole number from 1")
        items = values if isinstance(values, list | tuple | Iterator) and not _is_pair(values) else [values]
        total = None if isinstance(items, Iterator) else len(items)
        shown = sys.stderr.isatty() and (total is None or total > LONG) if progress is None else progress
        inputs = enumerate(_tracked(items, total, name) if shown else items)
        parts = []
        with inference(self.embedding):
            while batch := list(islice(inputs, batch_size)):
                views = [self.view(name, item, i) for i, item in batch]
                parts.append(function(name, torch.stack(views)).cpu())
        if not parts:
            kind = "generator" if total is None else "list"
            raise ValueError(f"{name}: got an empty {kind}, wanted one input or more")
        return torch.cat(parts)

    def view(self, name: str, item: Any, position: int = 0) -> Tensor:
        """The view "eval" of one input, as `encode` takes it; `position` is named in errors. Raises ValueError as `encode`."""
        modality = self.modalities[name]
        try:
            value = modality.from_input(item)
        except (DecodeError, DataError, OSError) as error:
            raise ValueError(f"{name} input {position}: {os_words(error, path=True)}") from error
        view = modality.view("eval")
        x = view(value, {})
        return x[0] if view.ragged else x

    def _embedding_width(self, name: str) -> int:
        encoder, head = self.embedding.encoders[name], self.embedding.heads[name]
        assert isinstance(encoder, Encoder)
        with torch.no_grad():
            width: int = head(torch.zeros(1, encoder.width, device=self.embedding.device)).shape[1]
        return width


def _is_pair(values: Any) -> bool:
    """Whether it is one input with its rate, as of sounds and videos, not a list of inputs: no input is a number."""
    return isinstance(values, tuple) and len(values) == 2 and isinstance(values[1], Real)


def _tracked(items: Iterable[Any], total: int | None, name: str) -> Iterable[Any]:
    """The inputs, with a progress bar on standard error; `total` is None where their number is unknown."""
    from rich.console import Console
    from rich.progress import track

    title = f"{name} inputs" if total is None else f"{name}, {total:,} inputs"
    return track(items, title, total=total, console=Console(stderr=True))
