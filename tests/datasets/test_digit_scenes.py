"""Digit scenes: the same bytes for the same seed, splits that share nothing, and captions that are true of the latents."""

from __future__ import annotations

import io
import json
import re
import tarfile
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from mmssl.core.errors import DataError
from mmssl.data.shards.writer import read_manifest, sha256_of
from mmssl.datasets import digit_scenes
from mmssl.datasets.digit_render import CLASS_NAMES, TEMPLATES, Scene, captions, place, render_image
from mmssl.datasets.digit_scenes import HELD_OUT, load_scans, sample_scene, split_scans, write

SMALL = {"train": 24, "validation": 8, "test": 10, "shards": 3}


def scenes(split: str, count: int = 600) -> list[Scene]:
    return [sample_scene(split, number) for number in range(count)]


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_same_seed_same_bytes_and_other_seed_other_bytes(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a", **SMALL), write(tmp_path / "b", **SMALL)
    assert [shard.sha256 for shard in one.shards] == [shard.sha256 for shard in two.shards]
    other = write(tmp_path / "c", **SMALL, seed=1)
    assert not {shard.sha256 for shard in one.shards} & {shard.sha256 for shard in other.shards}
    with tarfile.open(one.paths[0]) as tar:
        assert {(member.mtime, member.uid, member.gid) for member in tar} == {(0, 0, 0)}


def test_scenes_do_not_depend_on_shards_or_counts(tmp_path: Path) -> None:
    few = write(tmp_path / "a", train=10, validation=0, test=0, shards=2)
    many = write(tmp_path / "b", train=14, validation=3, test=0, shards=5)
    flat = {name: data for path in many.paths for name, data in members(path).items()}
    for path in few.paths:
        for name, data in members(path).items():
            assert flat[name] == data


def test_layout_of_the_folder_and_fields(tmp_path: Path) -> None:
    manifest = write(tmp_path, **SMALL)
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["manifest.json"] + [
        f"{split}/{part:06d}.tar" for split in ("test", "train", "validation") for part in range(3)
    ]
    assert manifest.samples == 42
    assert [shard.samples for shard in manifest.shards] == [8, 8, 8, 2, 3, 3, 3, 3, 4]
    for path, shard in zip(manifest.paths, manifest.shards, strict=True):
        fields = members(path)
        assert path.stat().st_size == shard.bytes
        keys = {name.split(".")[0] for name in fields}
        assert len(keys) == shard.samples
        for key in keys:
            latents = json.loads(fields[f"{key}.json"])
            assert (f"{key}.cls" in fields) == (len(latents["digits"]) == 1)
            if f"{key}.cls" in fields:
                assert int(fields[f"{key}.cls"]) == latents["digits"][0]["label"]
            assert fields[f"{key}.txt"].decode() in latents["captions"]
            assert simplejpeg.decode_jpeg(fields[f"{key}.jpg"]).shape == (64, 64, 3)
            with wave.open(io.BytesIO(fields[f"{key}.wav"])) as sound:
                assert (sound.getframerate(), sound.getnchannels(), sound.getnframes()) == (8000, 2, 8000)


def test_json_holds_all_latents(tmp_path: Path) -> None:
    manifest = write(tmp_path, train=4, validation=0, test=0, shards=1)
    fields = members(manifest.paths[0])
    for number in range(4):
        document = json.loads(fields[f"train-{number:06d}.json"])
        scene = Scene.from_json(document)
        assert scene == sample_scene("train", number)
        again = digit_scenes.encode_scene(scene, f"train-{number:06d}")
        assert again["jpg"] == fields[f"train-{number:06d}.jpg"]
        assert again["wav"] == fields[f"train-{number:06d}.wav"]


def test_a_second_call_keeps_what_is_intact_and_mends_what_is_not(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    first = write(tmp_path, **SMALL, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (42, 42)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    times = {path: path.stat().st_mtime_ns for path in first.paths}
    damaged, missing = first.paths[1], first.paths[4]
    data = bytearray(damaged.read_bytes())
    data[1000] ^= 1
    damaged.write_bytes(bytes(data))
    missing.unlink()
    second = write(tmp_path, **SMALL)
    assert second.shards == first.shards
    for path, shard in zip(second.paths, second.shards, strict=True):
        assert sha256_of(path) == shard.sha256
        if path not in (damaged, missing):
            assert path.stat().st_mtime_ns == times[path]


def test_other_settings_leave_no_old_shard_behind(tmp_path: Path) -> None:
    write(tmp_path, **SMALL)
    manifest = write(tmp_path, train=6, validation=2, test=0, shards=2)
    assert sorted(tmp_path.rglob("*.tar")) == sorted(manifest.paths)
    stored = read_manifest(tmp_path)
    assert stored is not None
    assert stored.complete
    assert stored.samples == 8


def test_refuses_a_folder_of_somebody_else_and_nonsense(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "000000.tar").write_bytes(b"precious")
    with pytest.raises(DataError, match=r"1 tar files that are not in its manifest"):
        write(tmp_path, **SMALL)
    assert (tmp_path / "train" / "000000.tar").read_bytes() == b"precious"
    with pytest.raises(ValueError, match="wanted scenes"):
        write(tmp_path / "new", train=0, validation=0, test=0)
    with pytest.raises(ValueError, match="wanted one of"):
        sample_scene("dev", 0)


def test_nothing_is_left_when_writing_fails(tmp_path: Path) -> None:
    (tmp_path / "train").write_text("a file where a folder should be")
    with pytest.raises(DataError, match="cannot write"):
        write(tmp_path, **SMALL)
    assert not list(tmp_path.rglob("*.partial"))
    stored = read_manifest(tmp_path)
    assert stored is not None
    assert not stored.complete


def test_splits_use_disjoint_scans_of_every_digit() -> None:
    parts = split_scans(0)
    labels = load_scans()[1]
    rows = {split: np.concatenate(by_label) for split, by_label in parts.items()}
    everything = np.concatenate(list(rows.values()))
    assert len(everything) == len(set(everything.tolist())) == 1797
    for split, share in digit_scenes.SPLITS.items():
        for label in range(10):
            assert (labels[parts[split][label]] == label).all()
            assert abs(len(parts[split][label]) - share * (labels == label).sum()) <= 1
    for split in rows:
        used = {digit.scan for scene in scenes(split) for digit in scene.digits}
        assert used <= set(rows[split].tolist())
    for scene in scenes("train", 100):
        assert all(labels[digit.scan] == digit.label for digit in scene.digits)


def test_held_out_pairs_are_absent_from_training_and_present_elsewhere() -> None:
    def pairs(split: str) -> list[tuple[int, ...]]:
        return [tuple(d.label for d in scene.digits) for scene in scenes(split, 2500) if len(scene.digits) == 2]

    assert len(HELD_OUT) == 15
    assert not set(pairs("train")) & HELD_OUT
    assert set(pairs("train")) == {(a, b) for a in range(10) for b in range(10)} - HELD_OUT
    for split in ("validation", "test"):
        found = pairs(split)
        assert set(found) >= HELD_OUT
        assert 0.27 < np.mean([pair in HELD_OUT for pair in found]) < 0.40
    for scene in scenes("test"):
        assert scene.held_out_pair == (tuple(digit.label for digit in scene.digits) in HELD_OUT)


def test_stated_shares() -> None:
    drawn = scenes("train", 2000)
    assert sum(len(scene.digits) == 1 for scene in drawn) == 1000
    assert 0.65 < np.mean([scene.layout == "row" for scene in drawn if len(scene.digits) == 2]) < 0.75
    counts = np.bincount([scene.digits[0].label for scene in drawn if len(scene.digits) == 1], minlength=10)
    assert counts.min() > 60


def test_digits_stand_inside_apart_and_in_clear_contrast() -> None:
    weights = np.array([0.299, 0.587, 0.114]) / 255
    for scene in scenes("train", 1000):
        for digit in scene.digits:
            assert 0.35 <= digit.size <= 0.85
            assert digit.size / 2 - 1e-3 <= digit.x <= 1 - digit.size / 2 + 1e-3
            assert digit.size / 2 - 1e-3 <= digit.y <= 1 - digit.size / 2 + 1e-3
            assert abs(weights @ digit.ink - weights @ scene.paper) > 0.38
            assert 0 <= digit.begin < digit.end <= scene.seconds
        if len(scene.digits) == 2:
            a, b = scene.digits
            along, across = (b.x - a.x, b.y - a.y) if scene.layout == "row" else (b.y - a.y, b.x - a.x)
            assert along >= (a.size + b.size) / 2 - 2e-3
            assert abs(across) < along
            assert max(a.begin, b.begin) > min(a.end, b.end)


@pytest.mark.parametrize("split", ["train", "test"])
def test_captions_are_true_of_the_latents(split: str) -> None:
    seen = set()
    for scene in scenes(split):
        for caption in captions(scene):
            seen.add(re.sub("|".join(CLASS_NAMES), "#", caption).replace("an #", "a #"))
            names = [CLASS_NAMES.index(word) for word in caption.split() if word in CLASS_NAMES]
            assert sorted(names) == sorted(digit.label for digit in scene.digits)
            assert "a eight" not in caption
            if len(scene.digits) == 1:
                check_place(scene, caption)
            else:
                check_relation(scene, caption, names)
    assert len(seen) == 6 + 2 * 9 + 6 + 6  # plain forms, two forms for each of nine places, row, column


def check_place(scene: Scene, caption: str) -> None:
    (digit,) = scene.digits
    words = caption.split()
    assert ("left" in words) <= (digit.x <= 0.4)
    assert ("right" in words) <= (digit.x >= 0.6)
    assert ("top" in words) <= (digit.y <= 0.4)
    assert ("bottom" in words) <= (digit.y >= 0.6)
    if "middle" in words:
        assert abs(digit.x - 0.5) <= 0.05
        assert abs(digit.y - 0.5) <= 0.05


def check_relation(scene: Scene, caption: str, names: list[int]) -> None:
    """The digit that is named first must stand where the sentence puts it."""
    first, second = scene.digits if names[0] == scene.digits[0].label else scene.digits[::-1]
    (word,) = re.findall(r"left|right|above|below|over|under|top", caption.split(" and ")[0])
    truth = {
        "left": first.x < second.x,
        "right": first.x > second.x,
        **dict.fromkeys(("above", "over", "top"), first.y < second.y),
        **dict.fromkeys(("below", "under"), first.y > second.y),
    }
    if names[0] == names[1]:  # two of a kind: some order of them must fit
        assert scene.layout == ("row" if word in ("left", "right") else "column")
    else:
        assert truth[word]


def test_place_keeps_silent_where_words_would_be_arguable() -> None:
    (digit,) = sample_scene("train", 1).digits
    assert place(replace(digit, x=0.5, y=0.5)) == "in the middle"
    assert place(replace(digit, x=0.3, y=0.5)) == "on the left"
    assert place(replace(digit, x=0.7, y=0.3)) == "at the top right"
    assert place(replace(digit, x=0.5, y=0.7)) == "at the bottom"
    assert place(replace(digit, x=0.43, y=0.3)) is None


def test_templates_are_forms_of_captions() -> None:
    (scene,) = [scene for scene in scenes("train", 2) if scene.layout == "single"]
    name = CLASS_NAMES[scene.digits[0].label]
    for template in TEMPLATES:
        assert template.format(name) in captions(scene)


def test_the_picture_shows_ink_where_the_digit_stands() -> None:
    scans = load_scans()[0]
    for scene in scenes("validation", 60):
        picture = render_image(scene, scans, size=96).astype(float)
        inked = np.abs(picture - np.array(scene.paper)).sum(-1)
        for digit in scene.digits:
            other = [one for one in scene.digits if one is not digit]
            rows, columns = np.mgrid[:96, :96] / 96
            mine = (abs(columns - digit.x) < digit.size / 2) & (abs(rows - digit.y) < digit.size / 2)
            theirs = np.zeros_like(mine)
            for one in other:
                theirs |= (abs(columns - one.x) < one.size / 2) & (abs(rows - one.y) < one.size / 2)
            strong = inked > 150
            assert 0.08 < strong[mine].mean() < 0.8
            assert strong[~mine & ~theirs].mean() < 0.01


def test_moving_a_digit_moves_its_ink() -> None:
    scene = next(scene for scene in scenes("train") if scene.layout == "single" and scene.digits[0].size < 0.5)
    digit = replace(scene.digits[0], x=0.3, y=0.5)
    still = replace(scene, digits=(digit,))
    moved = replace(scene, digits=(replace(digit, x=0.3 + 16 / 64),))
    scans = load_scans()[0]
    a, b = (render_image(one, scans).astype(int) for one in (still, moved))
    paper = np.array(scene.paper)
    centre = [(np.abs(image - paper).sum(-1) > 100).nonzero()[1].mean() for image in (a, b)]
    assert centre[1] - centre[0] == pytest.approx(16, abs=0.3)
