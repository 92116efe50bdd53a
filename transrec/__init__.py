"""transrec: adapt foundation models to sequential recommendation cheaply."""

__version__ = "0.1.0"
