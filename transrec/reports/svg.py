"""Plots as SVG that stands in an HTML page, with words for what the mouse or the keyboard points at."""

import io
import re
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from transrec.errors import printable


def as_svg(draw: Callable[[Axes], Mapping[str, str] | None], name: str, label: str = "") -> str:
    """What `draw` draws, as an `<svg>`: no address, and no id that another has, is in it.

    Args:
        draw: may return plain words by the gid of what it drew: they are the `<title>` of that. What has a gid that
            begins with "line" is reached by the keyboard, too.
        name: of the plot, unlike that of any other in the page.
        label: what it shows, for those who do not see it.
    """
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    drawn = io.StringIO()
    # Names may hold signs that would be read as a formula.
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "text.parse_math": False}
    with rc_context(style):
        words = draw(figure.subplots()) or {}
        unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(drawn, format="svg", transparent=True, metadata=unsaid)
    text = drawn.getvalue()
    text = re.sub(r'<g id="([^"]*)"', lambda group: _group(group[1], words), text[text.index("<svg") :])
    # HTML needs no namespaces, and the page says how wide it is.
    start, rest = text.split(">", 1)
    start = re.sub(r' (?:xmlns(?::\w+)?|width|height)="[^"]*"', "", start)
    return f'{start} role="group" aria-label="{escape(printable(label))}">{rest}' if label else f"{start}>{rest}"


def _group(gid: str, words: Mapping[str, str]) -> str:
    """The beginning of a group's tag, in front of its last `>`."""
    if gid not in words:
        return "<g"
    said = escape(printable(words[gid]))
    reached = f' tabindex="0" role="img" aria-label="{said}"' if gid.startswith("line") else ""
    return f'<g class="said"{reached}><title>{said}</title'
