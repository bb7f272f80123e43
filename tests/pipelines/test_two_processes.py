"""The same command on one process and on two gives the same run: parameters, curve and scores."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from mmssl.training.checkpoints.read import load_weights, resolve
from tests.pipelines.conftest import World
from tests.programs import Program
from tests.test_accelerate_configs import environment as launch_environment

# Sums over other orders of float32 numbers, through six steps of AdamW. Its epsilon is raised: attention does not depend on the
# bias of its keys, whose gradient is rounding noise alone, and Adam would make whole steps of that.
TOLERANCE = 1e-5
OVERRIDES = ["optimizer.eps=1e-4"]
ROOT = Path(__file__).resolve().parents[2]
TWO = ["--num_processes", "2", "--main_process_port", "0"]


ACCELERATE = ["accelerate.commands.launch", "--config_file"]
ONE_THREAD = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
Started = tuple[list[str], dict[str, str]]
"""A module with its arguments up to those of `pretrain`, and its environment besides that of the tests."""


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def launcher(*words: str) -> list[Started]:
    return [([*words, "-m", "pipelines.pretrain"], ONE_THREAD)]


def machines() -> list[Started]:
    """What starts two machines of one process each; here both are this one."""
    common = [*ACCELERATE, f"{ROOT}/configs/accelerate/multi_node.yaml", "--num_machines", "2", "--num_processes", "2"]
    common += ["--main_process_ip", "127.0.0.1", "--main_process_port", free_port(), "--machine_rank"]
    return [*launcher(*common, "1"), *launcher(*common, "0")]


def without_launcher(more: Mapping[str, str]) -> list[Started]:
    """Two processes with the environment that torchrun gives them, and more."""
    asked = {**more, **ONE_THREAD}
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [(["pipelines.pretrain"], {**asked, **group, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]


LAUNCHERS: dict[str, Callable[[], list[Started]]] = {
    "ddp": lambda: without_launcher({}),
    "fsdp2": lambda: without_launcher(launch_environment(ROOT / "configs/accelerate/fsdp2.yaml")),
    "torchrun": lambda: launcher("torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    "accelerate": lambda: launcher(*ACCELERATE, f"{ROOT}/configs/accelerate/multi_gpu.yaml", *TWO),
    "accelerate fsdp2": lambda: launcher(*ACCELERATE, f"{ROOT}/configs/accelerate/fsdp2.yaml", *TWO),
    "machines": machines,
}
SLOW = dict.fromkeys(("torchrun", "accelerate", "accelerate fsdp2", "machines"), pytest.mark.slow)
"""What else guards these: "ddp" and "fsdp2" are the runs that they start, in the environment that torchrun gives and that which
`accelerate launch` makes of its file (tests/test_accelerate_configs.py reads all of them); tests/training/test_lost_processes.py
starts torchrun, and the last test here joins two machines by their environment."""


def launched(world: World, output: Path, started: list[Started]) -> None:
    """Start them all, and wait for the end."""
    run = [world.recipe, f"output={output}", *OVERRIDES]
    with ExitStack() as ends:
        programs = [Program(*words, *run, folder=output, environment=more) for words, more in started]
        for program in programs:
            ends.enter_context(program)
        for program in programs:
            assert program.wait(120) == 0, program.said()


@pytest.fixture(scope="module")
def alone(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on one process."""
    output = tmp_path_factory.mktemp("alone")
    assert world.pretrain(f"output={output}", *OVERRIDES) == 0
    return output / "tiny"


@pytest.mark.parametrize("launcher", [pytest.param(name, marks=SLOW.get(name, ())) for name in LAUNCHERS])
def test_two_processes_are_one(world: World, alone: Path, tmp_path: Path, launcher: str) -> None:
    launched(world, tmp_path, LAUNCHERS[launcher]())
    runs = [alone, tmp_path / "tiny"]
    one, two = (load_weights(resolve(run, "last")) for run in runs)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(
            two[name], tensor, atol=TOLERANCE, rtol=TOLERANCE, msg=lambda text, n=name: f"{n}: {text}"
        )
    curves = []
    for run in runs:
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        curves.append([value for record in records for name, value in sorted(record.items()) if name in WATCHED])
    assert len(curves[0]) >= 6
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)


WATCHED = {"loss", "grad_norm", "grad_norm/image", "grad_norm/text", "retrieval/image_to_text_R@1", "retrieval/n"}


def test_a_machine_without_the_shards_is_named_on_the_other(world: World, tmp_path: Path) -> None:
    """Two machines as their launchers start them: nobody ends the first process when the second one has ended."""
    common = {
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }
    command = ("pipelines.pretrain", world.recipe, f"output={tmp_path}", "device=cpu")
    with (
        Program(*command, folder=tmp_path, environment=common | {"RANK": "0"}) as on_first,
        Program(
            *command, f"data.shards=[{tmp_path / 'missing'}]", folder=tmp_path, environment=common | {"RANK": "1"}
        ) as on_second,
    ):
        assert on_first.wait(120) != 0
        assert on_second.wait(120) != 0
    first, second = on_first.said(), on_second.said()
    assert "error on process 1" in second
    assert str(tmp_path / "missing") in second
    assert "error on process 0: process 0 of 2 has lost another process" in first
    assert "Traceback" not in first
