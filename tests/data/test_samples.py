"""The one way from shards to values: what is read, what is decoded, and who is blamed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmssl.core.errors import DataError
from mmssl.data.modality import DecodeError, Modality, View
from mmssl.data.samples import BadSample, load, read_sample
from mmssl.data.shards.index import ShardIndex
from mmssl.data.timeline import Extent, Window
from tests.data.make import write


class Whole(View):
    """The value as it is."""

    def draw(self, value: str, rng: np.random.Generator) -> dict[str, Any]:
        return {}

    def __call__(self, value: str, parameters: Mapping[str, Any]) -> Tensor:
        return torch.tensor(len(value))

    def blank(self) -> Tensor:
        return torch.tensor(0)


class Letters(Modality):
    """Text with a letter a second, and a frame every three: "fail" in it fails to decode, "silent" is a member without letters.

    Attributes:
        decoded: windows that were asked for.
    """

    def __init__(self, name: str, *extensions: str, frames: bool = False) -> None:
        super().__init__(name, extensions, {"eval": Whole()})
        self.frames = frames
        self.decoded: list[Window | None] = []

    def extent(self, data: bytes, extension: str) -> Extent:
        if data == b"silent":
            raise DecodeError("missing", "no letters")
        return Extent(float(len(data)))

    def frame_start(self, data: bytes, moment: float) -> float | None:
        if b"lost" in data:
            raise DecodeError("undecodable", "no frame found")
        return moment // 3 * 3 if self.frames else None

    def decode(self, data: bytes, extension: str, window: Window | None = None) -> str:
        self.decoded.append(window)
        self.extent(data, extension)
        if b"fail" in data:
            raise DecodeError("undecodable", "it says fail")
        if data == b"foreign":
            raise DataError("pip install a decoder")
        start, length = (0, len(data)) if window is None else map(int, window)
        return data.decode()[start : start + length]


@pytest.fixture
def modalities() -> dict[str, Letters]:
    return {"first": Letters("first", "a", "alt"), "second": Letters("second", "b", frames=True)}


def shard(path: Path, **members: str) -> ShardIndex:
    return ShardIndex.open([write(path / "0.tar", [{"__key__": "one", **members}])])


def test_a_sample_is_read_once_and_decoded_as_asked(
    tmp_path: Path, modalities: dict[str, Letters], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = shard(tmp_path, a="abcdef", b="uvwxyz", other="never read", alt="second choice")
    asked: list[set[str]] = []
    take = ShardIndex.read
    monkeypatch.setattr(ShardIndex, "read", lambda self, n, wanted: asked.append(set(wanted)) or take(self, n, wanted))
    encoded = read_sample(index, 0, modalities)
    assert encoded.extents == {"first": (6.0, 0.0), "second": (6.0, 0.0)}
    assert encoded.frame_start(5.5) == 3.0, "of the first modality that has frames"
    assert modalities["first"].decoded == []
    assert encoded.decode({"second": (1.0, 2.0)}, ["second"]).values == {"second": "vw"}
    assert modalities["first"].decoded == []
    assert encoded.decode({"first": (4.0, 9.0)}).values == {"first": "ef", "second": "uvwxyz"}
    assert asked == [{"a", "alt", "b"}]
    sample = load(index, 0, modalities, windows={"first": (0.0, 1.0)})
    assert (sample.key, sample.index, sample.values, sample.record) == (
        "one",
        0,
        {"first": "a", "second": "uvwxyz"},
        (),
    )


def test_without_frames_a_moment_is_a_start(tmp_path: Path, modalities: dict[str, Letters]) -> None:
    assert read_sample(shard(tmp_path, a="abcdef"), 0, {"first": modalities["first"]}).frame_start(5.5) == 5.5


STEPS: dict[str, Callable[[ShardIndex, Mapping[str, Modality]], Any]] = {
    "read": lambda index, modalities: read_sample(index, 0, modalities),
    "extents": lambda index, modalities: read_sample(index, 0, modalities).extents,
    "frame_start": lambda index, modalities: read_sample(index, 0, modalities).frame_start(1.0),
    "decode": lambda index, modalities: load(index, 0, modalities),
}


@pytest.mark.parametrize(
    ("members", "step", "blamed"),
    [
        ({"a": "abc"}, "read", ("second", "missing")),
        ({"alt": "fail", "b": "b"}, "decode", ("alt", "undecodable")),
        ({"a": "abc", "b": "silent"}, "extents", ("b", "missing")),
        ({"a": "abc", "b": "silent"}, "decode", ("b", "missing")),
        ({"a": "abc", "b": "lost"}, "frame_start", ("b", "undecodable")),
    ],
)
def test_the_member_at_fault_is_named(
    tmp_path: Path, modalities: dict[str, Letters], members: dict[str, str], step: str, blamed: tuple[str, str]
) -> None:
    index = shard(tmp_path, **members)
    with pytest.raises(BadSample) as caught:
        STEPS[step](index, modalities)
    assert (caught.value.fault.key, caught.value.fault.field, caught.value.fault.reason) == ("one", *blamed)


def test_a_decoder_that_is_not_installed_is_no_fault_of_the_sample(
    tmp_path: Path, modalities: dict[str, Letters]
) -> None:
    with pytest.raises(DataError, match=r"^sample 'one', \.alt: pip install a decoder$"):
        load(shard(tmp_path, alt="foreign", b="b"), 0, modalities)


@pytest.mark.parametrize("members", [{"a": "abc"}, {"a": "abc", "b": "silent"}])
def test_an_optional_modality_may_be_missing_from_the_sample_or_within_its_member(
    tmp_path: Path, modalities: dict[str, Letters], members: dict[str, str]
) -> None:
    encoded = read_sample(shard(tmp_path, **members), 0, modalities, ["second"])
    assert encoded.extents.keys() == {"first"}
    assert encoded.decode().values == {"first": "abc"}


def test_an_optional_modality_must_not_be_damaged(tmp_path: Path, modalities: dict[str, Letters]) -> None:
    with pytest.raises(BadSample, match="it says fail"):
        load(shard(tmp_path, a="abc", b="fail"), 0, modalities, ["second"])
