"""`pip install .`: the wheel is built without a network, and what is installed from it works where the checkout is not."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import pytest

from mmssl.datasets import digit_scenes
from mmssl.recipe.shipped import shipped_recipes

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_CHECKOUTS = """
import os, sys
sys.path[:] = [path for path in sys.path if not os.path.exists(os.path.join(path, "pyproject.toml"))]
"""


@dataclass(frozen=True)
class Installed:
    """A wheel, and the folder that it is installed in."""

    wheel: Path
    folder: Path

    def python(self, code: str) -> subprocess.CompletedProcess[str]:
        """Run code from a folder that holds nothing, with the installed packages first and without those of a checkout."""
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", WITHOUT_CHECKOUTS + code]
        empty = self.folder.parent / "elsewhere"
        empty.mkdir(exist_ok=True)
        return subprocess.run(
            command, cwd=empty, env=environment, capture_output=True, text=True, timeout=300, check=False
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """As pip does it, with the build backend that is installed here and no dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps"]
    subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "-w", folder, ROOT], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", *offline, "--no-compile", "--target", folder / "site", wheel], check=True)
    return Installed(wheel, folder / "site")


def test_the_wheel_holds_what_is_read_at_run_time_and_no_tests(installed: Installed) -> None:
    names = set(ZipFile(installed.wheel).namelist())
    configs = {f"mmssl/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert len(configs) > 20
    pages = {"mmssl/reporting/report.html.jinja", *(f"mmssl/serving/page.{end}" for end in ("html.jinja", "js", "css"))}
    assert {*configs, *pages, "mmssl/py.typed"} <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"mmssl", "pipelines"}


def test_its_command_answers(installed: Installed) -> None:
    command = [installed.folder / "bin/mmssl", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(installed.folder)}
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout


def test_the_first_step_of_the_quickstart(installed: Installed, tmp_path: Path) -> None:
    """With the installed recipe, on shards that hold less."""
    digit_scenes.write(tmp_path, train=32, validation=0, test=0, shards=1)
    changes = [f"data.shards=[{tmp_path / 'train'}]", "data.workers=0", "batch_size=16", "evaluators={}", "device=cpu"]
    command = ["mmssl", "pretrain", "quickstart/image_text", *changes, "--dry-run"]
    done = installed.python(
        "import mmssl, pipelines.cli; print(mmssl.__file__, pipelines.cli.__file__); "
        f"sys.argv = {command!r}; pipelines.cli.main()"
    )
    assert done.returncode == 0, done.stderr
    assert all(Path(file).is_relative_to(installed.folder) for file in done.stdout.splitlines()[0].split())
    assert "samples" in done.stderr


def test_its_recipes_are_listed(installed: Installed) -> None:
    done = installed.python("import pipelines.cli; sys.argv = ['mmssl', 'recipes']; pipelines.cli.main()")
    assert done.returncode == 0, done.stderr
    listed = {line.split()[0] for line in done.stdout.splitlines()}
    assert listed == set(shipped_recipes())
