"""SimCLR's augmentation of a batch on its device: the views that the loader makes, sample by sample."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmssl.core.batch import Batch, Records
from mmssl.core.seeding import generator
from mmssl.data.modalities.views.batch_colours import augment_batch
from mmssl.data.modalities.views.image import SimClrView, SimClrViewConfig
from mmssl.training.steps.prefetch import DeviceStream
from tests.contracts import toys
from tests.training.toys import Stream, make_learner

ENCODER = toys.Patches()
ALWAYS: dict[str, Any] = {"jitter": 1.0, "grayscale": 0.3, "blur": 0.6, "solarize": 0.4}


def pictures(count: int) -> list[np.ndarray]:
    """Smooth colours with some noise, of several sizes; one has black, white and grey alone."""
    found = []
    for number in range(count):
        random = generator("picture", number)
        coarse = random.integers(0, 256, (4, 5, 3)).repeat(10 + number % 3, 0).repeat(9, 1)
        noisy = (coarse + random.normal(0, 8, coarse.shape)).clip(0, 255).astype(np.uint8)
        found.append(noisy if number else noisy[..., :1].repeat(3, 2) // 128 * 255)
    return found


def both(count: int, **changes: Any) -> tuple[list[dict[str, Any]], Tensor, Tensor, SimClrView]:
    """What is drawn, the loader's views, the views that it leaves unfinished, and what finishes them."""
    whole, half = (SimClrViewConfig(**{**ALWAYS, **changes}, where=where).build(24) for where in ("loader", "device"))
    drawn = [half.draw(picture, generator("draw", n)) for n, picture in enumerate(pictures(count))]
    assert drawn == [whole.draw(picture, generator("draw", n)) for n, picture in enumerate(pictures(count))]
    made = [torch.stack([view(x, p) for x, p in zip(pictures(count), drawn, strict=True)]) for view in (whole, half)]
    return drawn, made[0], made[1], half


def test_views_are_those_of_the_loader_up_to_a_level() -> None:
    """Operations follow each other, and round: a level may grow, in few pixels."""
    drawn, wanted, unfinished, view = both(40)
    given = unfinished.clone()
    made = view.finish(unfinished, drawn, ENCODER)
    assert torch.equal(unfinished, given), "the batch itself stays"
    assert made.dtype == torch.uint8
    different = (made.int() - wanted.int()).abs()
    assert float((different > 1).float().mean()) < 0.002
    assert int(different.max()) <= 12  # a hue near grey, after contrast
    assert float((unfinished.int() - wanted.int()).abs().float().mean()) > 20


@pytest.mark.parametrize(("name", "levels"), [("brightness", 0), ("contrast", 1), ("saturation", 1), ("hue", 1)])
def test_each_change_is_torchvisions(name: str, levels: int) -> None:
    others = {other: 0.0 for other in ("brightness", "contrast", "saturation", "hue") if other != name}
    drawn, wanted, unfinished, view = both(20, **others, grayscale=0.0, blur=0.0, solarize=0.0)
    assert all([kind for kind, _ in record["jitter"]] == [name] for record in drawn)
    assert int((view.finish(unfinished, drawn, ENCODER).int() - wanted.int()).abs().max()) <= levels


@pytest.mark.parametrize(("name", "levels"), [("grayscale", 0), ("blur", 1), ("solarize", 0)])
def test_each_operation_is_the_loaders(name: str, levels: int) -> None:
    off = dict.fromkeys(("jitter", "grayscale", "blur", "solarize"), 0.0)
    drawn, wanted, unfinished, view = both(20, **{**off, name: 0.5})
    assert not torch.equal(wanted, unfinished)
    assert int((view.finish(unfinished, drawn, ENCODER).int() - wanted.int()).abs().max()) <= levels


def test_absent_and_unchanged_pictures_stay_as_they_are() -> None:
    drawn, _, unfinished, view = both(6, jitter=0.0, grayscale=0.0, blur=0.0, solarize=0.0)
    assert torch.equal(view.finish(unfinished, drawn, ENCODER), unfinished)
    assert torch.equal(augment_batch(unfinished, [None] * 6, 0.1, 128), unfinished)


def test_a_stream_finishes_the_views_of_its_kind_on_the_device() -> None:
    drawn, wanted, unfinished, view = both(8)
    records = Records(json.dumps({"views": {"a": {"augmented0": record}}}) for record in drawn)
    views = {"a": {"augmented0": unfinished, "plain0": unfinished, "augmented.geometry0": torch.zeros(8, 5)}}

    class One(Stream):
        def __iter__(self) -> Iterator[Batch]:
            yield Batch(views, torch.arange(8), records=records)

    (batch,) = DeviceStream(One(), make_learner(), torch.device("cpu"), {"a": {"augmented": view}})
    assert torch.equal(batch["a"]["augmented0"], view.finish(unfinished, drawn, ENCODER))
    assert float((batch["a"]["augmented0"].int() - wanted.int()).abs().float().mean()) < 0.2
    assert batch["a"]["plain0"] is unfinished
