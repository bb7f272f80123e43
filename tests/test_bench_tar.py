"""The benchmark of reading archives gives the same bytes by all readers, and a file of figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_figures(tmp_path: Path) -> None:
    tool = Path(__file__).resolve().parents[1] / "tools" / "bench_tar.py"
    options = ["--samples", "12", "--shards", "2", "--rounds", "3", "--json", str(tmp_path / "tar.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(tool), *options], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
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
