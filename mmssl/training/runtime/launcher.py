"""Settings of a launcher (torchrun, `accelerate launch`) in the environment: which are used, which refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from mmssl.core.errors import RecipeError

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Parallel = Literal["auto", "ddp", "zero2", "fsdp2"]

_BLOCKS = "remove it, encoders are sharded block by block over all processes"
_REFUSED = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
        "1",
        "gradient accumulation over that number of steps",
        "set the recipe's step",
    ),
    "ACCELERATE_GRADIENT_CLIPPING": ("", "gradient clipping to that norm", "set the recipe's clip_norm"),
    "ACCELERATE_DYNAMO_BACKEND": ("no", "torch.compile with that backend", "set the recipe's compile"),
    "ACCELERATE_USE_MEGATRON_LM": ("false", "Megatron-LM", "set the recipe's parallel"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("false", "a mesh of processes", "set the recipe's parallel"),
    "ACCELERATE_DEEPSPEED_CONFIG_FILE": ("", "a DeepSpeed config file", "set the same in the recipe"),
    "FSDP_SHARDING_STRATEGY": ("full_shard", "another strategy of FSDP 1", "set fsdp_reshard_after_forward"),
    "FSDP_IGNORED_MODULES": ("", "modules excluded from sharding", _BLOCKS),
    "FSDP_ACTIVATION_CHECKPOINTING": (
        "false",
        "activation checkpointing",
        "set checkpointing in the recipe's encoders",
    ),
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": (
        "false",
        "activation offload",
        "this project has no activation offload",
    ),
}
"""Settings that would have no effect, or override the recipe: variable -> (harmless value, meaning, remedy)."""


def check_launcher(precision: Precision) -> None:
    """Raise an error for settings of `accelerate launch` that belong in the recipe.

    Other settings are used (devices, processes, addresses, affinity, FSDP2, ZeRO-2), or say only how FSDP shards, loads and
    prefetches; `sharding` does that another way, with the same numbers.

    Raises:
        RecipeError: names the setting, and the recipe's key.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", "no" if precision in ("fp32", "tf32") else precision):
        raise RecipeError(
            f"the launcher asks for mixed precision {asked!r}, and the recipe for {precision!r}: "
            "set precision in the recipe, and launch without --mixed_precision"
        )
    for variable, (harmless, wish, remedy) in _REFUSED.items():
        value = os.environ.get(variable, harmless)
        if value.lower() not in (harmless, "", "none"):
            raise RecipeError(
                f"the launcher asks for {wish} ({variable}={value}), which the launcher cannot decide: {remedy}"
            )
    # Its launcher for CPUs starts one process whatever number it is given, unless it is given MPI too (accelerate #2741); an
    # address to meet at, without a rank, is the trace that several were asked for.
    alone = not any(
        name in os.environ for name in ("RANK", "LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    )
    if alone and "MASTER_ADDR" in os.environ and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        raise RecipeError(
            "accelerate launch --cpu was asked for several processes and has started one, as it does without MPI: use torchrun "
            "--nproc_per_node N, or accelerate launch --multi_gpu --num_processes N, which work on CPUs too"
        )


def asked_cpu(device: Literal["auto", "cpu", "cuda"]) -> bool:
    """Whether the recipe or the launcher asks for the CPU.

    Raises:
        RecipeError: they contradict each other.
    """
    launched = _flag("ACCELERATE_USE_CPU")
    if launched and device == "cuda":
        raise RecipeError("device: the recipe asks for 'cuda' and the launcher for the CPU: set only one of the two")
    return launched or device == "cpu"


def asked_parallel(asked: Parallel) -> Literal["ddp", "zero2", "fsdp2"]:
    """Parallel mode (ddp, zero2, fsdp2) from the recipe and the launcher's environment.

    Raises:
        RecipeError: they contradict each other, or the launcher asks for an unsupported mode.
    """
    launched = _launched_parallel()
    if asked == "auto":
        return launched or "ddp"
    if launched not in (None, asked):
        raise RecipeError(
            f"parallel: the recipe asks for {asked!r} and the launcher for {launched!r}: set only one of the two"
        )
    return asked


def _launched_parallel() -> Literal["zero2", "fsdp2"] | None:
    if _flag("ACCELERATE_USE_DEEPSPEED"):
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        offloaded = {os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{x}_DEVICE", "none") for x in ("OPTIMIZER", "PARAM")}
        if stage != "2" or offloaded != {"none"}:
            raise RecipeError(
                f"the launcher asks DeepSpeed for ZeRO stage {stage}, offload to {sorted(offloaded)}; wanted stage 2 without "
                "offload: for stage 3 launch with configs/accelerate/fsdp2.yaml"
            )
        return "zero2"
    if not _flag("ACCELERATE_USE_FSDP"):
        return None
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2" or _flag("FSDP_OFFLOAD_PARAMS"):
        raise RecipeError(
            f"the launcher asks for FSDP version {version}{' with offload' if _flag('FSDP_OFFLOAD_PARAMS') else ''}; wanted "
            "fsdp_version 2 without fsdp_offload_params, as in configs/accelerate/fsdp2.yaml"
        )
    return "zero2" if os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "false" else "fsdp2"


def _flag(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1")


@contextmanager
def sharding_is_ours() -> Iterator[None]:
    """Context that hides the sharding request (FSDP, DeepSpeed) from Accelerate.

    On CPUs Accelerate would silently use plain data parallelism; DeepSpeed's engine would replace backward passes and updates.
    `sharding` implements both modes instead.
    """
    hidden = {name: os.environ.pop(name, None) for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")}
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in hidden.items() if value is not None})
