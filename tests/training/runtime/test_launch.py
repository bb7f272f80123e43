"""Devices, precisions, trackers, and settings of launchers that the recipe decides."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import accelerate.utils.launch
import pytest
import torch

from mmssl.core.errors import RecipeError
from mmssl.training.runtime.launch import Launch
from mmssl.training.runtime.launcher import _REFUSED, asked_cpu, check_launcher
from tests.training.toys import make_run


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_that_of_matrix_products(precision: str, dtype: torch.dtype) -> None:
    launch = Launch(precision, "cpu")  # type: ignore[arg-type]
    with launch.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert launch.scaler is None
    assert launch.device == torch.device("cpu")
    assert launch.is_main
    assert launch.describe() == f"1 process, device cpu, precision {precision}"


def test_what_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="fp16 is for CUDA devices"):
        Launch("fp16", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="got 'cuda', and torch sees no CUDA device"):
        Launch("fp32", "cuda")
    with pytest.raises(RecipeError, match="got 'tensorbord', did you mean 'tensorboard'"):
        Launch("fp32", "cpu", ["tensorbord"])
    with pytest.raises(RecipeError, match="'clearml' is not installed here"):
        Launch("fp32", "cpu", ["clearml"])


LOUD = [
    ("ACCELERATE_MIXED_PRECISION", "bf16", "mixed precision 'bf16', and the recipe for 'fp32'"),
    ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", r"\(ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4\).*recipe's step"),
    ("ACCELERATE_GRADIENT_CLIPPING", "1.0", "clipping to that norm.*recipe's clip_norm"),
    ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "torch.compile.*=INDUCTOR.*recipe's compile"),
    ("ACCELERATE_USE_MEGATRON_LM", "true", "Megatron-LM.*recipe's parallel"),
    ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "a mesh of processes.*recipe's parallel"),
    ("ACCELERATE_DEEPSPEED_CONFIG_FILE", "zero.json", "=zero.json.*in the recipe"),
    ("FSDP_SHARDING_STRATEGY", "HYBRID_SHARD", "FSDP 1.*fsdp_reshard_after_forward"),
    ("FSDP_IGNORED_MODULES", "head", "modules excluded from sharding .*block by block"),
    ("FSDP_ACTIVATION_CHECKPOINTING", "true", "activation checkpointing.*recipe's encoders"),
    ("FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD", "true", "activation offload"),
    ("WORLD_SIZE", "4", "started 4 processes, and 1 joined the group"),
]


@pytest.mark.parametrize(("name", "value", "complaint"), LOUD)
def test_launchers_do_not_decide_in_silence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, complaint: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=complaint):
        Launch("fp32", "cpu")


def test_every_refused_setting_is_tried_and_harmless_ones_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = {variable for variable, _, _ in LOUD}
    assert tried >= _REFUSED.keys()
    for variable, (harmless, _, _) in _REFUSED.items():
        for value in (harmless, harmless.upper(), "None"):
            monkeypatch.setenv(variable, value)
            check_launcher("fp32")


FOLLOWED = {
    "ACCELERATE_USE_CPU",
    "ACCELERATE_MIXED_PRECISION",
    "ACCELERATE_CPU_AFFINITY",
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE",
    "FSDP_VERSION",
    "FSDP_RESHARD_AFTER_FORWARD",
    "FSDP_OFFLOAD_PARAMS",
}
PART_OF_OTHERS = ("ACCELERATE_DYNAMO_", "ACCELERATE_FP8_", "ACCELERATE_DEEPSPEED_ZERO3_")
"""Details of what is refused above: of a compiler, of fp8, of ZeRO stage 3."""
WITHOUT_EFFECT = {
    "ACCELERATE_DEBUG_MODE",  # of collectives that are not used here
    "ACCELERATE_CONFIG_DS_FIELDS",  # where DeepSpeed's settings come from
    "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES",  # of ZeRO stage 3
    "ACCELERATE_USE_SAGEMAKER",
    "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE",
    "ACCELERATE_DEBUG_RDV_FILE",
    # How FSDP splits, loads, prefetches and saves; the numbers are the same.
    "FSDP_MIN_NUM_PARAMS",
    "FSDP_AUTO_WRAP_POLICY",
    "FSDP_TRANSFORMER_CLS_TO_WRAP",
    "FSDP_BACKWARD_PREFETCH",
    "FSDP_FORWARD_PREFETCH",
    "FSDP_STATE_DICT_TYPE",
    "FSDP_USE_ORIG_PARAMS",
    "FSDP_CPU_RAM_EFFICIENT_LOADING",
    "FSDP_SYNC_MODULE_STATES",
}


def test_every_setting_of_the_launcher_is_known() -> None:
    """A release of accelerate that brings another one must not be ignored in silence."""
    found = set(re.findall(r'"((?:ACCELERATE|FSDP)_[A-Z0-9_]*[A-Z0-9])"', inspect.getsource(accelerate.utils.launch)))
    assert {"ACCELERATE_DYNAMO_BACKEND", "FSDP_VERSION"} <= found
    unknown = found - FOLLOWED - WITHOUT_EFFECT - _REFUSED.keys()
    assert not {name for name in unknown if not name.startswith(PART_OF_OTHERS)}


def test_a_launcher_that_asks_for_the_cpu_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate launch --cpu` says, on a machine with a GPU."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert asked_cpu("auto")
    assert asked_cpu("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RecipeError, match="fp16 is for CUDA devices"):
        Launch("fp16", "auto")
    with pytest.raises(RecipeError, match="the recipe asks for 'cuda' and the launcher for the CPU"):
        Launch("fp32", "cuda")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "False")
    assert not asked_cpu("auto")
    assert asked_cpu("cpu")


def test_several_processes_that_became_one_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate launch --cpu --num_processes 2` leaves in the environment of its only process."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    Launch("fp32", "cpu")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(RecipeError, match=r"asked for several processes and has started one.*torchrun"):
        Launch("fp32", "cpu")


def test_a_run_says_where_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, 1).train()
    assert capsys.readouterr().err.startswith("1 process, device cpu, precision fp32\n")


def test_one_process_needs_no_wrapping() -> None:
    launch, module = Launch("fp32", "cpu"), torch.nn.Linear(2, 2)
    assert launch.wrap(module) is module  # type: ignore[arg-type]
    with launch.without_averaging(module):
        pass
    launch.close()
