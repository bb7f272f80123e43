#!/usr/bin/env python3
"""Make an environment of peers once, and run a command in it: `python3 tools/peer_env.py python -m open_clip_train.main`.

Peers are the libraries of the benchmarks, which need other package versions than the project, or packages that it does not need. An
environment sees all packages of the project's and shadows those pinned in a file of tools/: `--env open_clip` (default: open_clip's
loader and trainer; folder `.peers`, pins in peer-constraints.txt), `--env loaders` (those of bench_loaders.py; `.peers-loaders`,
loader-constraints.txt), or `--env referees` (those of referees.py; `.peers-referees`, referee-constraints.txt). Without a command:
prints the path of its Python. Standard library only; made again only when the pins, the project's environment or Python changed,
and offline otherwise.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = "Scripts" if os.name == "nt" else "bin"
PROGRAM = "python.exe" if os.name == "nt" else "python"
SHARED = "shared-python"
"""File in an environment: the Python whose packages it shares."""
_PLACES = "import json, sys, sysconfig; print(json.dumps([sys.version, sysconfig.get_path('purelib')]))"


@dataclass(frozen=True)
class Environment:
    """Folder of an environment, and the file of its pins."""

    folder: Path
    constraints: Path

    @property
    def bin(self) -> Path:
        """Its folder of programs."""
        return self.folder / BIN

    @property
    def stamp(self) -> Path:
        """The file that says what it was made from."""
        return self.folder / "peers-installed"


ENVIRONMENTS = {
    "open_clip": Environment(ROOT / ".peers", ROOT / "tools" / "peer-constraints.txt"),
    "loaders": Environment(ROOT / ".peers-loaders", ROOT / "tools" / "loader-constraints.txt"),
    "referees": Environment(ROOT / ".peers-referees", ROOT / "tools" / "referee-constraints.txt"),
}


class SetupError(Exception):
    """The environment could not be created."""


def project_python() -> Path:
    """Python of the project's environment: the one that runs this, if it is one, or else `.venv`, set up if needed.

    In an environment of peers it is the one whose packages that shares.
    """
    if any(Path(sys.prefix) == environment.folder for environment in ENVIRONMENTS.values()):
        return Path((Path(sys.prefix) / SHARED).read_text())
    if sys.prefix != sys.base_prefix:
        return Path(sys.executable)
    _call([sys.executable, str(ROOT / "tools" / "run.py"), "python", "-c", ""])
    return ROOT / ".venv" / BIN / PROGRAM


def ensure(environment: Environment) -> Path:
    """The environment's Python; creates it if it is missing.

    Raises:
        SetupError: the environment could not be made.
    """
    base, python = project_python(), environment.bin / PROGRAM
    places = _call([str(base), "-c", _PLACES])
    pins = environment.constraints.read_bytes()
    wanted = hashlib.sha256(f"{places}\n{environment.folder}\n".encode() + pins).hexdigest()
    if environment.stamp.exists() and environment.stamp.read_text() == wanted:
        return python
    print(f"setting up {environment.folder} (a minute, once) ...", file=sys.stderr, flush=True)
    if environment.folder.exists():
        shutil.rmtree(environment.folder)
    _call([str(base), "-m", "venv", "--without-pip", str(environment.folder)])
    own, packages = (Path(_site_packages(each)) for each in (python, base))
    # Its packages come first on the path, and so shadow those of the project.
    pip = [str(base), "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    _call([*pip, "--no-deps", "--requirement", str(environment.constraints)])
    (own / "project.pth").write_text(f"{packages}\n")
    (environment.folder / SHARED).write_text(str(base))
    environment.stamp.write_text(wanted)
    return python


def main(arguments: list[str]) -> int:
    """Set up if needed, then run the command."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    name = "open_clip"
    if arguments and arguments[0] == "--env":
        name, arguments = (arguments[1] if len(arguments) > 1 else ""), arguments[2:]
    if name not in ENVIRONMENTS:
        print(f"peer_env: got --env {name!r}, wanted one of {', '.join(ENVIRONMENTS)}", file=sys.stderr)
        return 2
    environment = ENVIRONMENTS[name]
    try:
        python = ensure(environment)
    except SetupError as error:
        print(f"peer_env: {error}; nothing was run", file=sys.stderr)
        return 1
    if not arguments:
        print(python)
        return 0
    os.environ["PATH"] = f"{environment.bin}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ["VIRTUAL_ENV"] = str(environment.folder)
    command = shutil.which(arguments[0], path=os.environ["PATH"])
    if command is None:
        print(f"peer_env: no command {arguments[0]!r} in {environment.bin} or on the path", file=sys.stderr)
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
