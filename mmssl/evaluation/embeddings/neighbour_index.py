"""Approximate nearest neighbours in large folders of embeddings: a graph (HNSW, Malkov and Yashunin, arXiv:1603.09320) by usearch.

Candidates come from the graph, cosines from the rows themselves. What an index misses is measured when it is built, on queries
that are not in it. It belongs to the array that it was built of, by its SHA-256.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.core.errors import DataError, os_words
from mmssl.evaluation.embeddings.search import EmbeddedFolder, Hit

K = 10
"""Neighbours of the recall that is measured."""
TILE = 16_384
"""Rows that are added, or multiplied with all queries, at once."""
MARGIN = 1e-6
"""Of a cosine: rows that are as near as the K-th nearest count as found."""


@dataclass(frozen=True)
class GraphSettings:
    """Settings of a graph.

    Attributes:
        connectivity: M of the paper: edges of a node in each layer.
        expansion_add: candidates that are looked at to insert a row (efConstruction).
        expansion_search: candidates that are looked at for a query (ef): more find more, and take longer.
        queries: largest number of held-out queries.
        threads: that insert rows; 0: all cores. With 1 the same rows give the same bytes.
    """

    connectivity: int = 16
    expansion_add: int = 128
    expansion_search: int = 64
    queries: int = 1000
    threads: int = 0


@dataclass(frozen=True)
class NeighbourIndex:
    """An index of the rows of one modality; see `build_index` and `open_index`.

    Attributes:
        graph: of usearch.
        rows: [n, E], memory-mapped. owners: [n] sample of each row.
        description: what stands in the file beside it.
    """

    graph: Any
    rows: np.ndarray
    owners: np.ndarray
    description: Mapping[str, Any]

    def search(self, query: np.ndarray, top: int) -> list[Hit]:
        """The `top` samples that are found near a unit-norm query [E], best first, with exact cosines.

        A sample with several items counts once. See `EmbeddedFolder.search` for the exact ones.
        """
        count = _candidates(top)
        while True:
            best: dict[int, Hit] = {}
            for row, score in self._near(query, count):
                best.setdefault(int(self.owners[row]), Hit(int(self.owners[row]), row, score))
            if len(best) >= top or count >= len(self.rows):
                return list(best.values())[:top]
            count *= 4  # the candidates were items of few samples

    def _near(self, query: np.ndarray, count: int) -> list[tuple[int, float]]:
        """Rows and exact cosines of up to `count` candidates, best first."""
        found = self.graph.search(query.astype(np.float32), min(count, len(self.rows)), threads=1)
        rows = np.sort(found.keys.astype(np.int64))
        scores = _products(self.rows[rows], query)
        return [(int(rows[i]), float(scores[i])) for i in np.argsort(-scores, kind="stable")]

    def recall(self, queries: np.ndarray, least: np.ndarray) -> float:
        """Mean share of the K nearest rows that are found.

        Args:
            queries: [Q, E].
            least: [Q] cosine of the K-th nearest row of each, by exact search.
        """
        shares = []
        for query, bound in zip(queries, least, strict=True):
            found = self._near(query, _candidates(K))[:K]
            shares.append(sum(score >= bound - MARGIN for _, score in found) / K)
        return float(np.mean(shares))


def build_index(
    embedded: EmbeddedFolder,
    modality: str,
    settings: GraphSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Build the index of a modality, measure it, and write `<modality>.index.usearch` and its description, `<modality>.index.json`.

    Recall@10 beside exact search is measured on rows that are held out, and inserted afterwards; and on rows of each other
    modality, which are farther from all that is in the index.

    Args:
        embedded: the folder.
        modality: whose rows.
        settings: of the graph.
        progress: called with (rows inserted, all of them).

    Returns:
        The description.

    Raises:
        DataError: usearch is not installed, the rows are missing, or the files cannot be written.
    """
    settings = settings or GraphSettings()
    rows, owners = embedded.rows(modality)
    graph = _make_graph(rows.shape[1], settings)
    count = min(settings.queries, len(rows) // 10)
    held = np.linspace(0, len(rows) - 1, count).astype(np.int64)
    rest = np.delete(np.arange(len(rows)), held)
    index, recall = NeighbourIndex(graph, rows, owners, {}), {}
    for start in range(0, len(rest), TILE):
        _insert(graph, rows, rest[start : start + TILE], settings.threads)
        if progress is not None:
            progress(min(start + TILE, len(rest)), len(rows))
    if count and len(rest) >= K:
        queries = rows[held].astype(np.float32)
        recall[f"{modality}, held out"] = {
            "recall": index.recall(queries, kth_best(rows, queries, held)),
            "queries": count,
        }
    _insert(graph, rows, held, settings.threads)
    for other in embedded.manifest["modalities"]:
        if other != modality and len(rows) >= K:
            others, _ = embedded.rows(other, rows.shape[1])
            places = np.linspace(0, len(others) - 1, min(settings.queries, len(others))).astype(np.int64)
            queries = others[places].astype(np.float32)
            recall[other] = {"recall": index.recall(queries, kth_best(rows, queries)), "queries": len(queries)}
    description = {
        "modality": modality,
        "rows": len(rows),
        "array": _array_of(embedded, modality),
        **asdict(settings),
        f"recall@{K}": recall,
    }
    _write(embedded.folder, modality, graph, description)
    return description


def open_index(embedded: EmbeddedFolder, modality: str) -> NeighbourIndex | None:
    """The index of a modality, memory-mapped; None: there is none.

    Raises:
        DataError: it is of other embeddings, or damaged, or usearch is not installed.
    """
    path, said = _paths(embedded.folder, modality)
    if not said.is_file():
        return None
    advice = f"build it again (`mmssl index {embedded.folder}`), or search without it (--exact)"
    try:
        description = json.loads(said.read_text(encoding="utf-8"))
        settings = GraphSettings(**{name: description[name] for name in asdict(GraphSettings())})
        fits = description["array"] == _array_of(embedded, modality)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{said}: cannot read the description of the index: {os_words(error)}; {advice}") from error
    if not fits:
        raise DataError(f"{path} is an index of other embeddings than those in the folder: {advice}")
    rows, owners = embedded.rows(modality)
    graph = _make_graph(rows.shape[1], settings)
    try:
        graph.view(str(path))
        if len(graph) != len(rows):
            raise ValueError(f"got {len(graph)} rows, wanted {len(rows)}")
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: cannot read the index: {os_words(error)}; {advice}") from error
    graph.expansion_search = settings.expansion_search
    return NeighbourIndex(graph, rows, owners, description)


def kth_best(rows: np.ndarray, queries: np.ndarray, without: np.ndarray | None = None) -> np.ndarray:
    """Cosine [Q] of the K-th nearest row of each query [Q, E], by exact search, tile by tile.

    Args:
        rows: [n, E] with n of at least K besides those left out.
        without: rows that are left out.
    """
    best = np.full((len(queries), K), -np.inf, np.float32)
    for start in range(0, len(rows), TILE):
        scores = queries @ rows[start : start + TILE].astype(np.float32).T
        if without is not None:
            scores[:, without[(without >= start) & (without < start + TILE)] - start] = -np.inf
        both = np.concatenate([best, scores], 1)
        best = np.partition(both, both.shape[1] - K, 1)[:, -K:]
    return np.asarray(best.min(1))


def _candidates(top: int) -> int:
    """Rows to take from the graph for `top` of them: cosines there are of float16."""
    return max(4 * top, 64)


def _products(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum("ne,e->n", rows.astype(np.float32), query.astype(np.float32)))


def _insert(graph: Any, rows: np.ndarray, numbers: np.ndarray, threads: int) -> None:
    if len(numbers):
        graph.add(numbers.astype(np.uint64), rows[numbers].astype(np.float32), threads=threads)


def _make_graph(width: int, settings: GraphSettings) -> Any:
    try:
        from usearch.index import Index
    except ImportError as error:
        raise DataError(
            "an index needs usearch: install mmssl with its extra `index`, or search without one (--exact)"
        ) from error
    return Index(
        ndim=width,
        metric="ip",
        dtype="f16",
        connectivity=settings.connectivity,
        expansion_add=settings.expansion_add,
        expansion_search=settings.expansion_search,
    )


def _array_of(embedded: EmbeddedFolder, modality: str) -> str:
    """SHA-256 of the array of a modality, as the manifest says."""
    digest = embedded.manifest.get("arrays", {}).get(f"{modality}.npy")
    if digest is None:
        raise DataError(f"{embedded.folder}: its manifest has no digest of {modality}.npy: embed again")
    return str(digest)


def _paths(folder: Path, modality: str) -> tuple[Path, Path]:
    return folder / f"{modality}.index.usearch", folder / f"{modality}.index.json"


def _write(folder: Path, modality: str, graph: Any, description: Mapping[str, Any]) -> None:
    """Write the graph, then its description: without it there is no index."""
    path, said = _paths(folder, modality)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        said.unlink(missing_ok=True)
        graph.save(str(temporary))
        os.replace(temporary, path)
        part = said.with_name(f".{said.name}.{os.getpid()}")
        part.write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        os.replace(part, said)
    except (OSError, RuntimeError) as error:
        why = os_words(error)
        raise DataError(f"cannot write {path}: {why}; free some space, and give the command again") from error
    finally:
        temporary.unlink(missing_ok=True)
