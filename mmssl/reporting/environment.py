"""Software and hardware environment of a run, for reports, without secrets."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch

from mmssl.core import distributed

PACKAGES = (
    "mmssl", "torch", "torchvision", "torchaudio", "accelerate", "timm", "open_clip_torch", "transformers",
    "numpy", "pillow", "webdataset", "scikit-learn", "pydantic",
)  # fmt: skip
VARIABLES = re.compile(
    r"(OMP|MKL|CUDA|NCCL|GLOO|TORCH|PYTORCH|ACCELERATE|HF|WDS|SLURM)_\w+|WORLD_SIZE|LOCAL_WORLD_SIZE"
)
SECRETS = {
    "token", "secret", "secrets", "password", "passwd", "passphrase", "credential", "credentials", "auth", "authorization",
    "bearer", "apikey",
}  # fmt: skip
HIDDEN = "(hidden)"
_KEY_WORDS = {"api", "access", "private", "secret", "auth", "encryption", "signing"}
_WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z0-9]+(?![a-z])")
_NAME = re.compile(r"""([\w.-]+)["']?[ \t]*[:=][ \t]*""")


def environment() -> dict[str, str]:
    """Versions, machine, devices, the commit of the code and the variables that change how it runs; secrets are hidden."""
    facts = {
        "Python": platform.python_version(),
        "platform": platform.platform(),
        "processor cores": str(os.cpu_count()),
        "torch threads": str(torch.get_num_threads()),
        "processes": str(distributed.world_size()),
        "devices": _devices(),
        "commit": commit(Path(__file__).resolve().parents[2]) or "(not a repository)",
    }
    facts |= {name: version for name in PACKAGES if (version := _version(name))}
    facts["torch"] = torch.__version__  # says which build, too
    facts |= {name: value for name, value in sorted(os.environ.items()) if VARIABLES.fullmatch(name)}
    return redact(facts)


def commit(folder: Path) -> str | None:
    """Commit of the repository at `folder`, with `-dirty` where files differ from it; None if there is no repository or no git."""
    git = shutil.which("git")
    if git is None or not (folder / ".git").exists():
        return None
    command = [git, "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)  # noqa: S603 (no shell, fixed words)
    return answer.stdout.strip() or None


def is_secret(name: str) -> bool:
    """Whether a setting's name suggests a secret: `hf_token`, `apiKey`, `DB_PASSWORD`; not `tokenizer`, `tokens` or `key`."""
    words = [word.lower() for word in _WORD.findall(name)]
    pairs = pairwise(words)
    return bool(SECRETS.intersection(words)) or any(a in _KEY_WORDS and b in ("key", "keys") for a, b in pairs)


def redact(facts: Mapping[str, str]) -> dict[str, str]:
    """Hide the values of secret names."""
    return {name: HIDDEN if is_secret(name) else value for name, value in facts.items()}


def redact_text(text: str) -> str:
    """Hide the values after secret names in text (YAML, JSON or `name=value`): rest of the line, deeper lines."""
    kept: list[str] = []
    deepest: int | None = None  # indentation of the secret name whose lines are being left out
    for line in text.splitlines():
        depth = len(line) - len(line.lstrip())
        if deepest is not None and (depth > deepest or not line.strip()):
            continue
        found = next((match for match in _NAME.finditer(line) if is_secret(match[1])), None)
        deepest = depth if found else None
        kept.append(line[: found.end()] + HIDDEN if found else line)
    return "\n".join(kept)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> str:
    if not torch.cuda.is_available():
        return "CPU"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
