"""The shell of a page that needs nothing besides itself, and what pages are made of: text, tables, data cards."""

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
# How deep a data card may be nested before it is not shown further.
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
    """A page of sections, which are HTML; those that are empty are left out.

    Args:
        name: plain text, the page's title.
        style: further CSS.
        script: JavaScript of transrec's own, the only one that a browser then runs in the page.
    """
    more = ""
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        more, script = f"; script-src 'sha256-{digest}'", f"<script>{script}</script>\n"
    body = "\n".join(filter(None, sections))
    return PAGE.substitute(name=as_text(name), body=body, style=style, script=script, more=more)


def as_text(value: object) -> str:
    """A value from anywhere as text of the page: on one line, not too long, and with nothing in it that is markup."""
    plain = str(value)
    return as_value(plain if len(plain) <= LONGEST_TEXT else f"{plain[:LONGEST_TEXT]}...")


def as_value(value: object) -> str:
    """A value from anywhere as text of the page or of an attribute, whole and on one line."""
    return escape(printable(str(value)))


def thumbnail(gallery: Gallery | None, item: str) -> str:
    """A small picture of an item, decoded and encoded anew; nothing where there is none or it cannot be decoded."""
    if gallery is None or item in gallery.missing:
        return ""
    try:
        record = THUMBNAIL.record(gallery.picture(item))
    except Problem:
        return ""
    # Titles say what there is to see.
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(record).decode()}">'


def as_card(picture: str, label: str, what: str, marked: bool = False) -> str:
    """An item of a list of the class "cards", whose CSS is CARDS.

    Args:
        picture: of `thumbnail`.
        label: plain text.
        what: HTML.
        marked: as a target.
    """
    kind = ' class="target"' if marked else ""
    return f'<li{kind}>{picture}<span class="faint">{as_text(label)}</span><br>{what}</li>'


def as_table(header: Sequence[object], rows: Iterable[Sequence[object]], kind: str = "text") -> str:
    """A table of plain text. Of kind "numbers" all columns but the first stand to the right."""
    names = "".join(f"<th>{as_text(name)}</th>" for name in header)
    lines = ("".join(f"<td>{as_text(cell)}</td>" for cell in row) for row in rows)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table class="{kind}">\n<tr>{names}</tr>\n{body}\n</table></div>'


def data_card(folder: Path) -> str:
    """What dataset.json says of how a dataset was imported, as a table; nothing where it says nothing."""
    told = description(folder).get("import")
    if not isinstance(told, dict):
        return ""
    rows = [(name, in_words(value)) for name, value in told.items() if value not in (None, [], {}, "")]
    return as_table(["import", ""], rows) if rows else ""


def in_words(value: Any, depth: int = 0) -> str:
    """A value of JSON in words."""
    if depth > DEEPEST:
        return "..."
    if isinstance(value, dict):
        return ", ".join(f"{name}: {in_words(one, depth + 1)}" for name, one in value.items())
    if isinstance(value, list):
        return "; ".join(in_words(one, depth + 1) for one in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
