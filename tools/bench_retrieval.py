"""Time and memory of retrieval scores in both directions: `python3 tools/run.py python tools/bench_retrieval.py --json FILE`.

50,000 texts, 10,000 images of five captions each, 512 dimensions, unless told otherwise. Ours gives the exact rank of the best
right candidate of each query, so every recall, and ties. Beside it stand the steps that CLIP_benchmark takes (all scores at once,
the best k of each query as one-hot rows over all candidates, compared with a dense matrix of right pairs, for each k), and, where
faiss is installed, two searches of its flat index for the 10 best. All take turns, and medians are compared; recalls must be equal.

A ratio is the peer's seconds over ours: above 1, ours is better.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.evaluation.ranking import pair_ranks

KS = (1, 5, 10)
BATCH = 64
"""Queries that the dense steps compare at a time."""


def main() -> None:
    """Read arguments, measure, print, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--captions", type=int, default=5, help="of each image")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: all threads together")
    parser.add_argument("--peers", default="dense,faiss", help="of dense and faiss; empty: ours alone")
    parser.add_argument("--json", type=Path, help="write the result here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(arguments)
    print(json.dumps(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of each, ratios, memory that ours added, and the largest difference of a recall."""
    generator = torch.Generator().manual_seed(0)
    owner = torch.arange(arguments.images).repeat_interleave(arguments.captions)
    image = F.normalize(torch.randn(arguments.images, arguments.width, generator=generator), dim=1)
    noise = torch.randn(len(owner), arguments.width, generator=generator)
    text = F.normalize(image[owner] + 4 * noise / arguments.width**0.5, dim=1)
    ways: dict[str, Callable[[Tensor, Tensor, Tensor], list[float]]] = {"ours": ours}
    peers = [name for name in arguments.peers.split(",") if name]
    if "dense" in peers:
        ways["dense"] = dense
    if "faiss" in peers and importlib.util.find_spec("faiss") is not None:
        ways["faiss"] = flat
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    recalls: dict[str, list[float]] = {}
    grown = 0.0
    for repeat in range(arguments.repeats):
        for name, way in ways.items():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            start = clock()
            recalls[name] = way(image, text, owner)
            seconds[name].append(clock() - start)
            if name == "ours" and repeat == 0:
                grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    found = {name: statistics.median(times) for name, times in seconds.items()}
    pairs = [(a, b) for name in ways for a, b in zip(recalls["ours"], recalls[name], strict=True)]
    return {
        "images": arguments.images,
        "texts": len(owner),
        "width": arguments.width,
        "threads": arguments.threads,
        "clock": arguments.clock,
        "seconds": {name: round(value, 3) for name, value in found.items()},
        "ratio": {name: round(found[name] / found["ours"], 2) for name in ways if name != "ours"},
        "ours_added_MiB": round(grown, 1),
        "all_scores_MiB": round(4 * len(owner) * arguments.images / 2**20, 1),
        "difference": max(abs(a - b) for a, b in pairs),
    }


def ours(image: Tensor, text: Tensor, owner: Tensor) -> list[float]:
    """Recalls at 1, 5, 10 of images to texts and of texts to images."""
    numbers = torch.arange(len(image))
    both = pair_ranks(image, numbers, text, owner, depth=1)
    return [float((ranks.ranks[:, 0] <= k).double().mean()) for ranks in both for k in KS]


def dense(image: Tensor, text: Tensor, owner: Tensor) -> list[float]:
    """The same from all scores at once and one-hot rows."""
    scores = text @ image.T
    right = owner[:, None] == torch.arange(len(image))
    return [
        float(
            torch.cat(
                [_hits(s, r, k) for s, r in zip(torch.split(table, BATCH), torch.split(pairs, BATCH), strict=True)]
            ).mean()
        )
        for table, pairs in ((scores.T, right.T), (scores, right))
        for k in KS
    ]


def _hits(scores: Tensor, right: Tensor, k: int) -> Tensor:
    best = F.one_hot(scores.topk(k, dim=1).indices, scores.shape[1])  # [batch, k, candidates]
    return ((best * right[:, None]).sum((1, 2)) > 0).double()


def flat(image: Tensor, text: Tensor, owner: Tensor) -> list[float]:
    """The same from faiss' exact inner product index, the 10 best of each query."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    numbers, found = torch.arange(len(image)), []
    for queries, candidates, wanted, owners in ((image, text, numbers, owner), (text, image, owner, numbers)):
        index = faiss.IndexFlatIP(candidates.shape[1])
        index.add(candidates.numpy())
        places = torch.from_numpy(index.search(queries.numpy(), max(KS))[1])
        hits = owners[places] == wanted[:, None]
        found += [float(hits[:, :k].any(1).double().mean()) for k in KS]
    return found


if __name__ == "__main__":
    main()
