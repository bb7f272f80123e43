"""Every encoder on a pretended CUDA device: features and gradients of the CPU, augmented and checkpointed; bfloat16 runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.encoders.kinds import KINDS, build, inputs
from tests.encoders.test_contract import augmented
from tests.pretended.cuda import pretended_cuda

NOT_CHECKPOINTED = {"timm_resnet", "hf_clap_audio", "hf_clap_audio_fused"}
"""They have batch normalisation."""
NOT_DETERMINISTIC = {"hf_clap_audio", "hf_clap_audio_fused"}
"""Their library resizes what has a gradient, for which CUDA has no deterministic kernel."""
QUICK = {
    "vit",
    "resnet",
    "text_transformer",
    "audio_transformer",
    "series_conv",
    "video_space_time",
    "hf_clap_audio_fused",
}


def outcome(name: str, folder: Path, device: str) -> dict[str, Tensor]:
    """What the encoder gives in training, its gradients, and what it gives in evaluation."""
    changes: dict[str, Any] = augmented(name)
    if "checkpointing" in type(KINDS[name]).model_fields and name not in NOT_CHECKPOINTED:
        changes |= {"checkpointing": True}
    encoder = build(name, folder, **changes).to(device).train()
    x = inputs(name).to(device)
    torch.manual_seed(3)
    features = encoder(x)
    found = {"pooled": features.pooled} | ({} if features.tokens is None else {"tokens": features.tokens})
    sum(
        (value * torch.linspace(-1, 1, value.numel()).view_as(value).to(value)).sum() for value in found.values()
    ).backward()  # type: ignore[union-attr]
    found |= {key: p.grad for key, p in encoder.named_parameters() if p.grad is not None}
    with torch.no_grad():
        found |= {"evaluated": encoder.eval()(x, pooled_only=True).pooled, "prepared": encoder.prepare(x)}
        with torch.autocast(device, dtype=torch.bfloat16):
            rough = encoder(x, pooled_only=True).pooled.float()
    assert F.cosine_similarity(rough, found["evaluated"]).min() > 0.99
    assert {value.device.type for value in found.values()} == {device}
    return {key: value.detach().cpu() for key, value in found.items()}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in KINDS])
def test_features_and_gradients_are_those_of_the_cpu(name: str, tmp_path: Path) -> None:
    expected = outcome(name, tmp_path, "cpu")
    with pretended_cuda(deterministic=name not in NOT_DETERMINISTIC):
        found = outcome(name, tmp_path, "cuda")
    assert found.keys() == expected.keys()
    for key, value in found.items():
        largest = float(expected[key].abs().max())
        torch.testing.assert_close(
            value, expected[key], atol=1e-4 * largest, rtol=1e-3, msg=lambda w, k=key: f"{k}: {w}"
        )
