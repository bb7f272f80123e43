"""The configurations of `accelerate launch` that are shipped: accelerate reads them, and what it then asks for is understood."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from mmssl.training.runtime.launcher import asked_parallel, check_launcher

FOLDER = Path(__file__).resolve().parent.parent / "configs/accelerate"
WANTED = {
    "multi_gpu": ("ddp", 8, 1),
    "multi_node": ("ddp", 16, 2),
    "fsdp2": ("fsdp2", 8, 1),
    "deepspeed": ("zero2", 8, 1),
}


def test_all_are_counted() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == WANTED.keys()
    assert {path.suffix for path in FOLDER.iterdir()} == {".yaml", ".sbatch"}


@pytest.mark.parametrize("name", WANTED)
def test_accelerate_reads_it(name: str) -> None:
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert (config.num_processes, config.num_machines) == WANTED[name][1:]
    assert config.mixed_precision == "no"
    assert f"--config_file configs/accelerate/{name}.yaml" in (FOLDER / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", WANTED)
def test_what_its_launcher_asks_for_is_what_a_run_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is that which `accelerate launch` gives to its processes."""
    for variable, value in environment(FOLDER / f"{name}.yaml").items():
        monkeypatch.setenv(variable, value)
    check_launcher("bf16")
    assert asked_parallel("auto") == WANTED[name][0]


def environment(path: Path) -> dict[str, str]:
    arguments: Namespace = launch_command_parser().parse_args(["--config_file", str(path), "-m", "pipelines.pretrain"])
    arguments, _, _ = _validate_launch_command(arguments)
    if not arguments.use_deepspeed:
        return dict(prepare_multi_gpu_env(arguments))
    arguments.deepspeed_fields_from_accelerate_config = ""
    return dict(prepare_deepspeed_cmd_env(arguments)[1])
