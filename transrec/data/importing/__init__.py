"""Importing: converts published files to a dataset with DuckDB, in bounded memory."""
