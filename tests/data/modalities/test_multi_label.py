from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch

from mmssl.data.kernel import Operand
from mmssl.data.modalities.multi_label import MultiLabelConfig
from mmssl.data.modality import DecodeError


def npy(values: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(values))
    return file.getvalue()


def test_vectors_of_any_type_become_whole_numbers() -> None:
    modality = MultiLabelConfig().build("labels")
    assert modality.extensions == ("npy",)
    for values in ([0, 1, 1], [False, True, True], [0.0, 1.0, 1.0]):
        assert torch.equal(modality.view("eval")(modality.decode(npy(values), "npy"), {}), torch.tensor([0, 1, 1]))
    assert modality.view("eval").blank().shape == (0,)


@pytest.mark.parametrize("values", [[0, 2], [0.5], [[0, 1]], [-1]])
def test_other_vectors_are_refused(values: Any) -> None:
    with pytest.raises(DecodeError, match="undecodable"):
        MultiLabelConfig().build("labels").decode(npy(values), "npy")


def test_a_mixture_has_the_classes_of_both() -> None:
    modality = MultiLabelConfig().build("labels")
    mixed = modality.kernels["mixup"].run(
        np.array([0, 1, 0], np.uint8),
        {"weight": 0.3},
        Operand("labels", modality, partner=np.array([1, 0, 0], np.uint8)),
    )
    assert mixed.tolist() == [1, 1, 0]
