"""Templates such as `{title}. {brand}`, which build an item's text from columns of the items file."""

import re
from dataclasses import dataclass
from itertools import chain

from transrec.errors import TransrecError

PIECE = re.compile(r"(?P<doubled>\{\{|\}\})|\{(?P<column>[^{}]*)\}|(?P<stray>[{}])")


@dataclass(frozen=True)
class Template:
    """The columns of a template and the text between them.

    A template is never executed: the text inside braces can only be the name of a column.

    Attributes:
        columns: the names of the columns, in lower case.
        literals: the text before each column, then the text after the last.
    """

    columns: list[str]
    literals: list[str]

    def fill(self, values: list[str]) -> str:
        """Return the text of one item from its values of the columns; empty if all of them are blank."""
        if not any(value.strip() for value in values):
            return ""
        return "".join(chain(*zip(self.literals, [*values, ""], strict=True)))


def read_template(text: str) -> Template:
    """Parse a template such as `{title}. {brand}`, in which {{ and }} mean literal braces.

    Raises TransrecError for an unmatched brace, and for a template that names no column.
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
    """Return whether a text is a template rather than the bare name of a column."""
    return "{" in text or "}" in text
