"""The benchmark of reading archives gives the same bytes by all readers, and a file of figures."""

from __future__ import annotations

import json
from pathlib import Path

from tests.tools.conftest import RunTool


def test_figures(run_tool: RunTool, tmp_path: Path) -> None:
    run_tool("bench_tar", "--samples", 12, "--shards", 2, "--rounds", 3, "--json", tmp_path / "tar.json")
    figures = json.loads((tmp_path / "tar.json").read_text())
    assert figures["unit"] == "samples per CPU second"
    assert set(figures["rates"]) == {
        "webdataset",
        "in order",
        "in order, checksums",
        "shuffled",
        "shuffled, checksums",
    }
    assert (figures["ours"], figures["peer"]) == (
        figures["rates"]["shuffled, checksums"],
        figures["rates"]["webdataset"],
    )
    assert figures["spread"][0] <= figures["ratio"] <= figures["spread"][1]
    assert 20_000 < figures["sample_bytes"] < 113_000
