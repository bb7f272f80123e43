from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from mmssl.curation.dedupe import Exact, Perceptual, difference_hash
from tests.data.make import encode, noise


def hash_of(picture: Image.Image) -> int:
    return difference_hash(np.array(picture.convert("RGB")))


def test_the_hash_is_the_sign_of_the_steps_to_the_right() -> None:
    steps = np.array([[0, 9, 9, 1, 2, 3, 0, 200, 199]] * 7 + [list(range(9))], np.uint8)
    pixels = np.repeat(np.repeat(np.repeat(steps[..., None], 3, 2), 5, 0), 4, 1)  # [40, 36, 3]
    assert difference_hash(pixels) == int("10011010" * 7 + "11111111", 2)


def test_it_survives_size_and_compression_and_tells_pictures_apart() -> None:
    pictures = [Image.fromarray(noise(seed, 96, 96)) for seed in range(12)]
    for picture in pictures:
        smaller = picture.resize((60, 60), Image.Resampling.BICUBIC)
        again = Image.open(io.BytesIO(encode(np.array(smaller), quality=70)))
        assert (hash_of(picture) ^ hash_of(again)).bit_count() <= 4
    pairs = itertools.combinations(map(hash_of, pictures), 2)
    assert min((a ^ b).bit_count() for a, b in pairs) > 10


@pytest.mark.parametrize("distance", [0, 1, 4, 16])
def test_all_hashes_within_the_distance_are_found(distance: int) -> None:
    """As a slow loop over all pairs finds them."""
    random = np.random.default_rng(distance)
    seen: list[int] = []
    near = Perceptual(distance)
    for number in range(300):
        bits = int(random.integers(1, 2**63))
        if seen and number % 2:
            bits = seen[int(random.integers(len(seen)))]
            for place in random.choice(64, int(random.integers(0, distance + 3)), replace=False).tolist():
                bits ^= 1 << place
        expected = any((bits ^ other).bit_count() <= distance for other in seen)
        assert (near.first(bits) is not None) == expected
        near.add(bits, str(number))
        seen.append(bits)


def test_pictures_without_gradient_are_never_alike() -> None:
    near = Perceptual(4)
    blank = difference_hash(np.full((20, 20, 3), 255, np.uint8))
    assert blank == 0
    near.add(blank, "a")
    assert near.first(blank) is None


def test_equal_files_in_all_media_are_a_repeat() -> None:
    exact = Exact()
    assert exact.first({"jpg": b"1", "wav": b"2"}, "a") is None
    assert exact.first({"jpg": b"1"}, "b") is None
    assert exact.first({"wav": b"1", "jpg": b"2"}, "c") is None
    assert exact.first({"wav": b"2", "jpg": b"1"}, "d") == "a"
    assert exact.first({}, "e") is None
    assert exact.first({}, "f") is None
