"""The shell of a self-contained HTML page, and the parts of pages: text, tables, thumbnails and data cards."""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from transrec.data.dataset import description
from transrec.data.images.gallery import Gallery
from transrec.data.images.pictures import Problem, Recipe
from transrec.errors import printable

LONGEST_TEXT = 300
# Deeper levels of a nested data card are not shown.
DEEPEST = 4
THUMBNAIL = Recipe(size=96, kind="jpeg", quality=80)

CARDS = """.cards { display: flex; flex-wrap: wrap; gap: 0.5rem; list-style: none; margin: 0; padding: 0; }
.cards li { width: 9rem; padding: 0.4rem; border: 1px solid var(--line); border-radius: 0.4rem; font-size: 0.85rem;
  line-height: 1.3; break-inside: avoid; }
.cards li.target { border: 2px solid var(--mark); }
.cards img { display: block; width: 96px; max-width: 100%; height: auto; margin-bottom: 0.3rem; border-radius: 0.2rem; }
@media (max-width: 30rem) { .cards li { width: calc(50% - 0.25rem); } }
"""

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:$more">
<title>$name</title>
<style>
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --faint: #666; --line: #ddd; --mark: #1f77b4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #16181c; --faint: #9a9a9a; --line: #383c44; --mark: #6cb2e8; }
  .plot svg, .swatch { filter: invert(1) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { margin: 0; } h2 { margin: 2.5rem 0 0.5rem; } h3 { margin: 1.5rem 0 0.5rem; font-size: 1rem; }
p { margin: 0.5rem 0; } .faint { color: var(--faint); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
td, th { padding: 0.2rem 0.8rem 0.2rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td + td, th + th { font-variant-numeric: tabular-nums; }
.numbers td + td, .numbers th + th { text-align: right; white-space: nowrap; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem; }
.plot { margin: 0; } .plot svg { width: 100%; height: auto; display: block; }
@media print {
  :root { --ink: #000; --paper: #fff; --faint: #444; --line: #bbb; --mark: #000; }
  body { max-width: none; font-size: 10pt; } .plot svg, .swatch { filter: none; }
  .plot, tr { break-inside: avoid; } h2, h3 { break-after: avoid; }
}
$style</style>
</head>
<body>
<h1>$name</h1>
$body
$script</body>
</html>
""")


def shell(name: str, sections: Iterable[str], style: str = "", script: str = "") -> str:
    """Return a page of HTML sections; empty sections are left out.

    Args:
        name: the page's title, plain text.
        style: additional CSS.
        script: transrec's own JavaScript; browsers run no other script in the page.
    """
    more = ""
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        more, script = f"; script-src 'sha256-{digest}'", f"<script>{script}</script>\n"
    body = "\n".join(filter(None, sections))
    return PAGE.substitute(name=as_text(name), body=body, style=style, script=script, more=more)


def as_text(value: object) -> str:
    """Return an untrusted value as text for the page: on one line, shortened, with all markup escaped."""
    plain = str(value)
    return as_value(plain if len(plain) <= LONGEST_TEXT else f"{plain[:LONGEST_TEXT]}...")


def as_value(value: object) -> str:
    """Return an untrusted value as text for the page or an attribute: escaped, on one line, not shortened."""
    return escape(printable(str(value)))


def thumbnail(gallery: Gallery | None, item: str) -> str:
    """Return an item's picture as a small, re-encoded `<img>`; "" if it is missing or cannot be decoded."""
    if gallery is None or item in gallery.missing:
        return ""
    try:
        record = THUMBNAIL.record(gallery.picture(item))
    except Problem:
        return ""
    # The alternative text is empty because the title next to the picture describes it.
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(record).decode()}">'


def as_card(picture: str, label: str, what: str, marked: bool = False) -> str:
    """Return an entry of a list of the class "cards", whose CSS is CARDS.

    Args:
        picture: HTML from `thumbnail`.
        label: plain text.
        what: HTML below the label.
        marked: mark the card as a target.
    """
    kind = ' class="target"' if marked else ""
    return f'<li{kind}>{picture}<span class="faint">{as_text(label)}</span><br>{what}</li>'


def as_table(header: Sequence[object], rows: Iterable[Sequence[object]], kind: str = "text") -> str:
    """Return a table of plain text. The kind "numbers" right-aligns all columns but the first."""
    names = "".join(f"<th>{as_text(name)}</th>" for name in header)
    lines = ("".join(f"<td>{as_text(cell)}</td>" for cell in row) for row in rows)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table class="{kind}">\n<tr>{names}</tr>\n{body}\n</table></div>'


def data_card(folder: Path) -> str:
    """Return the description of a dataset's import in dataset.json as a table; "" if there is none."""
    card = description(folder).get("import")
    if not isinstance(card, dict):
        return ""
    rows = [(name, in_words(value)) for name, value in card.items() if value not in (None, [], {}, "")]
    return as_table(["import", ""], rows) if rows else ""


def in_words(value: Any, depth: int = 0) -> str:
    """Return a JSON value as plain text."""
    if depth > DEEPEST:
        return "..."
    if isinstance(value, dict):
        return ", ".join(f"{name}: {in_words(entry, depth + 1)}" for name, entry in value.items())
    if isinstance(value, list):
        return "; ".join(in_words(entry, depth + 1) for entry in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
