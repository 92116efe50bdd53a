"""Plots as inline SVG for an HTML page, with a text for each element that the mouse or the keyboard points at."""

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
    """Return the plot that `draw` draws as an `<svg>` without URLs and without ids that other plots in the page use.

    Args:
        draw: function that draws the plot. It may return plain texts by the gid of a drawn element; each becomes the
            element's `<title>`. Elements whose gid begins with "line" are also reachable by the keyboard.
        name: name of the plot, unique in the page.
        label: description of the plot for screen readers.
    """
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    drawn = io.StringIO()
    # Names may contain characters that matplotlib would read as a formula.
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "text.parse_math": False}
    with rc_context(style):
        words = draw(figure.subplots()) or {}
        unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(drawn, format="svg", transparent=True, metadata=unsaid)
    text = drawn.getvalue()
    text = re.sub(r'<g id="([^"]*)"', lambda group: _group(group[1], words), text[text.index("<svg") :])
    # HTML needs no namespaces, and the page's style sets the plot's size.
    start, rest = text.split(">", 1)
    start = re.sub(r' (?:xmlns(?::\w+)?|width|height)="[^"]*"', "", start)
    return f'{start} role="group" aria-label="{escape(printable(label))}">{rest}' if label else f"{start}>{rest}"


def _group(gid: str, words: Mapping[str, str]) -> str:
    """Return the start of a group's tag, up to its last `>`."""
    if gid not in words:
        return "<g"
    text = escape(printable(words[gid]))
    reached = f' tabindex="0" role="img" aria-label="{text}"' if gid.startswith("line") else ""
    return f'<g class="said"{reached}><title>{text}</title'
