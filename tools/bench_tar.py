"""Speed of reading samples from tar shards against webdataset's iterator: `python3 tools/run.py python tools/bench_tar.py`.

Both give the bytes of all members (jpg, txt and json) of every sample of the same shards, which lie in the page cache; nothing is
decoded. webdataset passes through each shard from its beginning; ours reads by index, in order and shuffled over all shards, with
and without comparing the checksums of the sidecars. All run in this process on one thread, rounds of all of them alternate, and CPU
time is measured. The ratio is that of reading shuffled, with checksums on: ours / webdataset's, in samples a second.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HEADLINE = "shuffled, checksums"
JPEG_BYTES = (20_000, 112_000)  # 66 KB on average, as pictures of 500 x 375 pixels have


def make_shards(folder: Path, samples: int, shards: int) -> list[Path]:
    """Write shards with noise for pictures: tar readers do not decode."""
    rng = random.Random(0)
    paths = [folder / f"{number:06d}.tar" for number in range(shards)]
    for number, path in enumerate(paths):
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for ordinal in range(number * samples // shards, (number + 1) * samples // shards):
                caption = " ".join(rng.choices(("red", "temple", "garden", "two", "people", "light"), k=12))
                about = json.dumps({"caption": caption, "width": 500, "height": 375, "key": f"{ordinal:08d}"})
                fields = {
                    "jpg": rng.randbytes(rng.randint(*JPEG_BYTES)),
                    "txt": caption.encode(),
                    "json": about.encode(),
                }
                for extension, data in fields.items():
                    member = tarfile.TarInfo(f"{ordinal:08d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return paths


def readers(shards: list[Path], samples: int) -> dict[str, Callable[[], int]]:
    """Name -> a pass over all samples, which returns the bytes that came."""
    import webdataset as wds

    sys.path.insert(0, str(ROOT))
    from mmssl.data.shards.index import ShardIndex
    from mmssl.data.shards.sidecar import write_sidecar

    for shard in shards:
        write_sidecar(shard)
    index = ShardIndex.open(shards)
    shuffled = random.Random(1).sample(range(samples), samples)

    def peer() -> int:
        stream = wds.WebDataset([str(shard) for shard in shards], shardshuffle=False, empty_check=False)
        return sum(len(sample[name]) for sample in stream for name in ("jpg", "txt", "json"))

    def ours(order: list[int], verify: bool) -> int:
        index.verify = verify
        return sum(len(data) for ordinal in order for data in index.read(ordinal).fields.values())

    return {
        "webdataset": peer,
        "in order": lambda: ours(list(range(samples)), False),
        "in order, checksums": lambda: ours(list(range(samples)), True),
        "shuffled": lambda: ours(shuffled, False),
        HEADLINE: lambda: ours(shuffled, True),
    }


def compare(samples: int, shards: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Run the rounds, print and return the figures."""
    passes = readers(make_shards(folder, samples, shards), samples)
    sizes = {name: one() for name, one in passes.items()}  # also brings everything into the page cache
    if len(set(sizes.values())) != 1:
        raise SystemExit(f"bench_tar: the readers do not give the same bytes: {sizes}")
    rates: dict[str, list[float]] = {name: [] for name in passes}
    for number in range(rounds):
        names = list(passes)
        for name in names if number % 2 == 0 else names[::-1]:
            start = time.process_time()
            passes[name]()
            rates[name].append(samples / (time.process_time() - start))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {
        name: [ours / peer for ours, peer in zip(values, rates["webdataset"], strict=True)]
        for name, values in rates.items()
    }
    print(f"{'':22}{'samples / CPU s':>16}{'us a sample':>14}{'ratio':>8}   (medians of {rounds} rounds)")
    for name, rate in medians.items():
        middle, low, high = statistics.median(ratios[name]), min(ratios[name]), max(ratios[name])
        print(f"{name:22}{rate:16,.0f}{1e6 / rate:14.1f}{middle:8.2f}   ({low:.2f}-{high:.2f})")
    return {
        "ratio": statistics.median(ratios[HEADLINE]),
        "ours": medians[HEADLINE],
        "peer": medians["webdataset"],
        "unit": "samples per CPU second",
        "spread": [min(ratios[HEADLINE]), max(ratios[HEADLINE])],
        "rates": medians,
        "samples": samples,
        "shards": shards,
        "sample_bytes": sizes["webdataset"] / samples,
        "rounds": rounds,
        "webdataset": version("webdataset"),
    }


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        result = compare(arguments.samples, arguments.shards, arguments.rounds, Path(temporary))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
