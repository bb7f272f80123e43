from __future__ import annotations

import numpy as np
import pytest
import torch

from mmssl.data.modalities.label import LabelConfig
from mmssl.data.modality import DecodeError


def test_labels_are_whole_numbers() -> None:
    modality = LabelConfig.model_validate_json("{}").build("label")
    assert modality.extensions == ("cls",)
    assert [modality.decode(data, "cls") for data in (b"7", b" 12\n", b"0")] == [7, 12, 0]
    for kind in ("value", "eval"):
        x = modality.views[kind](7, modality.views[kind].draw(7, np.random.default_rng(0)))
        assert torch.equal(x, torch.tensor(7))
        assert x.dtype == torch.int64
        assert modality.views[kind].blank().item() == -1


@pytest.mark.parametrize("data", [b"", b"-1", b"1.5", b"cat", b"1 2", "٣".encode(), b"9" * 30])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError, match="undecodable"):
        LabelConfig().build("label").decode(data, "cls")
