"""Load on `mmssl serve`, with and without batches: `python3 tools/run.py python tools/bench_serve.py`.

A number of clients, each with one connection, ask the server on 127.0.0.1 one query after the other, for a bounded number of
requests and of seconds. The server is a separate process, once with one forward pass for all that wait and once with one for each
input (`--batch 1`); rounds of both alternate. Latency is from sending a request to its whole answer. Without a folder, a small
untrained model and shards of digits are made.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 300.0
ARMS = {"batches": 64, "alone": 1}


def make_folder(folder: Path, samples: int) -> Path:
    """Shards of digits, an untrained model of them (one step), and its embeddings."""
    sys.path.insert(0, str(ROOT))
    from mmssl.datasets import digit_scenes
    from pipelines import cli
    from pipelines.command import guarded

    digit_scenes.write(folder / "shards", train=samples, validation=16, test=16, shards=1)
    shards, out = folder / "shards/train", folder / "embedded"
    settings = [f'data.shards=["{shards}"]', f"output={folder}", "name=run", "duration=1 steps", "evaluators={}"]
    small = ["batch_size=16", "data.workers=0", "schedule={kind: constant}", "device=cpu"]
    for command in (
        ["pretrain", "quickstart/image_text", *settings, *small],
        ["embed", str(folder / "run"), "--shards", str(shards), "--out", str(out)],
    ):
        if guarded(cli.full(), command) != 0:
            raise SystemExit(f"bench_serve: mmssl {command[0]} failed")
    return out


@contextmanager
def server(folder: Path, batch: int, threads: int) -> Iterator[int]:
    """A server of a folder; its port."""
    command = [sys.executable, "-m", "pipelines.serve", str(folder), "--port", "0", "--device", "cpu"]
    command += ["--batch", str(batch), "--requests", "1024"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            said = ""
            while not (found := re.search(r"http://127\.0\.0\.1:(\d+),", said)):
                line = process.stderr.readline()
                if not line:
                    raise SystemExit(f"bench_serve: the server ended: {said}")
                said += line
            yield int(found[1])
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(START_SECONDS)


def load(port: int, path: str, bodies: list[bytes], clients: int, requests: int, seconds: float) -> dict[str, float]:
    """Ask from several clients at once; the figures of all answers."""
    latencies: list[float] = []
    failures: list[int] = []
    turns, lock = iter(range(requests)), threading.Lock()
    deadline = time.monotonic() + seconds

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds + 60)
        while time.monotonic() < deadline:
            with lock:
                turn = next(turns, None)
            if turn is None:
                break
            start = time.perf_counter()
            connection.request("POST", path, bodies[turn % len(bodies)])
            answer = connection.getresponse()
            answer.read()
            latencies.append(time.perf_counter() - start)
            if answer.status != 200:
                failures.append(answer.status)
        connection.close()

    began = time.perf_counter()
    threads = [threading.Thread(target=client, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - began
    if failures or not latencies:
        raise SystemExit(f"bench_serve: {len(failures)} of {len(latencies)} answers failed: {sorted(set(failures))}")
    ordered = sorted(latencies)
    return {
        "p50": 1000 * ordered[len(ordered) // 2],
        "p95": 1000 * ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        "throughput": len(ordered) / wall,
        "requests": len(ordered),
    }


def compare(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the rounds, print and return the figures."""
    bodies = [arguments.file.read_bytes()] if arguments.file else [f"a number {i}".encode() for i in range(100)]
    path = f"/{arguments.route}/{arguments.modality}"
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    for number in range(arguments.rounds):
        for name in list(ARMS) if number % 2 == 0 else list(ARMS)[::-1]:
            with server(folder, ARMS[name], arguments.threads) as port:
                load(port, path, bodies, arguments.clients, 2 * arguments.clients, arguments.seconds)  # warms up
                figures = load(port, path, bodies, arguments.clients, arguments.requests, arguments.seconds)
                rounds[name].append(figures)
    medians = {
        name: {what: statistics.median(one[what] for one in made) for what in made[0]} for name, made in rounds.items()
    }
    print(f"{'':10}{'p50 ms':>10}{'p95 ms':>10}{'requests / s':>14}   ({arguments.clients} clients, {path}, medians)")
    for name, one in medians.items():
        print(f"{name:10}{one['p50']:10.1f}{one['p95']:10.1f}{one['throughput']:14.1f}")
    ratios = [a["throughput"] / b["throughput"] for a, b in zip(rounds["batches"], rounds["alone"], strict=True)]
    print(f"ratio of throughputs {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
    return {
        "ratio": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
        "medians": medians,
        "rounds": rounds,
        "clients": arguments.clients,
        "threads": arguments.threads,
        "path": path,
    }


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, nargs="?", help="that `mmssl embed` wrote; default: a small one is made")
    parser.add_argument("--modality", default="text", help="of the queries")
    parser.add_argument("--file", type=Path, help="the query, where it is no text")
    parser.add_argument("--route", choices=("search", "embed"), default="search")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=400, help="of one round")
    parser.add_argument("--seconds", type=float, default=30.0, help="of one round, at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch in the server")
    parser.add_argument("--samples", type=int, default=512, help="of the folder that is made")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server ends, too
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or make_folder(Path(temporary), arguments.samples)
        result = compare(arguments, folder)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
