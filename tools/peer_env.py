#!/usr/bin/env python3
"""Make the peers' environment `.peers` once, and run a command in it: `python3 tools/peer_env.py python -m open_clip_train.main`.

Peers are the libraries of the benchmarks: open_clip's loader and trainer need other package versions than the project. Their
environment sees all packages of the project's and shadows those pinned in tools/peer-constraints.txt. Without a command: prints the
path of its Python. Standard library only; made again only when the pins, the project's environment or Python changed, and
offline otherwise.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".peers"
FOLDER = "Scripts" if os.name == "nt" else "bin"
BIN = PEERS / FOLDER
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
STAMP = PEERS / "peers-installed"
CONSTRAINTS = ROOT / "tools" / "peer-constraints.txt"
_PLACES = "import json, sys, sysconfig; print(json.dumps([sys.version, sysconfig.get_path('purelib')]))"


class SetupError(Exception):
    """The environment could not be created."""


def project_python() -> Path:
    """Python of the project's environment: the one that runs this, if it is one, or else `.venv`, set up if needed."""
    if sys.prefix != sys.base_prefix:
        return Path(sys.executable)
    _call([sys.executable, str(ROOT / "tools" / "run.py"), "python", "-c", ""])
    return ROOT / ".venv" / FOLDER / PYTHON.name


def ensure() -> Path:
    """The peers' Python; creates their environment if it is missing.

    Raises:
        SetupError: the environment could not be made.
    """
    base = project_python()
    places = _call([str(base), "-c", _PLACES])
    wanted = hashlib.sha256(f"{places}\n{PEERS}\n".encode() + CONSTRAINTS.read_bytes()).hexdigest()
    if STAMP.exists() and STAMP.read_text() == wanted:
        return PYTHON
    print(f"setting up {PEERS} (a minute, once) ...", file=sys.stderr, flush=True)
    if PEERS.exists():
        shutil.rmtree(PEERS)
    _call([str(base), "-m", "venv", "--without-pip", str(PEERS)])
    own, packages = (Path(_site_packages(python)) for python in (PYTHON, base))
    # Its packages come first on the path, and so shadow those of the project.
    pip = [str(base), "-m", "pip", "--python", str(PYTHON), "install", "--quiet", "--disable-pip-version-check"]
    _call([*pip, "--no-deps", "--requirement", str(CONSTRAINTS)])
    (own / "project.pth").write_text(f"{packages}\n")
    STAMP.write_text(wanted)
    return PYTHON


def main(arguments: list[str]) -> int:
    """Set up if needed, then exec the command."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    try:
        python = ensure()
    except SetupError as error:
        print(f"peer_env: {error}; nothing was run", file=sys.stderr)
        return 1
    if not arguments:
        print(python)
        return 0
    os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ["VIRTUAL_ENV"] = str(PEERS)
    command = shutil.which(arguments[0], path=os.environ["PATH"])
    if command is None:
        print(f"peer_env: no command {arguments[0]!r} in {BIN} or on the path", file=sys.stderr)
        return 127
    return subprocess.run([command, *arguments[1:]], check=False).returncode


def _site_packages(python: Path) -> str:
    return _call([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()


def _call(command: list[str]) -> str:
    """The output of a command.

    Raises:
        SetupError: it failed.
    """
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SetupError(f"{' '.join(command)} ended with {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
