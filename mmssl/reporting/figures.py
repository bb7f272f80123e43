"""Figures for reports, as data URIs: charts of curves, and thumbnails re-encoded from pixels."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

Curve = Sequence[tuple[float, float]]
"""(step, value) pairs."""

CHARTS = (
    ("Loss", r"(.+/)?(chance_)?loss(/.+)?"),
    ("In-batch accuracy", r".+accuracy"),
    ("Scale of the logits", r"(.+/)?(logit_)?scale"),
    ("Spread of features, 0 collapsed", r"(.+/)?spread(/.+)?"),
    ("Norm of features", r"norm/.+"),
    ("Gradient norm", r"grad_norm(/.+)?"),
    ("Learning rate", r"lr"),
    ("Samples per second", r"samples_per_second"),
    ("Share of time waiting for data", r"data_wait"),
)
"""Title and names (whole match) of charts with several curves; every other training metric has one chart."""

SCORE_CHARTS = (
    ("Accuracy", r".+/(acc1|mean_per_class_recall)"),
    ("Retrieval, R@k", r".+/.+_R@\d+"),
)
"""The same for scores; other scores are in the table only."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6d4c1d", "#555555")
"""Okabe and Ito's colour-blind-safe palette."""

PERFECT = "as claimed"
"""Name of a curve that others are held against; as those of chance it is grey and dashed."""

MARKED = 20
"""Points of a curve up to which each is marked."""

LONGEST = 600
"""Largest number of points drawn of a curve."""

SKETCH = (160, 100)
"""Width and height in pixels of a small figure of rows of numbers."""
SKETCH_POINTS = 600
"""Its points."""


@dataclass(frozen=True)
class Chart:
    """Curves that share their axes.

    Attributes:
        title: of the figure. curves: name -> points.
        x: what the first numbers are.
        dots: whether points are drawn by themselves, all of one scale, in place of lines.
    """

    title: str
    curves: Mapping[str, Curve]
    x: str = "step"
    dots: bool = False


def charts(curves: Mapping[str, Curve], evaluators: Sequence[str] = ()) -> list[Chart]:
    """Group curves into charts. Curves with one point, and ungrouped constant ones, are left out.

    Args:
        curves: metric -> points.
        evaluators: names before "/" that mark a score.
    """
    left = {name: curve for name, curve in curves.items() if len(curve) > 1 and name not in ("samples", "progress")}
    scores = {name for name in left if name.split("/")[0] in evaluators}
    found = []
    for title, pattern in (*CHARTS, *SCORE_CHARTS):
        wanted = scores if (title, pattern) in SCORE_CHARTS else left.keys() - scores
        names = [name for name in left if name in wanted and re.fullmatch(pattern, name)]
        if names:
            found.append(Chart(title, {name: left.pop(name) for name in names}))
    for name, curve in left.items():
        if name not in scores and len({value for _, value in curve}) > 1:
            found.append(Chart(name, {name: curve}))
    return found


def chart_uri(chart: Chart) -> str:
    """An SVG of the curves as a data URI. Names are drawn as outlines: no fonts, no markup."""
    return _uri("image/svg+xml", _drawn(chart, "svg"))


def chart_png(chart: Chart) -> bytes:
    """The same picture as a PNG."""
    return _drawn(chart, "png")


def _drawn(chart: Chart, form: str) -> bytes:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "mmssl", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(4.6, 4.2 if chart.dots else 2.7), layout="constrained")
        axes = figure.add_subplot()
        for i, (name, curve) in enumerate(chart.curves.items()):
            steps, values = zip(*(curve if chart.dots else thinned(curve)), strict=True)
            reference = "chance" in name or name == PERFECT
            colour = "#999999" if reference else COLOURS[i % len(COLOURS)]
            if chart.dots:
                axes.scatter(steps, values, s=6, linewidths=0, alpha=0.6, color=colour, label=_plain(name))
                continue
            style = "--" if reference else "-"
            marker = "." if len(curve) <= MARKED and not reference else ""
            axes.plot(steps, values, color=colour, linestyle=style, marker=marker, linewidth=1.4, label=_plain(name))
        if chart.dots:
            axes.set_aspect("equal", adjustable="datalim")
        axes.set_xlabel(chart.x)
        axes.grid(color="#e6e6e6", linewidth=0.6)
        if len(chart.curves) > 1:
            # The usual place, but named: matplotlib warns of the default where finding it takes a second, as on a busy machine.
            for text in axes.legend(loc="best", frameon=False, fontsize=7).get_texts():
                text.set_parse_math(False)
        file = io.BytesIO()
        clear: dict[str, Any] = {"metadata": {"Date": None}, "transparent": True} if form == "svg" else {"dpi": 150}
        figure.savefig(file, format=form, **clear)
    return file.getvalue()


def thinned(curve: Curve, most: int = LONGEST) -> list[tuple[float, float]]:
    """At most about `most` points, by averaging neighbours; short curves stay as they are."""
    size = math.ceil(len(curve) / most)
    parts = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def picture_uri(picture: Tensor, side: int = 160) -> str:
    """Pixels uint8 [3, H, W] as a data URI, at most `side` wide and high: small ones exactly (PNG), others as JPEG.

    Encoded from pixels only: no metadata of the original file, such as its location, remain.
    """
    from PIL import Image

    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().cpu().numpy())
    image.thumbnail((side, side))
    file = io.BytesIO()
    if max(image.size) <= 64:
        image.save(file, "PNG", optimize=True)
        return _uri("image/png", file.getvalue())
    image.save(file, "JPEG", quality=85)
    return _uri("image/jpeg", file.getvalue())


def lines_uri(rows: Tensor) -> str:
    """Rows of numbers [C, T] as a small SVG: a curve of each below the other, each from its lowest to its highest number.

    Of many numbers the lowest and the highest of each stretch are drawn, so that no peak is lost.
    """
    values = np.nan_to_num(rows.detach().double().cpu().numpy())
    count, samples = values.shape
    parts = min(samples, max(8, SKETCH_POINTS // (2 * count)))
    starts = np.linspace(0, samples, parts, endpoint=False).astype(int)
    ends = np.stack([reduce.reduceat(values, starts, axis=1) for reduce in (np.minimum, np.maximum)], axis=2)
    low, high = values.min(1)[:, None, None], values.max(1)[:, None, None]
    width, height = SKETCH
    heights = (
        (np.arange(count)[:, None, None] + 0.95 - 0.9 * (ends - low) / np.maximum(high - low, 1e-30)) * height / count
    )
    x = np.broadcast_to(((np.arange(parts) + 0.5) * width / parts)[:, None], (parts, 2)).reshape(-1)
    curves = (
        f'<polyline fill="none" stroke="{COLOURS[i % len(COLOURS)]}" points="'
        + " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        + '"/>'
        for i, y in enumerate(heights.reshape(count, -1))
    )
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return _uri("image/svg+xml", f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(curves)}</svg>'.encode())


def heat_colours(value: float, low: float, high: float) -> tuple[str, str]:
    """Background and text colours (#rrggbb) of a heat map cell: white at `low`, dark blue at `high`."""
    share = min(1.0, max(0.0, (value - low) / (high - low) if high > low else 0.0))
    white, blue = (250, 251, 253), (8, 64, 129)
    mixed = [round(a + (b - a) * share) for a, b in zip(white, blue, strict=True)]
    return "#" + "".join(f"{part:02x}" for part in mixed), "#ffffff" if share > 0.5 else "#26323d"


def _plain(name: str) -> str:
    """Make a legend label safe: matplotlib hides labels that begin with `_`, lacks glyphs, and writes labels to comments."""
    return re.sub(r"[^\w/@.,:+ -]", "?", name, flags=re.ASCII).lstrip("_")


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
