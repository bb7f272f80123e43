"""Filtering by the similarity of pairs: a scorer with known cosines, and who is kept by threshold, probability and share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmssl.core.errors import DataError, RecipeError
from mmssl.core.sample import Fault
from mmssl.curation.filter import LEDGER, FilterReport, filter_shards
from mmssl.curation.filter_choice import FilterConfig
from mmssl.curation.filter_similarity import SIMILARITIES, PairScorer
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.remote import CacheConfig
from mmssl.data.shards.writer import read_manifest
from tests.curation.test_check import sample, shard
from tests.data.servers import serve

NO_SCORE = -9
COSINES = {
    "s000": 0.5,
    "s001": 0.25,
    "s002": -0.125,
    "s003": 0.25,
    "s004": 0.75,
    "s005": 0.0,
    "s006": 0.25,
    "s007": 1.0,
}


def scorer(cosines: Mapping[str, float] = COSINES, *, calibrated: bool = False) -> PairScorer:
    """A scorer that knows the cosine of each key, and reads the caption of each sample, as a model would."""

    def score(index: ShardIndex, numbers: Sequence[int]) -> tuple[np.ndarray, dict[int, Fault]]:
        keys = [index.key(number) for number in numbers]
        assert [index.read(number, ["txt"]).fields["txt"][-1:] for number in numbers] == [
            key[-1:].encode() for key in keys
        ]
        found = np.array([cosines[key] for key in keys], np.float32)
        bad = found == NO_SCORE
        faults = {
            number: Fault(key, index.origin(number), "text", "missing", "got .jpg, wanted .txt")
            for number, key, wrong in zip(numbers, keys, bad, strict=True)
            if wrong
        }
        return np.where(bad, np.float32(np.nan), found), faults

    return PairScorer(("image", "text"), score, (lambda x: x / 2 + 0.5) if calibrated else None, {"model": "0123"})


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    shard(tmp_path / "in", [sample(number) for number in range(3)])
    shard(tmp_path / "in", [sample(number) for number in range(3, 8)], "000001.tar")
    return tmp_path / "in"


def kept(folder: Path) -> list[str]:
    return [raw.key for raw in ShardIndex.open([folder])]


def reasons(report: FilterReport) -> list[tuple[str, str, str]]:
    return [(one.key, one.reason, one.detail) for one in report.left]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_threshold_keeps_equal_and_larger_cosines(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = filter_shards([shards], out, FilterConfig(min_similarity=0.25), scorer=scorer())
    assert kept(out) == ["s000", "s001", "s003", "s004", "s006", "s007"]
    assert (report.samples, report.kept, report.shards) == (8, 6, 2)
    assert reasons(report) == [
        ("s002", "similarity", "-0.125, wanted at least 0.25"),
        ("s005", "similarity", "0.0, wanted at least 0.25"),
    ]
    assert [(line["key"], line["field"]) for line in lines(out / LEDGER)] == [
        ("s002", "image,text"),
        ("s005", "image,text"),
    ]
    assert lines(out / SIMILARITIES) == [
        {"key": key, "shard": f"{shards}/00000{int(key > 's002')}.tar", "similarity": value, "kept": value >= 0.25}
        for key, value in COSINES.items()
    ]
    manifest = read_manifest(out)
    assert manifest is not None
    facts = manifest.settings["similarity"]
    assert {name: facts[name] for name in ("model", "pair", "scored", "unscored", "kept")} == {
        "model": "0123", "pair": ["image", "text"], "scored": 8, "unscored": 0, "kept": 6
    }  # fmt: skip
    assert facts["quantiles"][0] == {"share": 0, "similarity": -0.125}
    assert facts["quantiles"][-1] == {"share": 1, "similarity": 1.0}
    assert [one["similarity"] for one in facts["quantiles"] if one["share"] == 0.5] == [0.25]
    assert manifest.settings["min_similarity"] == 0.25


def test_probabilities_are_those_of_the_calibration(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = filter_shards([shards], out, FilterConfig(min_probability=0.75), scorer=scorer(calibrated=True))
    assert kept(out) == ["s000", "s004", "s007"]
    assert reasons(report)[0] == ("s001", "probability", "0.625, wanted at least 0.75")
    assert [line["probability"] for line in lines(out / SIMILARITIES)] == [x / 2 + 0.5 for x in COSINES.values()]
    assert "  most                        1.0000, probability 1.0000" in report.table().splitlines()


@pytest.mark.parametrize(
    ("share", "wanted"),
    [
        (0.5, ["s000", "s001", "s004", "s007"]),  # of three equal cosines the first
        (0.74, ["s000", "s001", "s003", "s004", "s007"]),
        (0.001, ["s007"]),
        (1.0, list(COSINES)),
    ],
)
def test_a_share_keeps_its_count_and_of_equal_cosines_the_earlier(
    shards: Path, tmp_path: Path, share: float, wanted: list[str]
) -> None:
    report = filter_shards([shards], tmp_path / "out", FilterConfig(keep_share=share), scorer=scorer())
    assert kept(tmp_path / "out") == wanted
    assert all(one.detail.endswith(f", wanted one of the {len(wanted)} largest of 8") for one in report.left)


def test_a_share_counts_as_it_is_written(tmp_path: Path) -> None:
    """0.29 of 100 are 29, though 0.29 * 100 is less than 29 in floats."""
    assert 0.29 * 100 < 29
    shard(tmp_path / "in", [sample(number) for number in range(100)])
    cosines = {f"s{number:03d}": number / 128 for number in range(100)}
    filter_shards([tmp_path / "in"], tmp_path / "out", FilterConfig(keep_share=0.29), scorer=scorer(cosines))
    assert kept(tmp_path / "out") == [f"s{number:03d}" for number in range(71, 100)]


def test_the_share_counts_over_what_meets_all_other_criteria_and_has_a_score(tmp_path: Path) -> None:
    samples = [sample(number) for number in range(8)]
    samples[7]["txt"], samples[4]["jpg"] = b"short 7", samples[1]["jpg"]
    samples[6]["jpg"] = b"damaged"
    shard(tmp_path / "in", samples[:3])
    (tmp_path / "in/000001.tar").write_bytes(b"no tar file" * 100)
    shard(tmp_path / "in", samples[3:], "000002.tar")
    config = FilterConfig(keep_share=0.5, min_words=3, duplicates="exact", repair=True)
    report = filter_shards([tmp_path / "in"], tmp_path / "out", config, scorer=scorer({**COSINES, "s000": NO_SCORE}))
    assert kept(tmp_path / "out") == ["s001", "s003"]
    assert [(one.key, one.reason) for one in report.left] == [
        ("s000", "missing"), ("s002", "similarity"), ("", "damaged"), ("s004", "repeated"), ("s005", "similarity"),
        ("s006", "undecodable"), ("s007", "short"),
    ]  # fmt: skip
    assert [line["key"] for line in lines(tmp_path / "out" / SIMILARITIES)] == ["s001", "s002", "s003", "s005"]
    assert report.scores is not None
    assert report.scores.facts()["unscored"] == 1


def test_a_dry_run_shows_the_distribution_before_a_criterion_is_chosen(shards: Path, tmp_path: Path) -> None:
    report = filter_shards([shards], tmp_path / "out", scorer=scorer(), dry_run=True)
    table = report.table().splitlines()
    assert table[:3] == [
        "samples                       8",
        "kept                          8 in 2 shards",
        "left out                      0",
    ]
    assert table[3:5] == ["similarity of image and text  of 8 samples", "  least                       -0.1250"]
    assert "  50 % below                  0.2500" in table
    found = json.loads(report.to_json())
    assert found["similarity"]["quantiles"][0] == {"share": 0, "similarity": -0.125}
    assert (found["kept"], found["counts"], found["left"]) == (8, {}, [])
    assert not (tmp_path / "out").exists()


def test_similarities_of_an_earlier_call_do_not_stay(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    filter_shards([shards], out, FilterConfig(keep_share=0.5), scorer=scorer())
    filter_shards([shards], out, overwrite=True)
    assert not (out / SIMILARITIES).exists()
    assert len(kept(out)) == 8


def test_remote_shards_are_read_through_the_cache(shards: Path, tmp_path: Path) -> None:
    with serve() as server:
        server.files |= {f"/{path.name}": path.read_bytes() for path in shards.glob("*.tar")}
        remote = CacheConfig(folder=tmp_path / "cache").build()
        urls = f"{server.url}/{{000000..000001}}.tar"
        report = filter_shards(
            [urls], tmp_path / "out", FilterConfig(min_similarity=0.5), scorer=scorer(), remote=remote
        )
    assert kept(tmp_path / "out") == ["s000", "s004", "s007"]
    assert {one.shard for one in report.left} == {f"{server.url}/00000{number}.tar" for number in range(2)}


def test_nothing_similar_enough_is_an_error(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no sample would be left:\n(.*\n)*  similarity image,text +8\n"):
        filter_shards(
            [shards], tmp_path / "out", FilterConfig(min_similarity=0.5), scorer=scorer(dict.fromkeys(COSINES, 0.1))
        )


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        (FilterConfig(keep_share=0.5), None, r"got --keep-share without a model, wanted .*--run"),
        (
            FilterConfig(),
            scorer(),
            r"got a model \(--run\) and no criterion, wanted one of .*--keep-share.*add --dry-run",
        ),
        (
            FilterConfig(min_probability=0.5),
            scorer(),
            r"without a calibration of image and text: fit one by .*--calibrate",
        ),
    ],
)
def test_criteria_and_models_go_together(
    shards: Path, tmp_path: Path, config: FilterConfig, given: PairScorer | None, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        filter_shards([shards], tmp_path / "out", config, scorer=given)
    assert not (tmp_path / "out").exists()
