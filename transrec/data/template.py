"""Templates such as `{title}. {brand}`: a text made of columns of an items file."""

import re
from dataclasses import dataclass
from itertools import chain

from transrec.errors import TransrecError

PIECE = re.compile(r"(?P<doubled>\{\{|\}\})|\{(?P<column>[^{}]*)\}|(?P<stray>[{}])")


@dataclass(frozen=True)
class Template:
    """Columns and what stands between them.

    Nothing of a template runs: what stands between braces is the name of a column and nothing else.

    Attributes:
        columns: their names, in lower case.
        literals: what stands before each column, and behind the last.
    """

    columns: list[str]
    literals: list[str]

    def fill(self, values: list[str]) -> str:
        """The text of one item; empty where it has nothing in any of the columns."""
        if not any(value.strip() for value in values):
            return ""
        return "".join(chain(*zip(self.literals, [*values, ""], strict=True)))


def read_template(text: str) -> Template:
    """A template from `{title}. {brand}`, where {{ and }} stand for braces.

    Raises TransrecError for a brace without its partner and a template that names no column.
    """
    columns: list[str] = []
    literals = [""]
    end = 0
    for piece in PIECE.finditer(text):
        literals[-1] += text[end : piece.start()]
        end = piece.end()
        if piece["stray"]:
            raise TransrecError(
                f"--text_template {text!r}: the brace at character {piece.start() + 1} has no partner; a column stands "
                f"between two, as in '{{title}}. {{brand}}', and a brace itself is written twice"
            )
        if piece["doubled"]:
            literals[-1] += piece["doubled"][0]
        else:
            columns.append(piece["column"].strip().lower())
            literals.append("")
    literals[-1] += text[end:]
    if not columns:
        raise TransrecError(f"--text_template {text!r}: names no column, as '{{title}}. {{brand}}' does")
    return Template(columns, literals)


def is_template(text: str) -> bool:
    """Whether it is a template, not the bare name of a column."""
    return "{" in text or "}" in text
