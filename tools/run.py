#!/usr/bin/env python3
"""Set up `.venv` if needed, then run a command in it: `python3 tools/run.py mmssl quickstart`, `python3 tools/run.py pytest`.

Standard library only. The environment is made again only when pyproject.toml, the constraints or the Python version changed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
STAMP = VENV / "mmssl-installed"
CONSTRAINTS = ROOT / "tools" / "constraints.txt"


def fingerprint() -> str:
    """Hash of pyproject.toml, constraints, folder and Python version."""
    digest = hashlib.sha256(f"{sys.version}\n{ROOT}\n".encode())
    for path in (ROOT / "pyproject.toml", CONSTRAINTS):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def install(wanted: str) -> None:
    """Create the environment from scratch, so that no leftover hides a missing dependency."""
    print(
        f"mmssl: setting up {VENV.relative_to(Path.cwd()) if VENV.is_relative_to(Path.cwd()) else VENV} (a few minutes, once) ...",
        file=sys.stderr,
        flush=True,
    )
    if VENV.is_symlink():
        VENV.unlink()
    elif VENV.exists():
        shutil.rmtree(VENV)
    subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    pip = [str(BIN / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--constraint", str(CONSTRAINTS), "--editable", f"{ROOT}[dev]"], check=True)
    STAMP.write_text(wanted)


def main(arguments: list[str]) -> int:
    """Set up if needed, then exec the command."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this script is what tells users of an older Python
        print(
            f"mmssl needs Python 3.11 or newer, and this is {sys.version.split()[0]}: use python3.11 tools/run.py ...",
            file=sys.stderr,
        )
        return 2
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    wanted = fingerprint()
    if not STAMP.exists() or STAMP.read_text() != wanted:
        try:
            install(wanted)
        except subprocess.CalledProcessError as error:
            print(
                f"mmssl: setting up failed: {' '.join(error.cmd)} ended with {error.returncode}; nothing was run",
                file=sys.stderr,
            )
            return 1
    os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ["VIRTUAL_ENV"] = str(VENV)
    command = shutil.which(arguments[0], path=os.environ["PATH"])
    if command is None:
        print(f"mmssl: no command {arguments[0]!r} in {BIN} or on the path", file=sys.stderr)
        return 127
    if os.name == "nt":
        return subprocess.run([command, *arguments[1:]], check=False).returncode
    sys.stdout.flush()
    os.execv(command, [command, *arguments[1:]])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
