"""What five data loaders lose, double, reorder and hide: `python3 tools/run.py python tools/bench_loaders.py --json loaders.json`.

webdataset, LitData, MosaicML Streaming, Energon and mmssl read the same samples, each in its own format, with the settings that its
documentation recommends for a reproducible order (loaders/README.md has them, and the table). Sections: `epoch` and `mixture` (12
layouts of ranks and workers), `resume` (in the middle of an epoch, on other layouts), `kill` (-9), `damage` (14 kinds) and `speed`.
LitData, Streaming and Energon get a separate environment (`peer_env.py --env loaders`). Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bench_loader
from loaders import table
from loaders.adapter import NAMES, LoaderAdapter, load

TOOLS = Path(__file__).resolve().parent
SECTIONS = ("epoch", "mixture", "resume", "kill", "damage")
PROJECT = ("mmssl", "webdataset")
"""Installed in the project's environment."""
SLOWEST = ("Streaming", "Energon")
"""They begin first: Streaming waits for ever on damaged shards (11 x 20 s, without a core), Energon starts slowly."""


class Server:
    """A process that has imported one library, and answers commands: a line of JSON for each."""

    def __init__(self, name: str, python: str, folder: Path, seconds: float) -> None:
        command = [python, str(Path(__file__).resolve()), "--serve", name, "--folder", str(folder)]
        command += ["--seconds", str(seconds)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "LITDATA_DISABLE_VERSION_CHECK": "1"}
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, *command: object) -> Any:
        """Send a command and wait for its answer.

        Raises:
            SystemExit: the process ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended: there is no answer
            print(json.dumps(command), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"bench_loaders: the process of {self.name} ended with {self._process.wait()}, see above")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve(adapter: LoaderAdapter, folder: Path, seconds: float) -> None:
    """Answer commands from standard input: `about`, a section, or `prepare`, `rate` and `resume` of the speed."""
    from loaders.scenarios import Scenarios
    from loaders.speed import LoaderSpeed, read_samples

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not be taken for an answer
    scenarios, speed = Scenarios(adapter, folder / "scenarios", seconds=seconds), None
    for line in sys.stdin:
        verb, *rest = json.loads(line)
        answer: Any = None
        if verb == "about":
            answer = {"version": version(adapter.package), "settings": adapter.settings}
        elif verb == "prepare":
            speed = LoaderSpeed(adapter, folder / "speed", read_samples([Path(path) for path in rest]))
        elif speed is not None and verb == "rate":
            answer = speed.rate(*rest)
        elif speed is not None and verb == "resume":
            answer = speed.resume()
        else:
            answer = scenarios.section(verb)
        print(json.dumps(answer), file=answers)


def pythons(names: Sequence[str]) -> dict[str, str]:
    """Python of each loader's environment."""
    if set(names) <= set(PROJECT):
        return dict.fromkeys(names, sys.executable)
    command = [sys.executable, str(TOOLS / "peer_env.py"), "--env", "loaders"]
    peers = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    return {name: sys.executable if name in PROJECT else peers for name in names}


def examine(server: Server, sections: Sequence[str]) -> dict[str, Any]:
    """All sections of one loader but the speed."""
    facts: dict[str, Any] = server.ask("about")
    for section in sections:
        start = time.perf_counter()
        facts[section] = server.ask(section)
        print(f"{server.name}: {section}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return facts


def race(servers: Sequence[Server], folder: Path, samples: int, rounds: int, batches: int) -> dict[str, dict[str, Any]]:
    """Speed of all loaders; rounds of all of them alternate, the first one warms up and does not count."""
    shards = bench_loader.make_shards(folder / "pictures", samples, 8)
    for server in servers:
        server.ask("prepare", *map(str, shards))
    rates: dict[str, list[float]] = {server.name: [] for server in servers}
    resumes: dict[str, list[float | None]] = {server.name: [] for server in servers}
    for number in range(rounds + 1):
        for server in servers if number % 2 == 0 else servers[::-1]:
            rates[server.name].append(server.ask("rate", batches))
            resumes[server.name].append(server.ask("resume"))
    return {
        server.name: {
            "rate": statistics.median(rates[server.name][1:]),
            "rates": rates[server.name][1:],
            "resume": None if None in resumes[server.name] else statistics.median(resumes[server.name][1:]),  # type: ignore[type-var]
        }
        for server in servers
    }


def compare(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the sections, print the tables, and return the facts."""
    names = [name for name in NAMES if name in arguments.loaders]
    found = pythons(names)
    servers = [Server(name, found[name], folder / name, arguments.seconds) for name in names]
    sections = [section for section in SECTIONS if section in arguments.sections]
    start = time.perf_counter()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        first = sorted(servers, key=lambda server: server.name not in SLOWEST)
        examined = {server.name: pool.submit(examine, server, sections) for server in first}
    loaders = {name: examined[name].result() for name in names}
    if "speed" in arguments.sections:
        speeds = race(servers, folder, arguments.pictures, arguments.rounds, arguments.batches)
        for name, facts in speeds.items():
            loaders[name]["speed"] = facts
    for server in servers:
        server.close()
    print(table.properties(loaders))
    if "damage" in sections:
        print("\n" + table.damages(loaders))
    print("\n" + table.settings(loaders))
    return {"loaders": loaders, "seconds": time.perf_counter() - start, "cores": os.cpu_count()}


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--loaders", nargs="+", choices=tuple(NAMES), default=tuple(NAMES))
    parser.add_argument("--sections", nargs="+", choices=(*SECTIONS, "speed"), default=(*SECTIONS, "speed"))
    parser.add_argument("--jobs", type=int, default=1 + (os.cpu_count() or 1), help="loaders examined at the same time")
    parser.add_argument(
        "--seconds", type=float, default=100, help="after which a run counts as hanging; more on a busy machine"
    )
    parser.add_argument("--pictures", type=int, default=2048, help="JPEGs of the speed section")
    parser.add_argument("--rounds", type=int, default=3, help="of the speed section")
    parser.add_argument("--batches", type=int, default=20, help="of 64 pictures, in one round")
    parser.add_argument("--json", type=Path, help="also write all facts to this file")
    parser.add_argument("--serve", choices=tuple(NAMES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(load(arguments.serve), arguments.folder, arguments.seconds)
        return
    with tempfile.TemporaryDirectory() as temporary:
        result = compare(arguments, Path(temporary))
    print(f"{result['seconds']:.0f} s in all on {len(os.sched_getaffinity(0))} cores", file=sys.stderr)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
