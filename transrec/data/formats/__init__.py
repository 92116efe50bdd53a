"""Formats of published datasets: one module per format, saying which of its files hold interactions and items."""

from transrec.data.formats.base import (
    FORMATS,
    MAX_DEPTH,
    Format,
    Rows,
    first_line,
    fits,
    head,
    recognise,
    register,
)
from transrec.data.tables import Table, column, joined

__all__ = [
    "FORMATS",
    "MAX_DEPTH",
    "Format",
    "Rows",
    "Table",
    "column",
    "first_line",
    "fits",
    "head",
    "joined",
    "recognise",
    "register",
]
