"""What a server does, without HTTP: inputs to views, views to embeddings in batches, embeddings to samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.core.errors import NumericError
from mmssl.evaluation.common import inference
from mmssl.evaluation.embeddings.search import EmbeddedFolder, Hit
from mmssl.recipe.model import Model
from mmssl.serving.batcher import Batcher
from mmssl.serving.limits import Limits, Refusal
from mmssl.serving.metrics import Metrics

Search = Callable[[np.ndarray, int], list[Hit]]
"""(query [E], top) -> hits of one modality."""
ShowFound = Callable[[str, int, int], Mapping[str, str]]
"""(modality, sample, number of its item) -> "text", and "picture" or "sound" as data URIs, of those that it has."""


class Service:
    """A model and the folder that it embedded.

    Args:
        model: embeds queries.
        embedded: the folder.
        searches: modality of the folder -> its search.
        show: shows a sample of the folder; None: answers have keys only.
        limits: of requests.

    Attributes:
        queries: modalities of queries -> whether they are sentences.
        extensions: modality -> extensions of its files.
        metrics: what is counted.
    """

    def __init__(
        self,
        model: Model,
        embedded: EmbeddedFolder,
        searches: Mapping[str, Search],
        show: ShowFound | None,
        limits: Limits | None = None,
    ) -> None:
        self._model, self._embedded, self._searches, self._show = model, embedded, dict(searches), show
        self.limits, self.metrics = limits or Limits(), Metrics()
        self.queries = {name: model.modalities[name].language for name in model.embedding.heads}
        self.extensions = {name: model.modalities[name].extensions for name in self.queries}
        self.batcher = Batcher(self._embed, self.limits.batch)

    @property
    def targets(self) -> tuple[str, ...]:
        """Modalities that can be searched."""
        return tuple(self._searches)

    def describe(self) -> dict[str, Any]:
        """What can be asked, as plain data; nothing of this machine."""
        rows = self._embedded.manifest["rows"]
        return {
            "queries": list(self.queries),
            "searched": {name: rows[name] for name in self.targets},
            "samples": self._embedded.manifest.get("samples"),
            "shows_samples": self._show is not None,
            "limits": asdict(self.limits),
        }

    def view(self, modality: str, data: bytes | str) -> Tensor:
        """The view of an input: the bytes of a file, or a sentence.

        Raises:
            Refusal: 413, it is too long; 422, it cannot be decoded.
        """
        size = len(data.encode()) if isinstance(data, str) else len(data)
        text = self.queries[modality]
        most = self.limits.text_bytes if text else self.limits.file_bytes
        if size > most:
            raise Refusal(413, f"got {size:,} bytes of {modality}, wanted at most {most:,}: send less")
        try:
            value = data.decode() if text and isinstance(data, bytes) else data
            return self._model.view(modality, value)
        except UnicodeDecodeError as error:
            raise Refusal(422, f"got {modality} that is not UTF-8: {error.reason} at byte {error.start}") from error
        except ValueError as error:
            wanted = "a sentence" if text else f"a file of {', '.join(self.extensions[modality])}"
            raise Refusal(
                422, f"got {modality} that cannot be used: {error.__cause__ or error}; send {wanted}"
            ) from error

    def embed(self, modality: str, views: Sequence[Tensor]) -> list[Future[np.ndarray]]:
        """The embedding [E] of each view, together with those of other requests."""
        return self.batcher.submit(modality, views)

    def search(self, row: np.ndarray, targets: Sequence[str], top: int, show: bool) -> dict[str, list[dict[str, Any]]]:
        """Modality -> found samples, best first: key, cosine, and with `show` a text, picture or sound.

        Raises:
            DataError: the rows or samples cannot be read.
        """
        return {name: self._found(name, self._searches[name](row, top), show) for name in targets}

    def close(self) -> None:
        """Finish what waits, and end the thread of forward passes."""
        self.batcher.close()

    def _found(self, name: str, hits: Sequence[Hit], show: bool) -> list[dict[str, Any]]:
        samples = [hit.sample for hit in hits]
        keys = self._embedded.keys(samples)
        found = [{"key": keys[hit.sample], "sample": hit.sample, "score": hit.score} for hit in hits]
        if not show or self._show is None:
            return found
        starts = self._embedded.first_rows(name, samples)
        return [
            {**one, **self._show(name, hit.sample, hit.row - start)}
            for one, hit, start in zip(found, hits, starts, strict=True)
        ]

    def _embed(self, modality: str, views: Sequence[Tensor]) -> list[np.ndarray | Exception]:
        began = time.monotonic()
        with inference(self._model.embedding):
            rows = self._model.embedding.embed(modality, torch.stack(list(views))).cpu().numpy()
        self.metrics.batches.observe(modality, len(views))
        self.metrics.forward.observe(modality, time.monotonic() - began)
        return [row if np.isfinite(row).all() and row.any() else NumericError("not finite") for row in rows]
