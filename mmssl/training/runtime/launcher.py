"""What a launcher (torchrun, `accelerate launch`) asks for in the environment, and what of it is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from mmssl.core.errors import RecipeError

Precision = Literal["fp32", "bf16", "fp16"]
Parallel = Literal["auto", "ddp", "zero2", "fsdp2"]

_BLOCKS = "encoders are split block by block over all processes: leave it out"
_REFUSED = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1", "gradient accumulation in so many steps", "set the recipe's step"),
    "ACCELERATE_GRADIENT_CLIPPING": ("", "gradients clipped to that norm", "set the recipe's clip_norm"),
    "ACCELERATE_DYNAMO_BACKEND": ("no", "torch.compile with that backend", "set the recipe's compile"),
    "ACCELERATE_USE_MEGATRON_LM": ("false", "Megatron-LM", "set the recipe's parallel"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("false", "a mesh of processes", "set the recipe's parallel"),
    "ACCELERATE_DEEPSPEED_CONFIG_FILE": ("", "what a file of DeepSpeed says", "set the same in the recipe"),
    "FSDP_SHARDING_STRATEGY": ("full_shard", "another strategy of FSDP 1", "set fsdp_reshard_after_forward"),
    "FSDP_IGNORED_MODULES": ("", "modules that are not split", _BLOCKS),
    "FSDP_ACTIVATION_CHECKPOINTING": (
        "false",
        "activation checkpointing",
        "set checkpointing in the recipe's encoders",
    ),
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": (
        "false",
        "activations that leave the device",
        "there is no such thing here",
    ),
}
"""Settings that would have no effect, or one behind the recipe's back: variable -> (harmless value, what it asks for, remedy)."""


def check_launcher(precision: Precision) -> None:
    """Refuse settings of `accelerate launch` that this project decides in the recipe.

    What is not refused is followed (devices, processes, addresses, affinity, FSDP2, ZeRO-2), or says only how FSDP splits, loads
    and prefetches, which is done in another way here and gives the same numbers.

    Raises:
        RecipeError: names the setting, and where to make it.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", precision):
        raise RecipeError(
            f"the launcher asks for mixed precision {asked!r}, and the recipe for {precision!r}: "
            "the recipe decides; set its precision, and launch without --mixed_precision"
        )
    for variable, (harmless, wish, remedy) in _REFUSED.items():
        value = os.environ.get(variable, harmless)
        if value.lower() not in (harmless, "", "none"):
            raise RecipeError(
                f"the launcher asks for {wish} ({variable}={value}), which is not its to decide: {remedy}"
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
    """Whether the recipe or the launcher asks for the CPU where there may be other devices.

    Raises:
        RecipeError: they contradict each other.
    """
    launched = _flag("ACCELERATE_USE_CPU")
    if launched and device == "cuda":
        raise RecipeError("device: the recipe asks for 'cuda' and the launcher for the CPU: leave it to one of them")
    return launched or device == "cpu"


def asked_parallel(asked: Parallel) -> Literal["ddp", "zero2", "fsdp2"]:
    """What several processes share, from the recipe and the launcher's environment.

    Raises:
        RecipeError: they contradict each other, or the launcher asks for what there is not.
    """
    launched = _launched_parallel()
    if asked == "auto":
        return launched or "ddp"
    if launched not in (None, asked):
        raise RecipeError(
            f"parallel: the recipe asks for {asked!r} and the launcher for {launched!r}: leave it to one of them"
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
    """Hide from Accelerate that sharding is wanted.

    On CPUs it would give plain data parallelism instead, in silence; DeepSpeed's engine would take backward passes and updates
    over, and with them everything that makes a step exact. Both wants are met by `sharding`.
    """
    hidden = {name: os.environ.pop(name, None) for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")}
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in hidden.items() if value is not None})
