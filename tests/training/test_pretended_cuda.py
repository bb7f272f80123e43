"""The promises of `test_cuda` on a pretended device: what lies where, which random state is kept, what is waited for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pretended.cuda import Device, pretended_cuda
from tests.training import test_cuda as real

WHERE_IT_DIFFERS = [pytest.param("fp32", marks=pytest.mark.slow), pytest.param("bf16", marks=pytest.mark.slow), "fp16"]


@pytest.fixture(autouse=True)
def device() -> Iterator[Device]:
    with pretended_cuda() as made:
        yield made


@pytest.mark.parametrize("precision", WHERE_IT_DIFFERS)
def test_resume_is_bit_exact(tmp_path: Path, precision: str) -> None:
    real.test_resume_is_bit_exact_on_a_gpu(tmp_path, precision)


@pytest.mark.parametrize("precision", WHERE_IT_DIFFERS)
def test_cached_gradients_resume_bit_exactly_and_metrics_may_lie_on_the_host(tmp_path: Path, precision: str) -> None:
    real.test_cached_gradients_resume_bit_exactly_on_a_gpu(tmp_path, precision)


test_each_micro_batch_draws_the_same_numbers_twice = real.test_each_micro_batch_draws_the_same_numbers_twice_on_a_gpu
test_overflow_in_half_precision_moves_nothing = real.test_overflow_in_half_precision_moves_nothing_and_lowers_the_scale
test_trimmed_texts_are_packed_texts_on_the_cpu = real.test_trimmed_texts_on_a_gpu_are_packed_texts_on_the_cpu
