"""RandAugment against torchvision's, operation by operation, and its draws."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modalities.views.rand_augment import OPERATIONS, RandAugment, RandAugmentConfig, apply_operation
from tests.data.make import noise

THEIRS = {
    "identity": "Identity",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "color": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "auto_contrast": "AutoContrast",
    "equalize": "Equalize",
}


def build(**changes: Any) -> RandAugment:
    return RandAugmentConfig.model_validate_json(json.dumps(changes)).build(64)


def picture() -> torch.Tensor:
    return torch.from_numpy(noise(3, 64, 80) // 2 + 30).permute(2, 0, 1).contiguous()


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("magnitude", [0, 9, 13, 30])
def test_operations_are_torchvisions(name: str, magnitude: int) -> None:
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import RandAugment as Theirs

    theirs, x = Theirs(), picture()
    strengths, signed = theirs._AUGMENTATION_SPACE[THEIRS[name]]
    listed = strengths(31, 64, 80)
    for sign in (1, -1) if signed else (1,):
        amount = 0.0 if listed is None else sign * float(listed[magnitude])
        wanted = theirs._apply_image_or_video_transform(
            x, THEIRS[name], amount, InterpolationMode.NEAREST, {torch.Tensor: [0.0], "others": [0.0]}
        )
        view = build(among=[name], magnitude=magnitude)
        draws = [view.draw(noise(0, 64, 64), np.random.default_rng(seed))["operations"][0] for seed in range(16)]
        assert {draw[0] for draw in draws} == {name}
        assert len({draw[1] for draw in draws}) == (2 if signed and magnitude else 1)
        drawn = next(draw[1] for draw in draws if not signed or magnitude == 0 or (draw[1] > 0) == (sign > 0))
        made = apply_operation(x, name, drawn, 0)  # type: ignore[arg-type]
        assert made.dtype == torch.uint8
        assert (made.int() - wanted.int()).abs().max() <= 1
        assert ((made != wanted).float().mean()) < 0.01
        if magnitude == 30 and name != "identity":
            assert (made != x).float().mean() > 0.05, "it does something"


def test_all_operations_come_equally_often_and_twice() -> None:
    view, rng = build(), np.random.default_rng(0)
    draws = [view.draw(noise(0, 64, 64), rng)["operations"] for _ in range(3000)]
    counts = {name: sum(one[0] == name for draw in draws for one in draw) for name in OPERATIONS}
    assert list(counts.values()) == pytest.approx([6000 / 14] * 14, rel=0.2)
    assert all(len(draw) == 2 for draw in draws)
    assert any(draw[0][0] == draw[1][0] for draw in draws)
    amounts = [one[1] for draw in draws for one in draw if one[0] == "rotate"]
    assert set(amounts) == {9.0, -9.0}
    assert np.mean(amounts) == pytest.approx(0, abs=1.5)


def test_it_replays_and_follows_the_crop() -> None:
    modality = ImageConfig.model_validate_json(
        '{"size": 32, "views": {"strong": {"kind": "rand_augment", "operations": 3, "magnitude": 15}}}'
    ).build("image")
    view, pixels = modality.views["strong"], noise(4, 50, 70)
    seen = set()
    for seed in range(20):
        parameters = view.draw(pixels, np.random.default_rng(seed))
        x = view(pixels, parameters)
        assert torch.equal(x, view(pixels.copy(), json.loads(json.dumps(parameters))))
        assert view.draw(pixels, np.random.default_rng(seed)) == parameters
        assert (x.shape, x.dtype) == (view.blank().shape, torch.uint8)
        assert x.is_contiguous()
        seen.add(x.numpy().tobytes())
    assert len(seen) == 20
    plain = {"box": [0, 0, 50, 50], "flip": False, "operations": []}
    assert torch.equal(view(pixels, plain | {"flip": True}), view(pixels, plain).flip(-1))
    both = plain | {"operations": [["posterize", 2], ["brightness", 0.5]]}
    turned = plain | {"operations": [["brightness", 0.5], ["posterize", 2]]}
    assert not torch.equal(view(pixels, both), view(pixels, turned))


def test_fill_comes_in_from_outside() -> None:
    x = torch.full((3, 40, 40), 200, dtype=torch.uint8)
    made = apply_operation(x, "translate_x", 0.25, 17)
    assert (made[:, :, :10] == 17).all()
    assert (made[:, :, 10:] == 200).all()


@pytest.mark.parametrize(
    "text", ['{"magnitude": 31}', '{"operations": 0}', '{"among": []}', '{"among": ["invert"]}', '{"fill": 256}']
)
def test_configs_that_mean_nothing(text: str) -> None:
    with pytest.raises(ValidationError):
        RandAugmentConfig.model_validate_json(text)
