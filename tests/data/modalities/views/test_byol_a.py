"""Augmentation of BYOL-A: mixing of spectrograms against a loop, crops against interpolation, windows, partners, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from mmssl.core.sample import Partner
from mmssl.core.seeding import generator
from mmssl.data.draws import make_views
from mmssl.data.modalities.audio import AudioConfig, AudioModality
from mmssl.data.modalities.views.byol_a import ByolAView, log_mix_exp, resize_crops
from mmssl.data.shards.index import ShardIndex
from mmssl.data.stream.batches import TrainStream
from mmssl.data.stream.workers import Workers
from mmssl.data.synchronized.chain import Synchronized
from mmssl.data.synchronized.partners import replay_partners
from mmssl.data.synchronized.time import TimeCrop
from mmssl.datasets.digit_render import to_wav
from mmssl.encoders.audio_transformer import AudioTransformer, AudioTransformerConfig
from mmssl.encoders.spectrogram import MelConfig
from tests.contracts import toys
from tests.data.make import write

RATE = 8000
NEEDS = {"audio": {"mixed": 2}}


def modality(**settings: Any) -> AudioModality:
    views = {"mixed": {"kind": "byol_a", **settings}}
    config = {"rate": RATE, "seconds": 0.1, "channels": "mono", "views": views}
    return AudioConfig.model_validate_json(json.dumps(config)).build("audio")


def the_view(**settings: Any) -> ByolAView:
    view = modality(**settings).view("mixed")
    assert isinstance(view, ByolAView)
    return view


def encoder() -> AudioTransformer:
    front_end = MelConfig(rate=RATE, window=128, hop=80, mels=8, mean=-5.0, std=3.0)
    config = AudioTransformerConfig(front_end=front_end, seconds=0.1, patch_size=(4, 5), width=8, depth=1, heads=1)
    return config.build().eval()


def waves(*seconds: float) -> list[np.ndarray]:
    return [generator("wave", n).normal(0, 0.1, (1, round(RATE * s))).astype(np.float32) for n, s in enumerate(seconds)]


def test_logarithms_are_mixed_as_what_they_are_logarithms_of() -> None:
    random = torch.Generator().manual_seed(0)
    x, other = torch.randn(2, 3, 1, 4, 5, generator=random, dtype=torch.float64)
    shares = [0.0, 0.25, 0.4]
    made = log_mix_exp(x, other, torch.tensor(shares, dtype=torch.float64))
    for row, share in enumerate(shares):
        for one, a, b in zip(made[row].flatten(), x[row].flatten(), other[row].flatten(), strict=True):
            assert one.item() == pytest.approx(math.log((1 - share) * math.exp(a) + share * math.exp(b)), rel=1e-12)
    assert torch.equal(made[0], x[0]), "a share of nothing changes nothing"
    far = log_mix_exp(torch.tensor([[200.0]]), torch.tensor([[-300.0]]), torch.tensor([0.5]))
    assert far.item() == pytest.approx(200 + math.log(0.5)), "nothing overflows"


CANVAS = (8, 15)
BOXES = [
    [0, 2, 8, 10],
    [0, 0, 8, 15],
    [3, 4, 5, 6],
    [2, 0, 4, 9],
    [0, 7, 1, 1],
    [7, 14, 1, 1],
    [1, 6, 7, 9],
    [0, 0, 5, 2],
]


def test_crops_are_resized_as_by_interpolation() -> None:
    x = torch.randn(len(BOXES), 2, 8, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    made = resize_crops(x, torch.tensor(BOXES), CANVAS)
    for row, (top, left, height, width) in enumerate(BOXES):
        canvas = F.pad(x[row], (2, 3))  # in the middle, as far as it goes
        crop = canvas[None, :, top : top + height, left : left + width]
        expected = F.interpolate(crop, size=(8, 10), mode="bicubic", align_corners=True)[0]
        torch.testing.assert_close(made[row], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(made[0], x[0], rtol=0, atol=1e-12)
    assert not made[5].any(), "beyond the spectrogram all is zero"


def test_a_higher_canvas_has_the_spectrogram_in_its_middle() -> None:
    x = torch.randn(1, 1, 8, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    made = resize_crops(x, torch.tensor([[0, 0, 12, 10]]), (12, 10))
    expected = F.interpolate(F.pad(x, (0, 0, 2, 2)), size=(8, 10), mode="bicubic", align_corners=True)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)


def test_crops_have_the_sizes_and_places_of_the_recipe() -> None:
    view, (wave,) = the_view(filters=[0.5, 1.2], frames=[0.8, 1.6], mixup=0.2), waves(0.3)
    drawn = [view.draw((wave, Partner(3, (), wave)), generator("draw", n)) for n in range(400)]
    sizes = np.array([one["crop"] for one in drawn])
    for column, (low, high) in enumerate([(0.5, 1.2), (0.8, 1.6), (0.0, 1.0), (0.0, 1.0)]):
        assert low <= sizes[:, column].min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < sizes[:, column].max() <= high
    for key, largest in (("share", 0.2), ("start", wave.shape[1] - 800), ("partner_start", wave.shape[1] - 800)):
        values = [one[key] for one in drawn]
        assert 0 <= min(values) < 0.02 * largest
        assert 0.98 * largest < max(values) <= largest
    assert drawn[0]["partner"] == 3
    assert drawn[0]["partner_record"] == []
    assert "partner" not in view.draw((wave, None), generator("draw", 0))


def test_the_finished_view_is_that_of_a_loop_over_the_batch() -> None:
    view, model = the_view(), encoder()
    sounds = waves(0.1, 0.25, 0.05, 0.2)
    pairs = [(one, Partner(0, (), other)) for one, other in zip(sounds, sounds[::-1], strict=True)]
    drawn: list[Any] = [view.draw(pair, generator("loop", n)) for n, pair in enumerate(pairs)]
    raw = torch.stack([view(pair, one) for pair, one in zip(pairs, drawn, strict=True)])
    assert (raw.dtype, raw.shape) == (torch.int16, (4, 2, 1, 800))
    made = view.finish(raw, [*drawn[:3], None], model)
    assert made.shape == (4, 1, 8, 11)
    for row in range(3):
        own, other = (model.prepare(raw[row, n][None])[0] for n in range(2))
        share, (height, width, top, left) = drawn[row]["share"], drawn[row]["crop"]
        mixed = ((1 - share) * own.exp() + share * other.exp()).log()
        h, w = min(int(height * 8), 8), min(int(width * 11), 16)
        i, j = int(top * (8 - h + 1)), int(left * (16 - w + 1))
        crop = F.pad(mixed, (2, 3))[None, :, i : i + h, j : j + w]
        expected = F.interpolate(crop, size=(8, 11), mode="bicubic", align_corners=True)[0]
        torch.testing.assert_close(made[row], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made[3], model.prepare(raw[3, :1])[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(made).pooled[3], model(raw[3:, 0]).pooled[0])


def test_without_a_partner_nothing_is_mixed_in() -> None:
    view, model, (wave,) = the_view(filters=[1.0, 1.0], frames=[1.0, 1.0], canvas=[1.0, 1.0]), encoder(), waves(0.1)
    drawn = view.draw((wave, None), generator("alone"))
    raw = view((wave, None), drawn)[None]
    assert not raw[0, 1].any()
    torch.testing.assert_close(view.finish(raw, [drawn], model), model.prepare(raw[:, 0]))
    assert view.finish(view.blank()[None], [], model).shape == (1, 1, 8, 11)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    """Six sounds whose values are their numbers; the last is damaged."""
    records = [{"__key__": f"{n}", "wav": to_wav(np.full((1600, 1), n / 10), RATE)} for n in range(6)]
    records[5]["wav"] = b"no sound"
    return ShardIndex.open([write(tmp_path_factory.mktemp("sounds") / "0.tar", records)])


def stream(index: ShardIndex, workers: int = 0, **options: Any) -> TrainStream:
    return TrainStream(
        index,
        {"audio": modality()},
        NEEDS,
        batch_size=3,
        seed=1,
        on_error="substitute",
        max_failures=1.0,
        workers=Workers(workers, start_method="fork") if workers else Workers(0),
        synchronized=(TimeCrop(seconds=0.15),),
        **options,
    )


def test_partners_are_other_samples_and_drawn_by_identity(index: ShardIndex) -> None:
    alone, beside = stream(index), stream(index, workers=2)
    try:
        seen: set[tuple[int, int]] = set()
        apart = 0
        for _ in range(60):
            batch, same = next(alone), next(beside)
            assert batch.records == same.records
            partners = [
                [(drawn or {}).get("partner") for drawn in batch.parameters("audio", f"mixed{n}")] for n in range(2)
            ]
            apart += sum(None not in pair and pair[0] != pair[1] for pair in zip(*partners, strict=True))
            for view in ("mixed0", "mixed1"):
                assert torch.equal(batch["audio"][view], same["audio"][view])
                for row, drawn in enumerate(batch.parameters("audio", view)):
                    assert drawn is not None
                    own, other = (round(int(batch["audio"][view][row, n, 0, 0]) / 3276.8) for n in range(2))
                    assert own == int(batch.index[row])
                    if "partner" in drawn:
                        assert other == drawn["partner"]
                        seen.add((int(batch.index[row]), drawn["partner"]))
                    else:
                        assert other == 0, "the damaged one was drawn, and is no fault of this sample"
        assert seen == {(one, other) for one in range(5) for other in range(5) if one != other}
        assert apart > 60, "of 180 two views have the same partner by chance alone"
    finally:
        alone.close()
        beside.close()


def test_a_resumed_stream_draws_the_same(index: ShardIndex) -> None:
    first, again = stream(index), stream(index)
    next(first)
    state = first.state_dict()
    wanted = next(first)
    again.load_state_dict(state)
    found = next(again)
    assert found.records == wanted.records
    assert torch.equal(found["audio"]["mixed1"], wanted["audio"]["mixed1"])


def test_views_are_made_again_from_records(index: ShardIndex) -> None:
    batch, synchronized = next(stream(index)), Synchronized((TimeCrop(seconds=0.15),), {"audio": modality()})
    for row, number in enumerate(batch.index.tolist()):
        record = batch.records[row]
        sample = synchronized.replay(index, number, record["synchronized"])
        partners = replay_partners(synchronized, index, sample, NEEDS, record["views"])
        made = make_views(sample, synchronized.modalities, NEEDS, record["views"], partners)
        for view, x in batch["audio"].items():
            assert torch.equal(made["audio"][view], x[row])


def test_a_single_sample_has_no_partner(tmp_path: Path) -> None:
    index = ShardIndex.open(
        [write(tmp_path / "0.tar", [{"__key__": "0", "wav": to_wav(np.ones((1600, 1)) / 4, RATE)}])]
    )
    single = TrainStream(index, {"audio": modality()}, NEEDS, batch_size=1, seed=0)
    drawn = next(single).parameters("audio", "mixed0")[0]
    assert drawn is not None
    assert "partner" not in drawn


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValidationError, match="set channels: mono"):
        AudioConfig(rate=RATE, seconds=0.1, views={"mixed": {"kind": "byol_a"}})  # type: ignore[dict-item]
    for wrong in ({"mixup": 1.0}, {"filters": [1.5, 0.6]}, {"canvas": [0.5, 1.0]}):
        with pytest.raises(ValidationError):
            modality(**wrong)
    with pytest.raises(ValueError, match="of kind audio_transformer or audio_resnet, and got Words"):
        the_view().finish(the_view().blank()[None], [None], toys.Words())
