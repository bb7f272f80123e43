"""Runs of rows with several seeds, each in a separate process: those that a file of results lacks."""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def in_a_process(name: str, seed: int, shards: Path, steps: int | None, results: Path, program: str) -> dict[str, Any]:
    """The run of one row in a separate process: `program --one NAME SEED`."""
    command = [sys.executable, program, "--one", name, str(seed), "--shards", str(shards), "--results", str(results)]
    command += ["--steps", str(steps)] if steps else []
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_missing(
    wanted: Sequence[tuple[str, int]], results: Path, processes: int, run: Callable[[str, int], dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Run what a file of results lacks, append it there and print it; a run that fails ends no other.

    Returns:
        All results, also those of earlier calls; and what failed, one message a run.
    """
    found = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done, failures = {(one["name"], one["seed"]) for one in found}, list[str]()
    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        runs = {pool.submit(run, *one): one for one in wanted if one not in done}
        for finished in concurrent.futures.as_completed(runs):
            try:
                one = finished.result()
            except Exception as error:  # of whatever kind: the other runs go on
                failures.append("{}, seed {}: {}".format(*runs[finished], error))
                print(failures[-1].splitlines()[0], flush=True)
                continue
            found.append(one)
            with results.open("a") as file:
                file.write(json.dumps(one) + "\n")
            print(summary(one), flush=True)
    return [one for one in found if (one["name"], one["seed"]) in {*wanted}], failures


def summary(one: dict[str, Any]) -> str:
    """One line of a finished run: its scores and their gains, its own figures before and after, seconds, and alarms."""
    gains = {key: one["after"][key] - one["before"][key] for key in one["after"]}
    said = ", ".join(f"{key} {one['after'][key]:.3f} ({gain:+.3f})" for key, gain in gains.items())
    said += "".join(f", {key} {one['own_before'][key]:.3f} to {x:.3f}" for key, x in one.get("own", {}).items())
    return f"{one['name']}, seed {one['seed']}: {said}, {one['seconds']:.0f} s {' '.join(one['alarms'])}"


def raise_failures(failures: Sequence[str]) -> None:
    """End the program with an error if runs have failed, and list them."""
    if failures:
        head = f"{len(failures)} of the runs failed, the others are complete; the same command runs these again:"
        raise SystemExit("\n".join([head, *failures]))


def read_arguments(about: str | None, rows: Sequence[str], results: str) -> argparse.Namespace:
    """Arguments of a tool that runs rows with several seeds, each in a separate process.

    Args:
        about: first line of the help.
        rows: names of all rows.
        results: default file of finished runs.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--data", type=Path, help="folder with the npz files")
    parser.add_argument("--rows", nargs="*", choices=sorted(rows), default=list(rows), help="objectives; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=10_000, help="training pictures")
    parser.add_argument("--test", type=int, default=10_000, help="test pictures")
    parser.add_argument("--steps", type=int, help="of every run; default: each row's own")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--results", type=Path, default=Path(results), help="finished runs, one a line")
    parser.add_argument("--json", type=Path, help="write all results here")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("--shards", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.data is None and not arguments.one:
        parser.error("--data is missing: the folder with cifar10-train.npz and cifar10-test.npz")
    return arguments
