"""Importing: from the files that publishers give out to a dataset, by DuckDB, in bounded memory."""
