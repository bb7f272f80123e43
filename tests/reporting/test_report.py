"""The report: self-contained, escaped, and nothing of a secret; results as strict JSON, whole or not at all."""

from __future__ import annotations

import base64
import io
import json
import math
import os
from html.parser import HTMLParser
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmssl.reporting import environment as environment_module
from mmssl.reporting import report as report_module
from mmssl.reporting.environment import HIDDEN, commit, environment, is_secret, redact, redact_text
from mmssl.reporting.figures import Chart, chart_uri, charts, heat_colours, picture_uri, thinned
from mmssl.reporting.gallery import Answer, Gallery, Pick, Similarity
from mmssl.reporting.report import read_curves, read_warnings, write_report, write_results
from mmssl.reporting.shown import ShownSample

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><script>alert(1)</script>",
    "</title><svg onload=alert(1)>",
    '<iframe src="javascript:alert(1)"></iframe>',
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% for x in y %}",
    "<a href=https://example.org>x</a>",
    "&lt;script&gt;",
    "url(https://example.org/x.png)",
    "<math><mtext></mtext><style><img src onerror=alert(1)></style></math>",
    "]]><!--",
]


class Page(HTMLParser):
    """What a browser would find: elements with attributes, and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.text += " " if tag in ("th", "td", "div") else ""

    def handle_data(self, data: str) -> None:
        self.text += data


def picture() -> torch.Tensor:
    return torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()


def full_report(path: Path, words: list[str]) -> str:
    """A report in which every field that comes from data or recipes holds one of the words."""
    things = [
        *(ShownSample(word, text=word, note=word) for word in words),
        ShownSample(words[0], picture=picture_uri(picture())),
        ShownSample(words[0], sound="data:audio/wav;base64,UklGRg=="),
    ]
    picks = tuple(Pick(thing, 3, Answer(thing, 0.5, True), (Answer(thing, 0.9, False, True),)) for thing in things)
    write_report(
        path,
        title=words[0],
        curves={word: [(0.0, 1.0), (10.0, 2.0)] for word in words},
        results={word: {word: 0.5, "acc1": 0.5, "absent_classes": word, f"{word}_R@1": 0.1} for word in words}
        | {"name": words[0]},
        galleries=[Gallery(word, {word: picks}) for word in words],
        similarities=[Similarity(torch.rand(len(things), len(things)), tuple(things), tuple(things), words[0])],
        environment={word: word for word in words},
        recipe_text="\n".join(words),
    )
    return path.read_text(encoding="utf-8")


ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "h3", "em", "nav", "a", "section", "div", "i", "b", "u",
    "p", "table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "img", "audio", "span", "small", "ol", "li", "pre",
}  # fmt: skip


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    page = Page(full_report(tmp_path / "report.html", HOSTILE))
    assert {tag for tag, _ in page.elements} <= ALLOWED
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert name in {
                "lang", "charset", "http-equiv", "content", "name", "class", "style", "src", "alt", "title", "href", "id",
                "aria-label", "controls", "preload",
            }, (tag, name)  # fmt: skip
            if name == "src":
                kinds = ("audio/wav",) if tag == "audio" else ("image/png", "image/jpeg", "image/svg+xml")
                assert (value or "").startswith(tuple(f"data:{kind};base64," for kind in kinds))
            if name == "href":
                assert (value or "").startswith("#")
            if name == "style":
                assert "(" not in (value or "")
    for word in HOSTILE:
        assert word in page.text


def test_the_page_forbids_everything_but_its_own_pictures(tmp_path: Path) -> None:
    html = full_report(tmp_path / "report.html", ["plain"])
    page = Page(html)
    policies = [attributes["content"] for tag, attributes in page.elements if attributes.get("http-equiv")]
    assert policies == ["default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"]
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    targets = {attributes["href"] for tag, attributes in page.elements if tag == "a"}
    assert targets == {"#" + str(attributes["id"]) for tag, attributes in page.elements if "id" in attributes}


def test_sounds_play_and_parts_of_them_say_so(tmp_path: Path) -> None:
    thing = ShownSample("bark", sound="data:audio/mpeg;base64,SUQz", note="4.0 s of 9.0 s")
    pick = Pick(thing, 1, Answer(thing, 0.5, True), (Answer(thing, 0.5, True),))
    write_report(tmp_path / "r.html", title="t", galleries=[Gallery("sound", {"best": (pick,)})])
    page = Page((tmp_path / "r.html").read_text())
    played = [attributes for tag, attributes in page.elements if tag == "audio"]
    assert played == [{"controls": None, "preload": "none", "src": thing.sound, "title": "bark"}] * 2
    assert page.text.count("4.0 s of 9.0 s") == 2


def test_what_has_no_room_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.html"
    thing = ShownSample("key", picture=picture_uri(picture()))
    pick = Pick(thing, 1, Answer(thing, 0.5, True), ())
    parts: dict[str, Any] = {
        "curves": {f"metric{i}": [(0.0, 1.0), (1.0, 2.0)] for i in range(3)},
        "galleries": [Gallery("picture", {"best": (pick,)})],
        "similarities": [Similarity(torch.ones(1, 1), (thing,), (thing,))],
    }
    write_report(path, title="t", **parts)
    whole = path.read_text()
    assert whole.count("<figure>") == 3
    assert "eft out" not in whole
    monkeypatch.setattr(report_module, "LARGEST_PAGE", len(whole) - 1)
    write_report(path, title="t", **parts)
    assert "Left out, with the similarities" in path.read_text()
    assert thing.picture not in path.read_text()
    first = next(line for line in whole.splitlines() if "<figure>" in line)
    monkeypatch.setattr(report_module, "LARGEST_CHARTS", len(first) + 10)
    write_report(path, title="t", **parts)
    assert path.read_text().count("<figure>") == 1
    assert "2 more figures are left out" in path.read_text()


def test_a_report_of_nothing_is_a_report(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", title="empty")
    page = Page((tmp_path / "report.html").read_text())
    assert {"section", "img", "a"}.isdisjoint(tag for tag, _ in page.elements)


def test_scores_of_relations_and_classes_stand_at_the_top_too(tmp_path: Path) -> None:
    results = {
        "sides": {"acc": 0.75, "acc_ci95_low": 0.7, "acc_ci95_high": 0.8, "chance": 0.5},
        "offset": {"in_sync_acc": 0.625, "in_sync_chance": 0.25},
        "classes": {"a_to_b_mAP": 0.375, "a_to_b_mAP_chance": 0.125},
    }
    write_report(tmp_path / "r.html", title="t", results=results)
    text = " ".join(Page((tmp_path / "r.html").read_text()).text.split())
    assert "sides: acc 75.0 % 95 %: 70.0 to 80.0, chance 50" in text
    assert "offset: in sync acc 62.5 % chance 25" in text
    assert "classes: a to b mAP 37.5 % chance 12" in text


def test_scores_are_shown_with_interval_chance_and_ceiling(tmp_path: Path) -> None:
    values: dict[str, Any] = {"acc1": 0.875, "acc1_ci95_low": 0.8, "acc1_ci95_high": 0.9, "chance": 0.1, "acc5": None}
    way = {"R@1": 0.25, "R@1_ci95_low": 0.2, "R@1_ci95_high": 0.3, "R@1_chance": 0.01, "R@1_ceiling": 0.5}
    pairs = {f"{d}_{k}": v for d in ("a_to_b", "b_to_a") for k, v in way.items()}
    write_report(tmp_path / "report.html", title="t", results={"zero_shot": values, "retrieval": {"n": 7, **pairs}})
    text = " ".join(Page((tmp_path / "report.html").read_text()).text.split())
    assert "zero shot: acc1 87.5 % 95 %: 80.0 to 90.0, chance 10" in text
    assert "retrieval: a to b R@1 25.0 % 95 %: 20.0 to 30.0, chance 1, ceiling 50.0" in text
    assert "acc1 0.875 (0.8 to 0.9)" in text
    assert "acc5 –" in text
    assert "a to b b to a R@1 0.25 (0.2 to 0.3), chance 0.01 0.25 (0.2 to 0.3), chance 0.01" in text


def test_a_relation_card_is_one_table(tmp_path: Path) -> None:
    metric = "sides_video_audio_acc"
    around = {"_ci95_low": 0.6, "_ci95_high": 0.8, "_chance": 0.5, "_n": 40}
    scores = {
        metric: 0.7,
        **{f"{metric}{end}": value for end, value in around.items()},
        "n": 48,
        "gap": 0.2,
        "gap_n": 48,
    }
    write_report(tmp_path / "report.html", title="t", results={"relations": scores})
    text = " ".join(Page((tmp_path / "report.html").read_text()).text.split())
    assert "relations score 95 % chance n sides video audio acc 0.7 0.6 to 0.8 0.5 40 gap 0.2 48 n 48" in text
    assert "ci95" not in text


def test_control_characters_are_made_visible(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", title="a\x1b[31mb\u202ec\x00")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "a\ufffd[31mb\ufffdc\ufffd" in html


def test_secrets_are_hidden(tmp_path: Path) -> None:
    write_report(
        tmp_path / "report.html",
        title="t",
        environment={"HF_TOKEN": "hidden-one", "OMP_NUM_THREADS": "4"},
        recipe_text="tracker: {api_key: hidden-two, name: x}\npassword: 'hidden-three'\ntokenizer: {kind: clip}\n",
    )
    html = (tmp_path / "report.html").read_text()
    assert "hidden-" not in html
    assert "{kind: clip}" in html
    assert "<td>4</td>" in html


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("HF_TOKEN", True), ("hf_token", True), ("apiKey", True), ("api_key", True), ("WANDB_API_KEY", True), ("DB_PASSWORD", True),
        ("clientSecret", True), ("aws.secret.access.key", True), ("Authorization", True), ("tokenizer", False), ("tokens", False),
        ("key", False), ("keys", False), ("monkey", False), ("author", False), ("API_URL", False),
    ],
)  # fmt: skip
def test_secrets_are_known_by_name(name: str, secret: bool) -> None:
    assert is_secret(name) == secret
    assert redact({name: "x"})[name] == (HIDDEN if secret else "x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:\n  token: abc, d # note\nb: 1", "a:\n  token: (hidden)\nb: 1"),
        ("a:\n  token: |\n    abc\n\n    d\n  b: 1", "a:\n  token: (hidden)\n  b: 1"),
        ('{"secret": "a b", "n": 1}', '{"secret": (hidden)'),
        ("{n: 1, api_key: 'a b'}", "{n: 1, api_key: (hidden)"),
        ("password=abc", "password=(hidden)"),
        ("views: {text: tokens}\n\nb: 1", "views: {text: tokens}\n\nb: 1"),
    ],
)
def test_secrets_are_hidden_in_recipes(text: str, expected: str) -> None:
    assert redact_text(text) == expected


def test_the_environment_says_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "abc")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setenv("HOME", "somewhere")
    facts = environment()
    assert facts["torch"] == torch.__version__
    assert facts["HF_TOKEN"] == HIDDEN
    assert facts["OMP_WAIT_POLICY"] == "passive"
    assert "HOME" not in facts
    assert all(isinstance(value, str) for value in facts.values())


def test_a_folder_without_repository_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert commit(tmp_path) is None
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(environment_module.shutil, "which", lambda name: None)
    assert commit(tmp_path) is None


def test_results_are_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results(path, {"zero_shot": {"acc5": None, "acc1": 0.5, "names": "ö"}})
    assert json.loads(path.read_text(encoding="utf-8")) == {"zero_shot": {"acc5": None, "acc1": 0.5, "names": "ö"}}
    before = path.read_bytes()
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"'retrieval\.deep\[1\]'"):
            write_results(path, {"retrieval": {"deep": [0.0, value]}})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["results.json"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    write_results(path, {"a": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_results(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["results.json"]


def test_curves_are_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_curves(path) == {}, "the file was lost, or an imported model never had one"
    path.write_text(
        '{"step": 1, "loss": 2.5, "note": "x", "none": null, "flag": true}\n{"step": 2, "loss": 2}\n{"step": 3, "lo'
    )
    assert read_curves(path) == {"loss": [(1.0, 2.5), (2.0, 2.0)]}
    path.write_text('{"loss": 1}\n{"step": 2, "loss": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1"):
        read_curves(path)


def test_warnings_of_the_run_stand_above_its_curves(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "loss": 2}\n{"step": 7, "loss": 2, "alarm/collapse": "All <b>alike</b>."}\n{"step": 8, "al'
    )
    assert read_warnings(path) == [(7, "All <b>alike</b>.")]
    write_report(tmp_path / "r.html", title="t", warnings=read_warnings(path))
    page = (tmp_path / "r.html").read_text()
    assert '<p class="warning">Step 7: All &lt;b&gt;alike&lt;/b&gt;.</p>' in page
    assert 'href="#training"' in page
    write_report(tmp_path / "r.html", title="t")
    assert "<p class=" not in (tmp_path / "r.html").read_text()


def test_curves_are_sorted_into_charts() -> None:
    line = [(0.0, 1.0), (1.0, 2.0)]
    names = [
        "loss", "loss/a", "a-b/chance_loss", "a-b/a_to_b_accuracy", "a-b/scale", "lr", "grad_norm", "grad_norm/encoders.a",
        "spread", "spread/a", "samples", "zero/acc1", "zero/n", "pairs/a_to_b_R@1", "pairs/a_to_b_R@1_ci95_low",
    ]  # fmt: skip
    curves = dict.fromkeys(names, line) | {"still": [(0.0, 1.0), (1.0, 1.0)], "once": [(0.0, 1.0)]}
    found = {chart.title: list(chart.curves) for chart in charts(curves, evaluators=["zero", "pairs"])}
    assert found == {
        "Loss": ["loss", "loss/a", "a-b/chance_loss"],
        "In-batch accuracy": ["a-b/a_to_b_accuracy"],
        "Scale of the logits": ["a-b/scale"],
        "Spread of features, 0 collapsed": ["spread", "spread/a"],
        "Gradient norm": ["grad_norm", "grad_norm/encoders.a"],
        "Learning rate": ["lr"],
        "Accuracy": ["zero/acc1"],
        "Retrieval, R@k": ["pairs/a_to_b_R@1"],
    }


def test_long_curves_are_thinned_and_keep_their_mean() -> None:
    curve = [(float(i), float(i % 7)) for i in range(5000)]
    thin = thinned(curve, 600)
    assert 500 < len(thin) <= 600
    assert sum(y for _, y in thin) / len(thin) == pytest.approx(3, abs=0.02)
    assert thinned(curve[:10]) == curve[:10]


def test_a_chart_holds_no_text_of_its_curves() -> None:
    chart = Chart("t", {"_<script>$x_{": [(0, 1), (1, 2)], "漢字": [(0, 1), (1, 0)]})
    svg = base64.b64decode(chart_uri(chart).split(",")[1]).decode()
    assert svg.startswith("<?xml")
    assert "script>" not in svg
    assert "$" not in svg
    assert chart_uri(chart) == chart_uri(chart)


def test_a_slow_machine_draws_a_chart_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib warns of a place of the names that it takes over a second to find, unless the place is named."""
    monkeypatch.setattr("matplotlib.legend.time.perf_counter", count(0, 10).__next__)
    assert chart_uri(Chart("t", {"a": [(0, 1), (1, 2)], "b": [(0, 1), (1, 0)]}))


@pytest.mark.parametrize(("side", "kind"), [(16, "png"), (300, "jpeg")])
def test_pictures_are_encoded_anew(side: int, kind: str) -> None:
    pixels = torch.full((3, side, side // 2), 200, dtype=torch.uint8)
    uri = picture_uri(pixels)
    assert uri.startswith(f"data:image/{kind};base64,")
    image = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    assert image.size == ((8, 16) if side == 16 else (80, 160))
    assert image.getpixel((3, 3)) == (200, 200, 200)


def test_heat_goes_from_light_to_dark() -> None:
    assert heat_colours(0.1, 0.1, 0.9) == ("#fafbfd", "#26323d")
    assert heat_colours(0.9, 0.1, 0.9) == ("#084081", "#ffffff")
    assert heat_colours(0.5, 0.5, 0.5)[0] == "#fafbfd"
