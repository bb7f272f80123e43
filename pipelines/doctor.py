"""`mmssl doctor`: versions, devices and limits of this machine, and what would stop a run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

# Oldest versions without a known security hole that matters here (loaders that run code, decoders that overflow).
OLDEST_SAFE = {"torch": "2.10", "transformers": "5.3", "accelerate": "1.15", "pillow": "12.2"}
PACKAGES = (
    "torch",
    "torchvision",
    "torchaudio",
    "accelerate",
    "transformers",
    "open_clip_torch",
    "timm",
    "webdataset",
    "simplejpeg",
    "pillow",
    "numpy",
)
GIB = 2**30


class Diagnosis(NamedTuple):
    """One line of the diagnosis."""

    state: Literal["ok", "note", "bad"]
    what: str
    detail: str


def doctor() -> None:
    """Check versions, decoders, devices, disk and limits. Exit code 2 if something would stop a run.

    Example: `mmssl doctor`
    """
    findings = list(diagnose())
    table = Table(show_header=False, box=None)
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "bad": "[bold red]bad[/]"}
    for finding in findings:
        table.add_row(marks[finding.state], finding.what, escape(finding.detail))
    Console().print(table)
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(2)


def diagnose() -> Iterator[Diagnosis]:
    """Yield all findings of doctor."""
    yield Diagnosis(
        "ok" if sys.version_info >= (3, 11) else "bad", "python", f"{platform.python_version()}, wanted 3.11 or newer"
    )
    yield from _versions()
    yield from _imports()
    yield _torchcodec()
    yield _heic()
    yield from _plugins()
    yield from _devices()
    yield _processes()
    yield from _resources()


def _versions() -> Iterator[Diagnosis]:
    from packaging.version import Version

    for package in PACKAGES:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield Diagnosis("bad", package, "not installed: pip install . installs all requirements")
            continue
        oldest = OLDEST_SAFE.get(package)
        if oldest and Version(version) < Version(oldest):
            yield Diagnosis("bad", package, f"{version} has known security holes: use {oldest} or newer")
        else:
            yield Diagnosis("ok", package, version)


def _imports() -> Iterator[Diagnosis]:
    # torchaudio refuses to load beside a torch of another CUDA version, and then transformers fails too.
    for module in ("torchvision", "torchaudio", "simplejpeg", "soundfile", "av"):
        try:
            __import__(module)
            yield Diagnosis("ok", f"import {module}", "works")
        except Exception as error:  # whatever an import raises is the finding
            yield Diagnosis(
                "bad", f"import {module}", f"{type(error).__name__}: {error}; check that its version matches torch's"
            )


def _plugins() -> Iterator[Diagnosis]:
    """Modalities, encoders, objectives and evaluators of other packages."""
    from mmssl.core.plugins import kind_of
    from mmssl.recipe.unions import plugins

    for plugin in plugins():
        what = f"{plugin.group.removeprefix('mmssl.')} of {plugin.distribution}"
        if plugin.config is None:
            yield Diagnosis("bad", what, f"{plugin.name} is left out: {plugin.fault}")
        else:
            yield Diagnosis("ok", what, f"kind {kind_of(plugin.config)!r}")


def _torchcodec() -> Diagnosis:
    """Whether the optional torchcodec can decode videos."""
    from mmssl.data.media.torchcodec import torchcodec_failure

    failure = torchcodec_failure()
    if failure is None:
        return Diagnosis("ok", "torchcodec", "decodes: videos may have `backend: torchcodec`")
    return Diagnosis(
        "note", "torchcodec", f"does not decode ({failure}): videos use `backend: pyav`, which needs nothing else"
    )


def _heic() -> Diagnosis:
    """Whether the optional pillow-heif can decode HEIC pictures."""
    try:
        __import__("pillow_heif")
    except Exception as error:  # whatever an import raises is the finding
        return Diagnosis("note", "HEIC", f"pictures are not decoded ({error}): pip install 'mmssl[heic]'")
    return Diagnosis("ok", "HEIC", "pictures are decoded")


def _devices() -> Iterator[Diagnosis]:
    import torch

    yield Diagnosis("ok", "cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        yield Diagnosis("note", "gpu", "no CUDA device: runs use the CPU")
        return
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: set the recipe's precision to fp16"
        yield Diagnosis("ok", f"gpu {i}", f"{properties.name}, {properties.total_memory / GIB:.0f} GiB, {bf16}")
    yield _triton()


def _triton() -> Diagnosis:
    """Whether the kernels of tiled InfoNCE can be compiled for a GPU."""
    if find_spec("triton") is None:
        return Diagnosis(
            "note", "triton", "not installed: `tiles: tf32x3` of clip is computed by torch, in more passes"
        )
    return Diagnosis("ok", "triton", "`tiles: tf32x3` of clip has kernels of its own")


def _processes() -> Diagnosis:
    """Communication backends, and whether a launcher started this process as one of several."""
    import torch
    import torch.distributed as dist

    from mmssl.core.errors import RecipeError
    from mmssl.training.runtime.launcher import asked_parallel

    if not dist.is_available():
        return Diagnosis("note", "processes", "this torch has no torch.distributed: one process only")
    found = [name for name, there in (("gloo", dist.is_gloo_available()), ("nccl", dist.is_nccl_available())) if there]
    detail = f"{torch.cuda.device_count()} GPUs here; backends: {', '.join(found) or 'none'}"
    if "WORLD_SIZE" in os.environ:
        detail += f"; launched as process {os.environ.get('RANK', '?')} of {os.environ['WORLD_SIZE']}"
    try:
        detail += f"; parallel: auto means {asked_parallel('auto')}"
    except RecipeError as error:
        return Diagnosis("bad", "processes", f"{detail}; {error}")
    if torch.cuda.is_available() and "nccl" not in found:
        return Diagnosis("note", "processes", f"{detail}: several GPUs need nccl")
    return Diagnosis("ok" if found else "note", "processes", detail)


def _resources() -> Iterator[Diagnosis]:
    here = Path.cwd()
    free = shutil.disk_usage(here).free / GIB
    yield Diagnosis("ok" if free > 5 else "note", "disk", f"{free:.0f} GiB free in {here}")
    yield Diagnosis(
        "ok" if os.access(here, os.W_OK) else "bad",
        "run folder",
        "writable" if os.access(here, os.W_OK) else f"cannot write in {here}",
    )
    shared = Path("/dev/shm")  # noqa: S108 - looked at, not written to
    if shared.exists():
        size = shutil.disk_usage(shared).total / GIB
        state: Literal["ok", "note"] = "ok" if size > 1 else "note"
        yield Diagnosis(
            state,
            "shared memory",
            f"{size:.1f} GiB in {shared}"
            + ("" if size > 1 else ": data workers may run out of shared memory; data.workers=0 avoids it"),
        )
    if os.name == "posix":
        import resource

        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        yield Diagnosis("ok" if files >= 1024 else "note", "open files", f"at most {files}")
    for name in ("WDS_SECURE", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        if name in os.environ:
            yield Diagnosis("note", name, os.environ[name])


if __name__ == "__main__":
    from pipelines.command import single

    single(doctor)
