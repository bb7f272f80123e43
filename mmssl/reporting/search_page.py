"""A self-contained HTML page of a search: the query, and the found samples by modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmssl.reporting.report import write_text_atomically
from mmssl.reporting.score_table import printable
from mmssl.reporting.shown import ShownSample

TEMPLATE = Path(__file__).with_name("search.html.jinja")


def write_page(
    path: Path, title: str, query: ShownSample, found: Mapping[str, Sequence[tuple[ShownSample, float]]]
) -> None:
    """Write the page: no script, no network, all data escaped.

    Args:
        path: of the file; replaced atomically.
        title: heading.
        query: what was searched for.
        found: modality -> (sample, cosine), best first.
    """
    import jinja2

    loader = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    answers = [
        (printable(name), [{"thing": thing, "score": f"{score:.3f}"} for thing, score in some])
        for name, some in found.items()
    ]
    write_text_atomically(
        path,
        loader.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
            title=printable(title), query=query, found=answers
        ),
    )
