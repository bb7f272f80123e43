"""Reports in a real browser, by its pipe of commands: nothing is wider than the page, on laptops and phones, light and dark."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmssl.data.modalities.audio import AudioConfig
from mmssl.reporting.gallery import Answer, Gallery, Pick
from mmssl.reporting.report import write_report
from mmssl.reporting.shown import shown_sample
from tests.reporting.test_report import HOSTILE, full_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LONG = ["an_evaluator_with_a_rather_long_name/image_to_text_R@10", "w" * 300, "a word and another " * 40, "ÄÖ 図"]


class Browser:
    """A headless Chromium, and one page of it.

    Args:
        program: its path.
        profile: a folder that is its own.
    """

    def __init__(self, program: str, profile: Path) -> None:
        commands, self._out = os.pipe()
        answers_in, answers = os.pipe()
        self._in = os.fdopen(answers_in, "rb")
        # The browser reads commands from descriptor 3 and answers on 4.
        wired = f'exec 3<&{commands} 4>&{answers}; exec "$@"'
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        words = ["bash", "-c", wired, "bash", program, *options, "--remote-debugging-pipe"]
        self.process = subprocess.Popen(
            words, pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(commands)
        os.close(answers)
        self._count = 0
        self._session: str | None = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.ask("Page.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command; events are passed over."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (found := self._next()).get("id") != self._count:
            pass
        assert "error" not in found, found
        result: dict[str, Any] = found["result"]
        return result

    def open(self, page: Path) -> None:
        """Go to a file, and wait until it is loaded."""
        self.ask("Page.navigate", url=page.as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def value(self, expression: str) -> Any:
        """The value of an expression in the page, or of its promise."""
        asked = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return asked["result"].get("value")

    def close(self) -> None:
        """End it."""
        os.close(self._out)
        self.process.wait(timeout=60)
        self._in.close()

    def _next(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            assert byte, "the browser has ended"
            data += byte
        message: dict[str, Any] = json.loads(data)
        return message


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert CHROMIUM is not None
    opened = Browser(CHROMIUM, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


WIDER = """
[...document.querySelectorAll('body *')].filter(one => {
  for (let up = one.parentElement; up; up = up.parentElement)
    if (['auto', 'scroll', 'hidden', 'clip'].includes(getComputedStyle(up).overflowX)) return false;
  return one.getBoundingClientRect().right > innerWidth + 1;
}).map(one => one.outerHTML.slice(0, 120))
"""
"""Elements that stick out of the page and do not scroll within it."""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("words", [HOSTILE, LONG], ids=["hostile", "long"])
def test_nothing_is_wider_than_the_page(
    browser: Browser, tmp_path: Path, words: list[str], width: int, scheme: str
) -> None:
    full_report(tmp_path / "report.html", words)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 800}
    browser.ask("Emulation.setDeviceMetricsOverride", **metrics)
    browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(tmp_path / "report.html")
    assert browser.value("innerWidth") == width
    assert browser.value(WIDER) == []
    assert browser.value("document.documentElement.scrollWidth") <= width
    background, ink = (
        browser.value(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color")
    )
    brightness = [sum(map(int, colour[4:-1].split(","))) for colour in (background, ink)]
    assert (brightness[0] > brightness[1]) == (scheme == "light")
    assert browser.value("document.querySelectorAll('body script, body iframe').length") == 0


LENGTHS = """
Promise.all([...document.querySelectorAll('audio')].map(one => new Promise(say => {
  one.onloadedmetadata = () => say(one.duration);
  one.onerror = () => say(one.error.message);
  one.load();
  one.preload = 'metadata';
})))
"""
"""Seconds of each sound of the page, or why it cannot be played."""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_sounds_can_be_played(browser: Browser, tmp_path: Path) -> None:
    modality = AudioConfig(rate=8_000, seconds=1.0).build("sound")
    sound = np.sin(np.arange(24_000) / 3, dtype=np.float32)[None]
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 8_000, 0, "NONE", ""))
        out.writeframes((sound * 9_000).astype(np.int16).tobytes())
    whole = shown_sample(modality, "key", sound, file.getvalue(), "wav")
    middle = shown_sample(modality, "key", sound, file.getvalue(), "wav", largest=12_000)
    pick = Pick(whole, 1, Answer(middle, 0.5, True), (Answer(middle, 0.5, True),))
    write_report(tmp_path / "report.html", title="t", galleries=[Gallery("sound", {"best": (pick,)})])
    browser.open(tmp_path / "report.html")
    assert browser.value(LENGTHS) == pytest.approx([3.0, 2.33], abs=0.2)
